"""One jitted, donated training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.core import (
    RULES,
    Batch,
    Loss,
    Metrics,
    Objective,
    Params,
    Rules,
    UsageError,
    View,
    add_metrics,
    batch_sharding,
    named,
    use_mesh,
)
from jaxlab.train.state import STEP_METRICS, TrainState

_OWN_METRICS = frozenset(STEP_METRICS)


class Step:
    """`step(state, batch) -> state`: gradients, optimizer, metrics and carry in one jitted call.

    The state that is passed in is donated: its buffers are gone after the call. The shardings of
    the state that comes out are those of the state that went in, so that one compilation serves
    all steps. A call returns when the step is dispatched. Made by `make_step`.

    Attributes:
      num_compilations: programs made so far; it stays 1 from the first step on. (The entries of
        jit's own cache are more: it keeps one for every way in which equal arguments arrive.)
    """

    def __init__(
        self,
        view: View,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        mesh: Mesh,
        rules: Rules,
        accumulate: int,
        reduce_once: bool,
    ):
        if accumulate < 1:
            raise UsageError(f"accumulate={accumulate}; expected at least 1 micro-batch a step")
        for path, value in view.state.items() if reduce_once else ():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise UsageError(
                    f"reduce_once takes models whose state is running statistics, which copies "
                    f"average, got {path!r} of dtype {value.dtype}; leave it off"
                )
        self._view, self._objective, self._optimizer = view.training(), objective, optimizer
        self._mesh, self._rules, self._accumulate = mesh, rules, accumulate
        self._rows = batch_sharding(mesh, rules)
        # One copy of the model has nothing to reduce over `data`.
        self._reduce_once = reduce_once and "data" in _axes(self._rows.spec)
        self._placed: dict[str, NamedSharding] = {}
        self._jitted: Any = None
        self.num_compilations = 0

    def __call__(self, state: TrainState, batch: Batch) -> TrainState:
        """Returns the state after one optimizer step on `batch` (arrays [b, ...])."""
        jitted = self._prepared(state)
        with use_mesh(self._mesh, self._rules):
            return jitted(state, batch)

    def lower(self, state: TrainState, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """The program of the step from shapes: of a `StatePlan`, and of a batch.

        Its `compile()` tells memory a device (`memory_analysis`) and collectives (`as_text`);
        nothing is allocated.
        """
        jitted = self._prepared(state)
        with use_mesh(self._mesh, self._rules):
            return jitted.lower(state, batch)

    def _prepared(self, state: TrainState) -> Any:
        if self._jitted is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
            self._placed = shardings.params
            if self._reduce_once:
                self._require_whole_copies()
            self._jitted = jax.jit(
                self._step,
                donate_argnums=0,
                in_shardings=(shardings, self._rows),
                out_shardings=shardings,
            )
        return self._jitted

    def _require_whole_copies(self) -> None:
        for path, sharding in self._placed.items():
            if "data" in _axes(sharding.spec):
                raise UsageError(
                    f"reduce_once takes a whole copy of the model at each index of data, but "
                    f"{path!r} lies as {sharding.spec}; shard parameters over fsdp, or leave it off"
                )

    def _step(self, state: TrainState, batch: Batch) -> TrainState:
        # Runs under tracing only, and with all shardings given each trace is one program.
        self.num_compilations += 1
        own = {name: state.metrics[name] for name in state.metrics if name != "grad_norm"}
        key = named(state.key, "step", state.step)
        if self._reduce_once:
            grads, model_state, carry, metrics = self._reduced_once(state, batch, own, key)
        elif self._accumulate == 1:
            part = self._part(state.params, state.model_state, batch, state.carry, named(key, 0))
            grads, model_state, carry = part.grads, part.model_state, part.carry
            metrics = _add(own, part.metrics)
        else:
            parts = batch, state.carry, state.model_state, own
            sums, model_state, carry, metrics = self._accumulated(state.params, *parts, key)
            grads = _mean(*sums, state.params)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        norm = {"grad_norm": (optax.tree.norm(grads).astype(jnp.float32), jnp.ones(()))}
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            key=state.key,
            carry=carry,
            metrics=metrics | add_metrics({"grad_norm": state.metrics["grad_norm"]}, norm),
        )

    def _part(
        self,
        params: Params,
        model_state: Mapping[str, Any],
        batch: Batch,
        carry: Any,
        key: jax.Array,
        *,
        weighted: bool = False,
    ) -> _Part:
        """One micro-batch: gradients of its mean loss, or of that times its weight."""

        def loss_of(params: Params) -> tuple[jax.Array, tuple[Loss, dict[str, Any]]]:
            model = _Model(self._view, params, model_state)
            loss = self._objective(model, batch, carry, key)
            value = loss.value * jax.lax.stop_gradient(loss.weight) if weighted else loss.value
            return value, (loss, model.state)

        (_, (loss, state_after)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        _require_same_carry(carry, loss.carry)
        metrics = loss.metrics | {"loss": (loss.value, loss.weight)}
        return _Part(self._place(grads), loss.weight, state_after, loss.carry, metrics)

    def _place(self, grads: Params) -> Params:
        """Gradients lie as their parameters do: what sums them leaves each device its shard."""
        return {path: self._constrain(g, self._placed[path].spec) for path, g in grads.items()}

    def _constrain(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if self._mesh.size == 1:
            return x
        manual = jax.sharding.get_abstract_mesh().manual_axes
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*_without(spec, manual)))

    def _accumulated(
        self,
        params: Params,
        batch: Batch,
        carry: Any,
        model_state: dict[str, Any],
        sums: Metrics,
        key: jax.Array,
    ) -> tuple[tuple[Params, jax.Array], dict[str, Any], Any, Metrics]:
        """The sums of the gradients and weights of micro-batches, one after the other.

        What is added up is the gradient of the summed loss, as it leaves the all-reduce: so a
        compiler may add the shares of a device first and reduce them once, behind the loop.
        """

        def body(totals: Any, part: Any) -> tuple[Any, Any]:
            grads, weight, model_state, sums = totals
            index, batch, carry = part
            part = self._part(params, model_state, batch, carry, named(key, index), weighted=True)
            grads = jax.tree.map(lambda g, more: g + more.astype(g.dtype), grads, part.grads)
            totals = grads, weight + part.weight, part.model_state, _add(sums, part.metrics)
            return totals, part.carry

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        totals = (self._place(zeros), jnp.zeros(()), model_state, sums)
        parts = (jnp.arange(self._accumulate), *map(self._split, (batch, carry)))
        (grads, weight, model_state, sums), carry = jax.lax.scan(body, totals, parts)
        return (grads, weight), model_state, self._join(carry), sums

    def _reduced_once(
        self, state: TrainState, batch: Batch, own: Metrics, key: jax.Array
    ) -> tuple[Params, dict[str, Any], Any, Metrics]:
        """Each copy of the model sums up its own rows; one reduction over `data` joins them."""

        def copy(
            params: Params, model_state: dict[str, Any], batch: Batch, carry: Any, key: jax.Array
        ) -> Any:
            key = named(key, "copy", jax.lax.axis_index("data"))
            zeros = jax.tree.map(lambda _: jnp.zeros(()), own)
            sums, model_state, carry, metrics = self._accumulated(
                params, batch, carry, model_state, zeros, key
            )
            totals = jax.lax.psum((sums, metrics), "data")
            return (totals, jax.lax.pmean(model_state, "data")), carry

        whole, rows = PartitionSpec(), PartitionSpec("data")
        ((sums, metrics), model_state), carry = jax.shard_map(
            copy,
            mesh=self._mesh,
            in_specs=(whole, whole, rows, rows, whole),
            out_specs=(whole, rows),
            axis_names={"data"},
            check_vma=False,
        )(state.params, state.model_state, batch, state.carry, key)
        metrics = jax.tree.map(jnp.add, own, metrics)
        grads, weight = sums
        return _mean(grads, weight, state.params), model_state, carry, metrics

    def _split(self, tree: Any) -> Any:
        """[b, ...] -> [micro-batch, rows, ...]: row i of micro-batch a is row i * accumulate + a.

        So every device keeps the rows it has, in every micro-batch.
        """

        def split(x: jax.Array) -> jax.Array:
            rows, rest = divmod(x.shape[0], self._accumulate)
            if rest:
                raise UsageError(
                    f"a batch of {x.shape[0]} rows does not divide into accumulate="
                    f"{self._accumulate} micro-batches; change one of them"
                )
            x = x.reshape(rows, self._accumulate, *x.shape[1:]).swapaxes(0, 1)
            return self._constrain(x, PartitionSpec(None, *self._rows.spec))

        return jax.tree.map(split, tree)

    def _join(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def make_step(
    view: View,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    rules: Rules = RULES,
    accumulate: int = 1,
    reduce_once: bool = False,
) -> Step:
    """Makes the training step of a model, which it puts in training mode (`View.training`).

    Args:
      view: the model; its arrays are not used, those of the state are.
      objective: `objective(model, batch, carry, key) -> Loss`. The carry enters as data: gradients
        end at the border of a step.
      optimizer: an optax optimizer over the flat parameters.
      mesh: the devices of the state.
      rules: logical axis to mesh axes, for the activations.
      accumulate: number of micro-batches a batch is split into by rows. Gradients and metrics are
        averaged by the weights of the losses, as over the whole batch.
      reduce_once: reduce gradients over the mesh axis `data` once a step, behind all layers and
        micro-batches, on every backend; each device then sums up whole (or FSDP-sharded) gradients
        in float32. The objective sees the rows of one copy of the model at a time, with a key of
        its own: the same for means over rows, not for losses that compare rows, and other noise
        than on one device. Batch normalisation takes the statistics of the copy's rows, and the
        running ones that come out are the mean over copies. With one copy (`data` of 1) it changes
        nothing.

    Raises:
      UsageError: `accumulate` below 1; `reduce_once` for a model with other state than running
        statistics (stored random counters), or with parameters that are sharded over `data`; when
        the first batch is traced, rows that do not divide by `accumulate`, metrics other than those
        the state sums, or a carry that changes its shape.
    """
    return Step(
        view,
        objective,
        optimizer,
        mesh=mesh,
        rules=rules,
        accumulate=accumulate,
        reduce_once=reduce_once,
    )


def metric_names(
    view: View, objective: Objective, batch: Mapping[str, Any], carry: Any = None
) -> tuple[str, ...]:
    """The names of what a step of `objective` measures, found from shapes alone.

    Args:
      view: the model, abstract or not.
      objective: as for `make_step`.
      batch: one batch, arrays or shapes.
      carry: the recurrent state, arrays or shapes.
    """
    view = view.training()

    def measure(params: Params, state: dict[str, Any], batch: Batch, carry: Any) -> Loss:
        return objective(_Model(view, params, state), batch, carry, jax.random.key(0))

    loss = jax.eval_shape(measure, view.params, view.state, dict(batch), carry)
    return tuple(sorted(_OWN_METRICS | loss.metrics.keys()))


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one micro-batch gives."""

    grads: Params
    weight: jax.Array
    model_state: dict[str, Any]
    carry: Any
    metrics: Metrics


class _Model:
    """The model an objective sees: `view.apply`, with the changes of its state kept."""

    def __init__(self, view: View, params: Params, state: Mapping[str, Any]):
        self._view, self._params, self.state = view, params, dict(state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.state:
            return self._view.apply(self._params, *args, **kwargs)
        output, self.state = self._view.apply_with_state(self._params, self.state, *args, **kwargs)
        return output


def _mean(grads: Params, weight: jax.Array, params: Params) -> Params:
    # Without any weight all gradients are zero already.
    weight = jnp.where(weight > 0, weight, 1.0)
    return jax.tree.map(lambda g, p: (g / weight).astype(p.dtype), grads, params)


def _entries(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """The mesh axes of every dimension."""
    return [(axis,) if isinstance(axis, str) else axis or () for axis in spec]


def _axes(spec: PartitionSpec) -> set[str]:
    return {axis for axes in _entries(spec) for axis in axes}


def _without(spec: PartitionSpec, manual: Iterable[str]) -> list[Any]:
    """The entries of a spec without the mesh axes that are split by hand here."""
    return [tuple(a for a in axes if a not in manual) or None for axes in _entries(spec)]


def _add(sums: Metrics, metrics: Metrics) -> Metrics:
    if sums.keys() != metrics.keys():
        raise UsageError(
            f"the objective measures {sorted(metrics)} but the state sums {sorted(sums)}; make "
            "the state with metric_names(view, objective, batch)"
        )
    sums = add_metrics(sums, metrics)
    return jax.tree.map(lambda x: x.astype(jnp.float32), sums)


def _require_same_carry(before: Any, after: Any) -> None:
    def describe(tree: Any) -> dict[str, tuple[Any, Any]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): (x.shape, x.dtype.name) for path, x in leaves}

    old, new = describe(before), describe(after)
    for path in [*old, *new]:
        if old.get(path) != new.get(path):
            raise UsageError(
                f"carry{path} is {old.get(path, 'absent')} before the batch and "
                f"{new.get(path, 'absent')} after it; the objective must return the carry it "
                "took, with the same shapes and dtypes"
            )
