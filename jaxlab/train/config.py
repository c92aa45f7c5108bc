"""How a model is trained, as one frozen config."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxlab.core import MeshConfig, UsageError
from jaxlab.train.optimizers import OptimizerConfig

KEPT = ("keep_last", "keep_every", "keep_best", "best_metric", "best_mode")
"""The fields of `TrainConfig` that `Checkpoints` takes."""

MAY_CHANGE = (
    *KEPT,
    "log_every",
    "watch_every",
    "save_every",
    "prefetch",
    "mesh",
    "on_divergence",
    "spike_factor",
    "max_skips",
    "stuck_seconds",
)
"""The fields of `TrainConfig` that do not change what a run computes: a run that is taken up again
may have others."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      steps: optimizer steps in all.
      batch_size: rows of the batch over all devices.
      seed: of the model's initialisation and of what the steps draw.
      accumulate: micro-batches a batch is split into; it divides `batch_size`.
      reduce_once: reduce gradients over `data` once a step; see `make_step` for what it asks of
        the loss.
      log_every: steps a row of metrics.
      watch_every: steps a row of what instruments measure; None does without.
      save_every: steps a checkpoint.
      eval_every: steps an evaluation; None evaluates at the end only.
      keep_last, keep_every, keep_best, best_metric, best_mode: which checkpoints are kept; see
        `Checkpoints`. The metric is a column of `metrics.jsonl`, such as
        `held_out/bits_per_byte`; a checkpoint has the value last measured before it, so let
        `save_every` be a multiple of `eval_every`.
      prefetch: batches made ahead.
      on_divergence: what follows numbers that are not finite, or a spike: `stop` ends the run;
        `skip` goes back to the last good checkpoint and passes over the batches after it, as
        arXiv:2204.02311, section 5.1, does.
      spike_factor: a training loss of more than this times the median of the last rows of metrics
        is a spike (see `StopOnSpike`); None: there are no spikes, only numbers that are not finite.
      max_skips: how often a run skips, in all, before a divergence ends it.
      stuck_seconds: a run in which no step is done for so long prints the stacks of its threads and
        ends (see `Watchdog`); None waits for ever.
      strict_sharding: refuse parameter axes that do not divide over the mesh.
      mesh: how the devices are laid out.
      optimizer: the optimizer and its learning rate.

    Raises:
      UsageError: a value out of its range.
    """

    steps: int = 1000
    batch_size: int = 8
    seed: int = 0
    accumulate: int = 1
    reduce_once: bool = False
    log_every: int = 10
    watch_every: int | None = None
    save_every: int = 500
    eval_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    keep_best: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    prefetch: int = 2
    on_divergence: Literal["stop", "skip"] = "stop"
    spike_factor: float | None = None
    max_skips: int = 3
    stuck_seconds: float | None = None
    strict_sharding: bool = False
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        least = {"seed": 0, "max_skips": 0}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < least.get(field.name, 1):
                raise UsageError(
                    f"train field {field.name}={value}; it takes a whole number of "
                    f"{least.get(field.name, 1)} or more"
                )
        if self.on_divergence not in ("stop", "skip"):
            raise UsageError(
                f"train field on_divergence={self.on_divergence!r}; it takes 'stop' or 'skip'"
            )
        for name, above in (("spike_factor", 1), ("stuck_seconds", 0)):
            value = getattr(self, name)
            if value is not None and not above < value < math.inf:
                raise UsageError(
                    f"train field {name}={value}; it takes a number above {above}, or none"
                )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"train field accumulate={self.accumulate} does not divide "
                f"batch_size={self.batch_size}; accepted: {_divisors(self.batch_size)}"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
