"""The state of a run as one pytree, planned from shapes and born sharded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.core import (
    RULES,
    Metrics,
    Params,
    Rules,
    UsageError,
    View,
    batch_sharding,
    named,
    param_shardings,
)

Build = Callable[[nnx.Rngs], nnx.Module]
"""Makes the model from its random streams, for example `lambda rngs: MLP(config, rngs=rngs)`."""

STEP_METRICS = ("loss", "grad_norm")
"""What every step measures beside the metrics of its objective."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run continues from, except its place in the data.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: `{path: array}`.
      opt_state: the state of the optax optimizer over `params`.
      model_state: `{path: array}`, the model's other variables (running statistics); often empty.
      key: typed random key; a step uses `named(key, 'step', step, micro-batch)`.
      carry: the recurrent state, a pytree of arrays [b, ...], or None.
      metrics: `{name: (sum, weight)}` float32 scalars since the last log, so that a run that
        resumes between two logs writes the same numbers.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    model_state: dict[str, Any]
    key: jax.Array
    carry: Any
    metrics: Metrics

    def items(self) -> dict[str, Any]:
        """The state in the items in which it is saved; those without an array are left out."""
        items = {
            "params": self.params,
            "model_state": self.model_state,
            "train": {
                "step": self.step,
                "opt_state": self.opt_state,
                "key": self.key,
                "metrics": self.metrics,
            },
            # In a dict, for orbax takes no single array as an item.
            "carry": {"rows": self.carry},
        }
        return {name: item for name, item in items.items() if jax.tree.leaves(item)}

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> TrainState:
        """The inverse of `items`."""
        return cls(
            params=items["params"],
            model_state=items.get("model_state", {}),
            carry=items["carry"]["rows"] if "carry" in items else None,
            **items["train"],
        )


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """A state in shapes: what will lie where, before anything is allocated.

    Attributes:
      view: the model, with shapes in place of arrays.
      abstract: the state, each leaf a `jax.ShapeDtypeStruct` with its sharding.
      notes: a line for every parameter axis that a rule would shard but that does not divide.
      key: typed key, from which the state is made by default.
    """

    view: View
    abstract: TrainState
    notes: tuple[str, ...]
    key: jax.Array
    _make: Callable[[jax.Array, Iterable[str]], TrainState] = dataclasses.field(repr=False)
    _make_carry: Callable[[], Any] = dataclasses.field(repr=False)

    def with_metrics(self, names: Iterable[str]) -> StatePlan:
        """The plan of a state that sums the metrics `names`; see `metric_names`."""
        scalar = self.abstract.step.sharding
        zero = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
        metrics: dict[str, Any] = {name: (zero, zero) for name in names}
        return dataclasses.replace(
            self, abstract=dataclasses.replace(self.abstract, metrics=metrics)
        )

    @property
    def shardings(self) -> TrainState:
        """The sharding of every leaf."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def init(self, key: jax.Array | int | None = None) -> TrainState:
        """Makes the state; every leaf is computed on the devices that keep it.

        Args:
          key: typed key, or a seed, from which the model and all steps draw; by default that of
            the plan. All keys share one compiled program.
        """
        return self._jitted_init(self.key if key is None else _as_key(key))

    def lower_init(self) -> jax.stages.Lowered:
        """The program that makes the state from a key; `compile()` tells its memory a device."""
        return self._jitted_init.lower(self.key)

    @functools.cached_property
    def _jitted_init(self) -> Any:
        names = tuple(self.abstract.metrics)
        return jax.jit(lambda key: self._make(key, names), out_shardings=self.shardings)

    def init_carry(self) -> Any:
        """Makes the recurrent state alone."""
        return jax.jit(self._make_carry, out_shardings=self.shardings.carry)()


def plan_state(
    build: Build,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array | int,
    mesh: Mesh,
    rules: Rules = RULES,
    strict: bool = False,
    carry: Callable[[], Any] | None = None,
    view: View | None = None,
) -> StatePlan:
    """Plans the state of a run from shapes alone.

    Args:
      build: makes the model; runs under tracing only.
      optimizer: an optax optimizer over the flat parameters.
      key: typed key, or a seed, from which the model and all steps draw.
      mesh: where the state lies. Parameters are sharded by their `axes` and `rules`, optimizer
        state like its parameter, the carry by rows, everything else replicated.
      rules: logical axis to mesh axes.
      strict: refuse a parameter axis that does not divide, instead of replicating it.
      carry: makes the recurrent state, a pytree of arrays [b, ...]; None for models without one.
      view: `View.abstract` of the model, if there is one already.

    Raises:
      UsageError: under `strict`, an axis that does not divide; a carry whose rows do not divide
        over the devices.
    """
    key = _as_key(key)
    carry = carry or (lambda: None)

    def make(key: jax.Array, metrics: Iterable[str]) -> TrainState:
        view = View.of(build(nnx.Rngs(named(key, "init"))))
        opt_state = optimizer.init(view.params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=view.params,
            opt_state=opt_state,
            model_state=view.state,
            key=named(key, "train"),
            carry=carry(),
            metrics={name: (jnp.zeros(()), jnp.zeros(())) for name in metrics},
        )

    view = view or View.abstract(lambda: build(nnx.Rngs(named(key, "init"))))
    placed, notes = param_shardings(view.params, view.axes, mesh, rules, strict=strict)
    replicated = NamedSharding(mesh, PartitionSpec())
    scalars = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), named(key, "train")))
    step, state_key = _placed(scalars, replicated)
    abstract = TrainState(
        step=step,
        params={path: _placed(p, placed[path]) for path, p in view.params.items()},
        opt_state=_place_like_params(
            jax.eval_shape(optimizer.init, view.params), view, placed, mesh
        ),
        model_state=_placed(view.state, replicated),
        key=state_key,
        carry=_place_rows(jax.eval_shape(carry), batch_sharding(mesh, rules)),
        metrics={},
    )
    return StatePlan(view, abstract, tuple(notes), key, make, carry).with_metrics(STEP_METRICS)


def init_state(
    build: Build,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array | int,
    mesh: Mesh,
    rules: Rules = RULES,
    strict: bool = False,
    carry: Callable[[], Any] | None = None,
    metric_names: Iterable[str] = STEP_METRICS,
) -> tuple[View, TrainState, tuple[str, ...]]:
    """Makes the first state of a run.

    The arguments are those of `plan_state`, and `metric_names`, which the steps will measure; the
    function `metric_names` finds them.

    Returns:
      The model's view (shapes only: the arrays are in the state), the state, and the notes on
      axes that stay replicated.
    """
    plan = plan_state(
        build, optimizer, key=key, mesh=mesh, rules=rules, strict=strict, carry=carry
    ).with_metrics(metric_names)
    return plan.view, plan.init(), plan.notes


def _as_key(key: jax.Array | int) -> jax.Array:
    return jax.random.key(key) if isinstance(key, int) else key


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _place_rows(carry: Any, sharding: NamedSharding) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            raise UsageError(
                f"carry{jax.tree_util.keystr(path)} has shape {leaf.shape}; its first axis must "
                f"be rows that divide over {dict(sharding.mesh.shape)}; change the batch or mesh"
            ) from None
    return _placed(carry, sharding)


def _place_like_params(
    opt_state: Any, view: View, placed: dict[str, NamedSharding], mesh: Mesh
) -> Any:
    """Places every leaf below a parameter's path like that parameter, and the rest replicated."""

    def place(keys: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path = next((name for name in reversed(names) if name in placed), None)
        spec = PartitionSpec()
        if path is not None:
            spec = _fitting_spec(leaf.shape, view.params[path].shape, placed[path].spec)
        return _placed(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _fitting_spec(
    shape: tuple[int, ...], param: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """The parameter's spec for a leaf of its shape, or of its shape without one axis.

    Factored second moments lack one axis. Where the shapes leave open which (a square matrix) and
    it matters, the leaf, which is small, is replicated.
    """
    if shape == param:
        return spec
    axes = (*spec, *(None,) * (len(param) - len(spec)))
    options = {
        axes[:i] + axes[i + 1 :] for i in range(len(param)) if param[:i] + param[i + 1 :] == shape
    }
    return PartitionSpec(*options.pop()) if len(options) == 1 else PartitionSpec()
