"""Hooks: what happens between steps, with checkpoints and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from jaxlab.core import UsageError, gather
from jaxlab.data import join_states

if TYPE_CHECKING:
    from jaxlab.checkpoint.checkpoints import Checkpoints
    from jaxlab.data import Stream
    from jaxlab.train.loop import Run
    from jaxlab.train.state import TrainState


class Writer(Protocol):
    """Where metrics go; `jaxlab.results.MetricWriter` is one."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row of scalars by `split/name`."""
        ...


class Hook:
    """Something that happens between steps; override any of the methods.

    Attributes:
      every: `after_step` is called when the number of steps done is a multiple of this.
    """

    every: int = 1

    def start(self, run: Run) -> None:
        """Called once before the first step."""

    def after_step(self, run: Run) -> None:
        """Called when a step was dispatched; the devices may still be computing it."""

    def flush(self, run: Run) -> None:
        """Writes and checks pending values; called before a checkpoint or an evaluation."""

    def finish(self, run: Run) -> None:
        """Called once after the last step, unless the run raised."""

    def close(self, run: Run) -> None:
        """Called once at the very end, even if the run raised."""


class SaveCheckpoint(Hook):
    """Saves the run every `every` steps and at its end.

    A failed write, such as on a full disk, ends the run after the step during which it failed.

    Args:
      checkpoints: where to save.
      every: number of steps.
      meta: saved with each, as plain JSON.
    """

    def __init__(self, checkpoints: Checkpoints, every: int, meta: Mapping[str, Any] | None = None):
        self._save_every = _positive(every)
        self._checkpoints, self._meta = checkpoints, dict(meta or {})
        self._begun: int | None = None

    def start(self, run: Run) -> None:
        """Notes where the run starts, since that state needs no saving, and prepares to save."""
        self._begun = run.step
        self._checkpoints.prepare(run.state)

    def after_step(self, run: Run) -> None:
        """Saves; the files are written while the next steps run."""
        self._checkpoints.check()
        if run.step % self._save_every == 0:
            self._save(run)

    def finish(self, run: Run) -> None:
        """Saves the last step and waits until it is on disk."""
        self._checkpoints.wait()
        if run.step not in (self._begun, self._checkpoints.latest_step()):
            self._save(run)
            self._checkpoints.wait()

    def is_due(self, run: Run) -> bool:
        """Whether the run is saved at this step."""
        return run.step % self._save_every == 0

    def _save(self, run: Run) -> None:
        self._checkpoints.wait()  # raises an error of the last save before more is written
        run.flush()
        place = join_states(gather(cast("Stream", run.data).state()))
        self._checkpoints.save(run.state, place, self._meta, run.measured)


class Evaluate(Hook):
    """Writes the metrics of `function(state)` every `every` steps and at the end of the run."""

    def __init__(
        self, function: Callable[[TrainState], Mapping[str, Any]], every: int, writer: Writer
    ):
        self.every = _positive(every)
        self._function, self._writer = function, writer
        self._last: int | None = None

    def start(self, run: Run) -> None:
        """Notes where the run starts: that state was evaluated before."""
        self._last = run.step

    def after_step(self, run: Run) -> None:
        """Evaluates; the time does not count as training."""
        run.flush()
        with run.aside():
            row = self._function(run.state)
            self._writer.write(run.step, row)
        run.measured |= row
        self._last = run.step

    def finish(self, run: Run) -> None:
        """Evaluates a complete run, unless its last step was."""
        if run.complete and self._last != run.step:
            self.after_step(run)


def _positive(every: int) -> int:
    if every < 1:
        raise UsageError(f"every={every}; expected a number of steps of 1 or more")
    return every
