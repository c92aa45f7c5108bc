"""Optimizers and learning rates, put together from optax over the flat parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxlab.core import UsageError, select


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate.

    Attributes:
      name: `adamw`; `adafactor` (1804.04235: steps relative to the scale of each parameter, update
        clipping 1, decay 0.8); `sgd` with momentum.
      learning_rate: the peak, reached after the warm-up; for `rsqrt` the numerator.
      schedule: how the rate goes on after a linear warm-up: `constant`; `cosine` or `linear` down
        to `end_rate` times the peak at the last step; `rsqrt`, at step n
        `learning_rate / sqrt(max(n, warmup_steps))`.
      warmup_steps: steps in which the rate grows linearly; step n of them has n/warmup_steps of it.
      end_rate: part of the peak that is left at the last step, in [0, 1]; for cosine and linear.
      weight_decay: with adamw and adafactor, a step takes `rate * weight_decay` of a decayed
        parameter off it; with sgd it is the L2 term of the gradient.
      decay_params: patterns over the paths of the parameters that decay; no others do.
      clip_norm: the gradient's global norm is cut to this; None leaves it.
      b1: decay of adamw's first moment.
      b2: decay of adamw's second moment.
      eps: adamw's addend to the root of the second moment.
      momentum: of sgd and adafactor; None for none.

    Raises:
      UsageError: a value out of its range.
    """

    name: Literal["adamw", "adafactor", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "rsqrt", "linear"] = "cosine"
    warmup_steps: int = 0
    end_rate: float = 0.0
    weight_decay: float = 0.0
    decay_params: tuple[str, ...] = ("*/kernel",)
    clip_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float | None = 0.9

    def __post_init__(self):
        _require(self, "learning_rate", "above 0", lambda x: 0 < x < math.inf)
        _require(self, "warmup_steps", "0 or more", lambda x: x >= 0)
        _require(self, "end_rate", "from 0 to 1", lambda x: 0 <= x <= 1)
        _require(self, "weight_decay", "0 or more", lambda x: 0 <= x < math.inf)
        _require(self, "clip_norm", "above 0, or None", lambda x: x is None or 0 < x < math.inf)
        _require(self, "b1", "from 0 to below 1", lambda x: 0 <= x < 1)
        _require(self, "b2", "from 0 to below 1", lambda x: 0 <= x < 1)
        _require(self, "eps", "above 0", lambda x: 0 < x < math.inf)
        _require(self, "momentum", "from 0 to below 1, or None", lambda x: x is None or 0 <= x < 1)
        names = ("adamw", "adafactor", "sgd")
        _require(self, "name", f"one of {', '.join(names)}", names.__contains__)
        schedules = ("constant", "cosine", "rsqrt", "linear")
        _require(self, "schedule", f"one of {', '.join(schedules)}", schedules.__contains__)


def _require(config: OptimizerConfig, field: str, accepted: str, fits: Any) -> None:
    value = getattr(config, field)
    if not fits(value):
        raise UsageError(f"optimizer field {field}={value!r}; it takes a value {accepted}")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of steps already done.

    Args:
      config: see `OptimizerConfig`.
      steps: the length of the run, at which cosine and linear arrive at `end_rate`.

    Raises:
      UsageError: a warm-up that leaves no step for cosine or linear.

    >>> rate = schedule(OptimizerConfig(learning_rate=1.0, schedule='linear', warmup_steps=2), 4)
    >>> [round(float(rate(done)), 4) for done in range(4)]
    [0.5, 1.0, 0.5, 0.0]
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule in ("cosine", "linear") and warmup >= steps:
        raise UsageError(
            f"warmup_steps={warmup} leaves nothing of steps={steps} for the {config.schedule} "
            "schedule; shorten the warm-up, or take schedule='constant'"
        )
    after = _after_warmup(config, steps)
    peak = peak / warmup**0.5 if warmup and config.schedule == "rsqrt" else peak
    if warmup:
        after = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    # Step number n, the one that makes n - 1 steps done into n, has the rate of n: no step is lost
    # at a rate of zero.
    return lambda done: after(done + 1)


def _after_warmup(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The rate by the number of steps since the end of the warm-up."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, steps - warmup, config.end_rate)
    if config.schedule == "linear":
        return optax.linear_schedule(peak, peak * config.end_rate, steps - warmup)
    if config.schedule == "rsqrt":
        return lambda n: peak * jnp.asarray(n + warmup, jnp.float32) ** -0.5
    return optax.constant_schedule(peak)


def build(
    config: OptimizerConfig, steps: int, padding: Mapping[str, int] | None = None
) -> optax.GradientTransformation:
    """The optax optimizer over `{path: array}`.

    Args:
      config: see `OptimizerConfig`.
      steps: the length of the run.
      padding: rows of parameters that do not count, see `View.padding`. Adafactor, whose steps
        depend on the mean squares of whole parameters, leaves them out; to others their zeros do
        nothing.

    Raises:
      UsageError: as `schedule`; when it is initialised, a pattern that fits no parameter.
    """
    rate = schedule(config, steps)
    decay = config.weight_decay

    def mask(params: Mapping[str, Any]) -> dict[str, bool]:
        return select(params, config.decay_params)

    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.name == "adamw":
        parts.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
        parts.append(optax.add_decayed_weights(decay, mask) if decay else optax.identity())
        parts.append(optax.scale_by_learning_rate(rate))
    elif config.name == "adafactor":
        # Its last two steps are ours, so that the momentum is laid out like the parameters.
        parts.append(without_padding(optax.adafactor(rate, decay_rate=0.8), padding or {}))
        if config.momentum is not None:
            parts.append(optax.ema(config.momentum, debias=False, accumulator_dtype=jnp.float32))
        if decay:
            parts.append(optax.add_decayed_weights(lambda done: -decay * rate(done), mask))
    else:
        parts.append(optax.add_decayed_weights(decay, mask) if decay else optax.identity())
        parts.append(optax.sgd(rate, config.momentum))
    return optax.chain(*parts)


def without_padding(
    optimizer: optax.GradientTransformation, padding: Mapping[str, int]
) -> optax.GradientTransformation:
    """The optimizer on parameters without their padding, whose updates are zero.

    Args:
      optimizer: over `{path: array}`.
      padding: `{path: n}`, the n last rows of a parameter are padding; see `View.padding`.

    >>> update = without_padding(optax.clip_by_block_rms(1.0), {'table': 2}).update
    >>> steps, _ = update({'table': jnp.array([3.0, 4.0, 0.0, 0.0])}, optax.EmptyState())
    >>> [round(float(step), 2) for step in steps['table']]
    [0.85, 1.13, 0.0, 0.0]
    """
    if not padding:
        return optimizer

    def cut(arrays: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if arrays is None:
            return None
        return {p: x[: len(x) - padding[p]] if p in padding else x for p, x in arrays.items()}

    def init(params: Mapping[str, Any]) -> Any:
        return optimizer.init(cut(params))

    def update(
        updates: Mapping[str, Any], state: Any, params: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], Any]:
        updates, state = optimizer.update(cut(updates), state, cut(params))
        padded = {
            path: jnp.pad(updates[path], ((0, n), *((0, 0),) * (updates[path].ndim - 1)))
            for path, n in padding.items()
        }
        return {**updates, **padded}, state

    return optax.GradientTransformation(init, update)
