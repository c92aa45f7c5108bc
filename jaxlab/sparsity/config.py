"""The sparsity of a training as a config: how many weights to keep, which, and when they change."""

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
from jaxlab.sparsity.pruning import Gradual, Growth, MaskChange, Regrow
from jaxlab.sparsity.sparse_init import Distribution, rescale, sparse_init
from jaxlab.sparsity.sparsify import SparseState, masks_of, sparsify


class Trainable(Protocol):
    """A training state, a dataclass; `jaxlab.train.TrainState` is one."""

    @property
    def params(self) -> Params:
        """The parameters."""
        ...

    @property
    def opt_state(self) -> Any:
        """The state of the wrapped optimizer."""
        ...

    @property
    def model_state(self) -> dict[str, Any]:
        """The model's other variables."""
        ...


State = TypeVar("State", bound=Trainable)


class Settings(Protocol):
    """The fields needed of a training config; `jaxlab.train.TrainConfig` has them."""

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        ...

    @property
    def seed(self) -> int:
        """The seed of the training."""
        ...


class Planned(Protocol):
    """The fields needed of a planned training; `jaxlab.train.Setup` has them."""

    @property
    def view(self) -> View:
        """The abstract model."""
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

    def __hash__(self) -> int: ...


Method = Literal["random", "magnitude", "snip", "synflow", "n_m", "gradual", "set", "rigl"]
"""How the weights to keep are chosen; see `SparsityConfig`."""

FirstWeights = Literal["rescale", "he", "uniform", "keep"]
"""How kept weights are initialised; see `SparsityConfig`."""

# These rank all kernels together, which determines how many weights each keeps.
_GLOBAL = ("snip", "synflow")


@dataclasses.dataclass(frozen=True)
class SparsityConfig:
    """The sparsity of a model during training.

    Attributes:
      method: static masks, computed before the first step: `random`; `magnitude`, `snip` and
        `synflow`, from the model's initial weights (see `masks`); `n_m`, the largest n of every m.
        Masks that change: `gradual` prunes by magnitude from `begin_step` to `end_step` (see
        `Gradual`); `set` and `rigl` start at random, then drop and regrow until `end_step` (see
        `Regrow`).
      density: fraction of the weights to keep, in (0, 1]; 1 is dense. None if there is a total, and
        with `n_m`.
      total: number of weights to keep in all kernels, instead of the density.
      rule: how they are distributed over the kernels: `erk`, `er`, `uniform`, `level`; see
        `densities`. `snip` and `synflow` rank all kernels together and have no rule.
      params: patterns of the parameters to prune; see `prunable`.
      own_params, own_densities: patterns of kernels and their own densities; 1 leaves them dense.
      allow_empty_units: accept kernels that keep fewer weights than they have outputs.
      init: initial weights under static masks: `rescale` divides those of the model by the square
        root of the density; `he` draws new ones with `sqrt(2 / kept fan-in)`, `uniform` within
        `1 / sqrt(kept fan-in)`; `keep` only masks them, for trained models.
      seed: the seed of masks and weights; None: the training's seed.
      n, m: the numbers of `n_m`.
      rounds: the number of rounds of `synflow`.
      drop: initial fraction of the kept weights that `set` and `rigl` move.
      begin_step: the step at which `gradual` begins.
      end_step: the step at which masks are final; None: after three quarters of the run.
      every: steps between two changes.

    Raises:
      UsageError: a value out of range, or inconsistent values.
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
                f"sparsity fields density={self.density} and total={self.total}; give exactly one"
            )
        if self.method == "n_m" and self.n > self.m:
            raise _refused(self, "n", f"1 to m={self.m}")
        if self.density is not None and not 0 < self.density <= 1:
            raise _refused(self, "density", "a fraction of the weights above 0, up to 1 (dense)")
        if len(self.own_params) != len(self.own_densities):
            raise UsageError(
                f"sparsity fields own_params={self.own_params} and own_densities="
                f"{self.own_densities}; they take the same number of values"
            )
        if self.method in _GLOBAL and any(d != 1 for d in self.own_densities):
            raise UsageError(
                f"sparsity field own_densities={self.own_densities}; {self.method} ranks all "
                "kernels together and takes only 1, for kernels that stay dense"
            )
        least = {"seed": 0, "begin_step": 0}
        for field in ("total", "seed", "n", "m", "rounds", "begin_step", "end_step", "every"):
            value = getattr(self, field)
            if value is not None and value < least.get(field, 1):
                raise _refused(self, field, f"an integer of {least.get(field, 1)} or more")
        if not 0 < self.drop < 1:
            raise _refused(self, "drop", "a fraction above 0 and below 1")

    def counts(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Returns how many weights each prunable kernel of `params` keeps in the end.

        For `snip` and `synflow` only the sum is meaningful: scores determine the number per kernel.

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
        """Returns how the masks change in a training of `steps` steps; None if they do not.

        Args:
          steps: optimizer steps of the training.
          seed: the seed of `set`, unless the config has its own.

        Raises:
          UsageError: inconsistent steps.
        """
        if self.method not in ("gradual", "set", "rigl"):
            return None
        end = 3 * steps // 4 if self.end_step is None else self.end_step
        if self.method != "gradual":
            by: Growth = "random" if self.method == "set" else "gradient"
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
        """Wraps `optimizer` for sparse parameters; until `begin`, its masks keep all weights."""

        def dense(params: Params) -> Masks:
            return {p: jnp.ones(params[p].shape, bool) for p in self._sparse_counts(params)}

        return sparsify(optimizer, dense, self.change(config.steps, config.seed))

    def begin(
        self, setup: Planned, state: State, first_batch: Callable[[], Batch], seed: int
    ) -> State:
        """Returns the initial state of a sparse training; see `start_sparse`."""
        batch = first_batch() if self.method in _GLOBAL else None
        start = _starter(self, setup)
        return _started(self, start, setup.view, state, setup.objective, batch, seed)

    def check(self, state: Any) -> None:
        """Checks that the masks of a restored state keep as many weights as the config does.

        Raises:
          UsageError: they do not; masks of gradual pruning may keep any number.
        """
        masks, params = masks_of(state.opt_state), state.params
        wanted = self._sparse_counts(params)
        counts = {path: int(mask.sum()) for path, mask in masks.items()}
        if self.method in _GLOBAL:
            wanted, counts = ({"all kernels": sum(each.values())} for each in (wanted, counts))
        for path in () if self.method == "gradual" else wanted:
            if counts[path] != wanted[path]:
                raise UsageError(
                    f"the checkpoint has another sparsity: it keeps {counts[path]:,} weights of "
                    f"{path!r}, this config {wanted[path]:,}; use that run's config or another "
                    "workdir"
                )

    def describe(self, params: Mapping[str, Any]) -> list[str]:
        """Returns a line that says how many weights are kept."""
        counts = self.counts(params)
        kept, size = sum(counts.values()), sum(params[path].size for path in counts)
        return [
            f"kept weights: {kept:,} of {size:,} in {len(counts)} kernels, density "
            f"{kept / size:.4g} ({self.method})"
        ]

    def seeds_step(self) -> bool:
        """Returns whether steps draw masks from the training's seed: `set` without its own seed."""
        return self.method == "set" and self.seed is None

    def _seed(self, seed: Any) -> Any:
        return seed if self.seed is None else self.seed

    def _sparse_counts(self, params: Mapping[str, Any]) -> dict[str, int]:
        # Without kernels that keep all: a run with density 1 is the dense run bit for bit.
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
    """Makes the masks of a config for a model, for kernels that do not keep all weights.

    Args:
      config: see `SparsityConfig`.
      view: the model.
      objective, batch: for `snip`; `synflow` takes the shape of the batch's `inputs`.
      seed: the seed of random masks, unless the config has its own.

    Raises:
      UsageError: as `densities` and the methods raise; a method's argument is missing.
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
            raise UsageError("sparsity method snip needs the loss on data; pass objective, batch")
        return methods.snip(view, objective, batch, sparse)
    if config.method == "synflow":
        if batch is None or "inputs" not in batch:
            raise UsageError("sparsity method synflow needs the shape of batch['inputs']; pass it")
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
    """Makes the initial state of a sparse training from that of the dense model.

    Masks are made for the parameters of the state, which become sparse as `config.init` says; the
    optimizer is initialised with them. Shardings are preserved. The given state is donated.

    Args:
      config: see `SparsityConfig`.
      optimizer: `config.wrap(...)`, with which the state was made.
      view: the model; its arrays are not used.
      state: from `init_state` or `StatePlan.init`.
      objective, batch: see `make_masks`.
      seed: the seed of masks and weights, unless the config has its own.

    Raises:
      UsageError: as `make_masks` raises; the optimizer has no masks.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    start = _jitted_start(config, optimizer, view, shardings)
    return _started(config, start, view, state, objective, batch, seed)


def _started(
    config: SparsityConfig,
    start: Callable[..., Any],
    view: View,
    state: Any,
    objective: Objective | None,
    batch: Batch | None,
    seed: int,
) -> Any:
    if not isinstance(state.opt_state, SparseState):
        raise UsageError(
            "the optimizer of this state has no masks; make the state with config.wrap(...), and "
            "give sparsity last where a training has several interventions"
        )
    # These need concrete arrays; all other methods are computed in the program of the start.
    masks = None
    if config.method in _GLOBAL:
        masks = _masks(config, view, state, objective, batch, seed)
    return start(state, masks, seed)


def _masks(
    config: SparsityConfig,
    view: View,
    state: Any,
    objective: Objective | None,
    batch: Batch | None,
    seed: int | jax.Array,
) -> Masks:
    view = dataclasses.replace(view.at(state.params), state=state.model_state)
    return make_masks(config, view, objective=objective, batch=batch, seed=seed)


@functools.lru_cache(maxsize=8)
def _starter(config: SparsityConfig, setup: Planned) -> Any:
    """Returns the compiled start of a setup, which trainings with all seeds share."""
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
    distribution: Distribution = "normal" if config.init == "he" else "uniform"
    key = jax.random.key(config._seed(seed))
    return sparse_init(key, params, masks, distribution)


def _refused(config: SparsityConfig, field: str, accepted: str) -> UsageError:
    return UsageError(f"sparsity field {field}={getattr(config, field)!r}; it takes {accepted}")
