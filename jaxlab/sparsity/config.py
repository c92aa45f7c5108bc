"""The sparsity of a run as a config: how many weights, which, and how that changes."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import Batch, Masks, Objective, Params, UsageError, View, apply_masks, nearest
from jaxlab.sparsity import masks as methods
from jaxlab.sparsity.densities import Rule, densities
from jaxlab.sparsity.kernels import prunable
from jaxlab.sparsity.pruning import Gradual, MaskChange, Regrow
from jaxlab.sparsity.sparse_init import rescale, sparse_init
from jaxlab.sparsity.sparsify import SparseState, masks_of, sparsify

State = TypeVar("State")
"""A training state: a dataclass with `params`, `opt_state` and `model_state`."""


class Settings(Protocol):
    """What a training's config tells; `jaxlab.train.TrainConfig` is one."""

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        ...

    @property
    def seed(self) -> int:
        """The seed of the training."""
        ...


class Planned(Protocol):
    """A training before it runs; `jaxlab.train.Setup` is one."""

    @property
    def view(self) -> View:
        """The model, in shapes."""
        ...

    @property
    def objective(self) -> Objective:
        """Its loss."""
        ...

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Its optimizer, wrapped."""
        ...

    @property
    def plan(self) -> Any:
        """The plan of its state, with `shardings`."""
        ...


Method = Literal["random", "magnitude", "snip", "synflow", "n_m", "gradual", "set", "rigl"]
"""How the kept weights are chosen; see `SparsityConfig`."""

FirstWeights = Literal["rescale", "he", "uniform", "keep"]
"""How kept weights begin; see `SparsityConfig`."""

# These score all kernels together: how much each keeps comes out.
_GLOBAL = ("snip", "synflow")


@dataclasses.dataclass(frozen=True)
class SparsityConfig:
    """How a model is sparse while it trains.

    Attributes:
      method: static masks, found before the first step: `random`; `magnitude`, `snip` and
        `synflow`, of the model's first weights (see `masks`); `n_m`, the largest n of every m.
        Masks that change: `gradual` prunes by magnitude from `begin_step` to `end_step`
        (see `Gradual`);
        `set` and `rigl` begin at random, drop and grow until `end_step` (see `Regrow`).
      density: share of the weights that is kept, in (0, 1]; 1 is dense. None with a total, and
        with `n_m`.
      total: their number in all kernels, in place of the density.
      rule: how they are shared out over the kernels: `erk`, `er`, `uniform`, `level`; see
        `densities`. `snip` and `synflow` score all kernels together, and have no rule.
      params: patterns of the parameters that are pruned; see `prunable`.
      own_params, own_densities: patterns of kernels, and the density of each; 1 leaves them dense.
      allow_empty_units: accept kernels that keep fewer weights than they have outputs.
      init: first weights under static masks: `rescale` divides the model's own by the root of the
        density; `he` draws them anew with `sqrt(2 / kept fan-in)`, `uniform` within
        `1 / sqrt(kept fan-in)`; `keep` only masks them, as trained ones want.
      seed: from which masks and weights are drawn; None: the training's seed.
      n, m: of `n_m`.
      rounds: of `synflow`.
      drop: fraction of the kept weights that `set` and `rigl` move at first.
      begin_step: step at which `gradual` begins.
      end_step: step at which masks are final; None: three quarters of the run, in whole changes.
      every: steps between two changes.

    Raises:
      UsageError: a value out of its range, or ones that do not fit each other.
    """

    method: Method = "random"
    density: float | None = 0.1
    total: int | None = None
    rule: Rule = "erk"
    params: tuple[str, ...] = ("*kernel",)
    own_params: tuple[str, ...] = ()
    own_densities: tuple[float, ...] = ()
    allow_empty_units: bool = False
    init: FirstWeights = "rescale"
    seed: int | None = None
    n: int = 2
    m: int = 4
    rounds: int = 100
    drop: float = 0.3
    begin_step: int = 0
    end_step: int | None = None
    every: int = 100

    def __post_init__(self):
        for field, kind in (("method", Method), ("rule", Rule), ("init", FirstWeights)):
            value, known = getattr(self, field), typing.get_args(kind)
            if value not in known:
                raise _refused(self, field, f"{', '.join(known)}{nearest(str(value), known)}")
        given = [value for value in (self.density, self.total) if value is not None]
        if self.method == "n_m" and given:
            raise UsageError(
                f"sparsity method n_m keeps n={self.n} of m={self.m}; set density and total to none"
            )
        if self.method != "n_m" and len(given) != 1:
            raise UsageError(
                f"sparsity fields density={self.density} and total={self.total}; give one of both"
            )
        if self.method == "n_m" and self.n > self.m:
            raise _refused(self, "n", f"1 to m={self.m}")
        if self.density is not None and not 0 < self.density <= 1:
            raise _refused(self, "density", "a share of the weights above 0, up to 1 (dense)")
        if len(self.own_params) != len(self.own_densities):
            raise UsageError(
                f"sparsity fields own_params={self.own_params} and own_densities="
                f"{self.own_densities}; they take as many values each"
            )
        if self.method in _GLOBAL and any(d != 1 for d in self.own_densities):
            raise UsageError(
                f"sparsity field own_densities={self.own_densities}; {self.method} scores all "
                "kernels together and takes 1 alone, of kernels that stay dense"
            )
        least = {"seed": 0, "begin_step": 0}
        for field in ("total", "seed", "n", "m", "rounds", "begin_step", "end_step", "every"):
            value = getattr(self, field)
            if value is not None and value < least.get(field, 1):
                raise _refused(self, field, f"a whole number of {least.get(field, 1)} or more")
        if not 0 < self.drop < 1:
            raise _refused(self, "drop", "a fraction above 0 and below 1")

    def counts(self, params: Mapping[str, Any]) -> dict[str, int]:
        """How many weights each prunable kernel of `params` (arrays or shapes) keeps in the end.

        Of `snip` and `synflow` the sum counts: what each kernel keeps comes out of the scores.

        Raises:
          UsageError: as `densities`; with `n_m`, a kernel that m does not divide.
        """
        if self.method == "n_m":
            masks = jax.eval_shape(
                lambda p: methods.n_m(p, self.n, self.m, -2, self.params),
                {path: params[path] for path in prunable(params, self.params)},
            )
            return {p: math.prod(mask.shape) // self.m * self.n for p, mask in masks.items()}
        return densities(
            params,
            self.density,
            "uniform" if self.method in _GLOBAL else self.rule,
            total=self.total,
            own=dict(zip(self.own_params, self.own_densities, strict=True)),
            patterns=self.params,
            allow_empty_units=self.allow_empty_units or self.method in _GLOBAL,
        )

    def change(self, steps: int, seed: int = 0) -> MaskChange | None:
        """How the masks change in a training of `steps` steps; None where they stay.

        Args:
          steps: optimizer steps of the training.
          seed: from which `set` draws, where the config has no seed of its own.

        Raises:
          UsageError: steps that do not fit each other.
        """
        if self.method not in ("gradual", "set", "rigl"):
            return None
        end = 3 * steps // 4 if self.end_step is None else self.end_step
        if self.method != "gradual":
            by = "random" if self.method == "set" else "gradient"
            return Regrow(by, end, self.drop, self.every, self._seed(seed))
        if self.end_step is None:
            end = self.begin_step + (end - self.begin_step) // self.every * self.every
        if end > steps:
            raise UsageError(
                f"sparsity field end_step={end} is after the last of steps={steps}: the density "
                "would not be reached; end earlier or train longer"
            )
        return Gradual(self._sparse_counts, self.begin_step, end, self.every)

    def wrap(
        self, optimizer: optax.GradientTransformation, config: Settings
    ) -> optax.GradientTransformationExtraArgs:
        """`optimizer` for sparse parameters; until `begin` its masks keep all weights."""

        def dense(params: Params) -> Masks:
            return {p: jnp.ones(params[p].shape, bool) for p in self._sparse_counts(params)}

        return sparsify(optimizer, dense, self.change(config.steps, config.seed))

    def begin(
        self, setup: Planned, state: State, first_batch: Callable[[], Batch], seed: int
    ) -> State:
        """The first state of a sparse training; see `start_sparse`."""
        batch = first_batch() if self.method in _GLOBAL else None
        if batch is not None:
            masks = _masks(self, setup.view, state, setup.objective, batch, seed)
        else:
            masks = None
        return _starter(self, setup)(state, masks, seed)

    def check(self, state: Any) -> None:
        """Checks that the masks of a restored state keep as many weights as the config does.

        Raises:
          UsageError: they do not. Those of gradual pruning may keep any number.
        """
        masks, params = masks_of(state.opt_state), state.params
        wanted = self._sparse_counts(params)
        counts = {path: int(mask.sum()) for path, mask in masks.items()}
        if self.method in _GLOBAL:
            wanted, counts = ({"all kernels": sum(each.values())} for each in (wanted, counts))
        for path in () if self.method == "gradual" else wanted:
            if counts[path] != wanted[path]:
                raise UsageError(
                    f"the checkpoint is of another sparsity: it keeps {counts[path]:,} weights of "
                    f"{path!r}, this config {wanted[path]:,}; use that run's config or another "
                    "workdir"
                )

    def describe(self, params: Mapping[str, Any]) -> list[str]:
        """A line that says how many weights are kept."""
        counts = self.counts(params)
        kept, size = sum(counts.values()), sum(params[path].size for path in counts)
        return [
            f"kept weights: {kept:,} of {size:,} in {len(counts)} kernels, density "
            f"{kept / size:.4g} ({self.method})"
        ]

    def seeds_step(self) -> bool:
        """Whether the masks of a step are drawn from the training's seed: `set` without its own."""
        return self.method == "set" and self.seed is None

    def _seed(self, seed: Any) -> Any:
        return seed if self.seed is None else self.seed

    def _sparse_counts(self, params: Mapping[str, Any]) -> dict[str, int]:
        # Without those that keep all: a run of density 1 is the run without sparsity, to the bit.
        return {path: n for path, n in self.counts(params).items() if n < params[path].size}


def num_weights(params: Mapping[str, Any], config: SparsityConfig | None = None) -> int:
    """The number of weights in all prunable kernels, or of those that a config keeps in the end.

    Args:
      params: `{path: array or shape}`.
      config: how the model is sparse; None: not at all.
    """
    if config is not None:
        return sum(config.counts(params).values())
    return sum(math.prod(params[path].shape) for path in prunable(params))


def make_masks(
    config: SparsityConfig,
    view: View,
    *,
    objective: Objective | None = None,
    batch: Batch | None = None,
    seed: int | jax.Array = 0,
) -> Masks:
    """The masks of a config for a model with its first parameters, where not all is kept.

    Args:
      config: see `SparsityConfig`.
      view: the model.
      objective, batch: for `snip`; `synflow` takes the shape of the batch's `inputs`.
      seed: from which random masks are drawn, where the config has no seed of its own.

    Raises:
      UsageError: as `densities` and the methods; an argument that a method needs is missing.
    """
    params = view.params
    sparse = {p: n for p, n in config.counts(params).items() if n < params[p].size}
    if not sparse:
        return {}
    if config.method == "gradual":
        return {path: jnp.ones(params[path].shape, bool) for path in sparse}
    if config.method == "magnitude":
        return methods.magnitude(params, sparse)
    if config.method == "n_m":
        return methods.n_m(params, config.n, config.m, patterns=config.params)
    if config.method == "snip":
        if objective is None or batch is None:
            raise UsageError("sparsity method snip scores weights on data; pass objective, batch")
        return methods.snip(view, objective, batch, sparse)
    if config.method == "synflow":
        if batch is None or "inputs" not in batch:
            raise UsageError("sparsity method synflow takes the shape of batch['inputs']; pass it")
        return methods.synflow(view, batch["inputs"], sparse, rounds=config.rounds)
    return methods.random(jax.random.key(config._seed(seed)), params, sparse)


def start_sparse(
    config: SparsityConfig,
    optimizer: optax.GradientTransformation,
    view: View,
    state: State,
    *,
    objective: Objective | None = None,
    batch: Batch | None = None,
    seed: int = 0,
) -> State:
    """The first state of a sparse training, from that of the dense model.

    Masks are found for the parameters of the state, which become sparse as `config.init` says; the
    optimizer starts anew with them. Shardings stay as they are. The state that is passed in is
    donated.

    Args:
      config: see `SparsityConfig`.
      optimizer: `config.wrap(...)`, with which the state was made.
      view: the model; its arrays are not used.
      state: of `init_state` or `StatePlan.init`.
      objective, batch: see `make_masks`.
      seed: from which masks and weights are drawn, where the config has no seed of its own.

    Raises:
      UsageError: as `make_masks`; an optimizer that holds no masks.
    """
    if not isinstance(state.opt_state, SparseState):
        raise UsageError(
            "the optimizer of this state holds no masks; make the state with config.wrap(...)"
        )
    # These compute in programs of their own, from arrays; the others within that of the start.
    masks = None
    if config.method in _GLOBAL:
        masks = _masks(config, view, state, objective, batch, seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return _jitted_start(config, optimizer, view, shardings)(state, masks, seed)


def _masks(
    config: SparsityConfig,
    view: View,
    state: Any,
    objective: Objective | None,
    batch: Batch | None,
    seed: int | jax.Array,
) -> Masks:
    seen = dataclasses.replace(view.at(state.params), state=state.model_state)
    return make_masks(config, seen, objective=objective, batch=batch, seed=seed)


@functools.lru_cache(maxsize=8)
def _starter(config: SparsityConfig, setup: Planned) -> Any:
    """The compiled start of a setup, which the trainings of all seeds share."""
    return _jitted_start(config, setup.optimizer, setup.view, setup.plan.shardings)


def _jitted_start(
    config: SparsityConfig, optimizer: optax.GradientTransformation, view: View, shardings: Any
) -> Any:
    def start(state: Any, masks: Masks | None, seed: jax.Array) -> Any:
        masks = _masks(config, view, state, None, None, seed) if masks is None else masks
        params = _first_params(config, state.params, masks, seed)
        opt_state = optimizer.init(params)._replace(masks=masks)
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    return jax.jit(start, out_shardings=shardings, donate_argnums=0)


def _first_params(
    config: SparsityConfig, params: Params, masks: Masks, seed: int | jax.Array
) -> Params:
    if config.init == "rescale":
        return rescale(params, masks)
    if config.init == "keep":
        return apply_masks(params, masks)
    distribution = "normal" if config.init == "he" else "uniform"
    key = jax.random.key(config._seed(seed))
    return sparse_init(key, params, masks, distribution)


def _refused(config: SparsityConfig, field: str, accepted: str) -> UsageError:
    return UsageError(f"sparsity field {field}={getattr(config, field)!r}; it takes {accepted}")
