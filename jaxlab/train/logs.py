"""Metrics of training: summed on the devices, read a step late, written as rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlab.core import UsageError
from jaxlab.train.hooks import Hook, Writer

if TYPE_CHECKING:
    from jaxlab.train.loop import Run


@dataclasses.dataclass(frozen=True)
class _Pending:
    step: int
    sums: dict[str, Any]
    rate: Any


class LogMetrics(Hook):
    """Writes a row of metrics every `log_every` steps.

    A row has `train/<name>`, the weighted mean of each metric of the steps since the last row;
    `train/learning_rate`, that of the row's step; and, but for the first step with its
    compilation, `time/step_seconds`, `time/tokens_per_second` and `time/outside_step_rate`, the
    part of the time in which the host was busy with data and hooks.

    The arrays of one row are read when the next step has been dispatched, so that the devices
    never wait. A run that ends between two rows writes what it has; one that is interrupted
    leaves the sums in its state, and the run that resumes writes the row.

    Args:
      writer: where rows go.
      every: steps a row.
      schedule: the learning rate as a function of the number of steps done before.
    """

    def __init__(self, writer: Writer, every: int, schedule: Callable[[Any], Any] | None = None):
        if every < 1:
            raise UsageError(f"log_every={every}; expected 1 or more steps a row")
        self._writer, self._log_every = writer, every
        self._rate = None if schedule is None else jax.jit(schedule)
        self._pending: _Pending | None = None
        self._clock: _Clock | None = None

    def start(self, run: Run) -> None:
        """Makes ready to set the sums in the state back to zero."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state.metrics)
        names = tuple(run.state.metrics)
        self._zeros = jax.jit(
            lambda: {name: (jnp.zeros(()), jnp.zeros(())) for name in names},
            out_shardings=shardings,
        )
        # Compiled now, not beside a step.
        self._zeros()
        self._take(run)

    def after_step(self, run: Run) -> None:
        """Writes the row that is due since the last step, or takes the sums of this one."""
        if self._clock is None:
            self._clock = _Clock.now(run)
        self.flush(run)
        if run.step % self._log_every == 0:
            self._pending = self._take(run)
            run.state = dataclasses.replace(run.state, metrics=self._zeros())

    def finish(self, run: Run) -> None:
        """Writes the last rows; the sums stay in the state."""
        self.flush(run)
        if run.complete and run.step % self._log_every:
            self._pending = self._take(run)
            self.flush(run)

    def flush(self, run: Run) -> None:
        """Writes the row whose step is done, so that no checkpoint is ahead of the rows."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        sums, rate = run.fetch((pending.sums, pending.rate))
        row = {
            f"train/{name}": float(total) / float(weight)
            for name, (total, weight) in sums.items()
            if weight != 0
        }
        if rate is not None:
            row["train/learning_rate"] = float(rate)
        row |= self._times(run, pending.step)
        run.latest = {"step": pending.step} | row
        run.measured |= row
        self._writer.write(pending.step, row)

    def _take(self, run: Run) -> _Pending:
        rate = None if self._rate is None else self._rate(max(run.step - 1, 0))
        return _Pending(run.step, run.state.metrics, rate)

    def _times(self, run: Run, step: int) -> dict[str, float]:
        assert self._clock is not None
        before, self._clock = self._clock, _Clock.now(run, step)
        steps = step - before.step
        elapsed = self._clock.training - before.training
        if steps < 1 or elapsed <= 0:
            return {}
        row = {"time/step_seconds": elapsed / steps}
        if run.tokens_per_step is not None:
            row["time/tokens_per_second"] = run.tokens_per_step * steps / elapsed
        outside = self._clock.outside_step - before.outside_step
        return row | {"time/outside_step_rate": outside / elapsed}


@dataclasses.dataclass(frozen=True)
class _Clock:
    """A reading: the step, the time spent on training, and the part of it outside the steps."""

    step: int
    training: float
    outside_step: float

    @classmethod
    def now(cls, run: Run, step: int | None = None) -> _Clock:
        seconds = run.seconds
        return cls(
            run.step if step is None else step,
            time.perf_counter() - seconds.aside,
            seconds.outside_step,
        )
