"""What happens beside the steps: the protocol of hooks, checkpoints and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from jaxlab.core import UsageError, gather
from jaxlab.data import join_states

if TYPE_CHECKING:
    from jaxlab.checkpoint.checkpoints import Checkpoints
    from jaxlab.train.loop import Run
    from jaxlab.train.state import TrainState


class Writer(Protocol):
    """Where metrics go; `jaxlab.results.MetricWriter` is one."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row of scalars by `split/name`."""
        ...


class Hook:
    """Something that happens beside the steps; every method may be left as it is.

    Attributes:
      every: `after_step` is called when the number of steps done is a multiple of this.
    """

    every: int = 1

    def start(self, run: Run) -> None:
        """Called once before the first step."""

    def after_step(self, run: Run) -> None:
        """Called when a step was dispatched; the devices may still be at work on it."""

    def flush(self, run: Run) -> None:
        """Writes and checks what is pending: a checkpoint or an evaluation comes next."""

    def finish(self, run: Run) -> None:
        """Called once after the last step, unless something raised."""

    def close(self, run: Run) -> None:
        """Called once at the very end, whatever happened."""


class SaveCheckpoint(Hook):
    """Saves the run every so many steps and at its end.

    What goes wrong in writing a checkpoint, such as a full disk, ends the run after the step at
    which it is known.
    """

    def __init__(self, checkpoints: Checkpoints, every: int, meta: Mapping[str, Any] | None = None):
        self._save_every = _positive(every)
        self._checkpoints, self._meta = checkpoints, dict(meta or {})
        self._begun: int | None = None

    def start(self, run: Run) -> None:
        """Takes note of where the run begins: until there is a step there is nothing to save."""
        self._begun = run.step

    def after_step(self, run: Run) -> None:
        """Saves; the files are written while the next steps run."""
        self._checkpoints.check()
        if run.step % self._save_every == 0:
            self._save(run)

    def finish(self, run: Run) -> None:
        """Saves the last step and waits until all is on disk."""
        self._checkpoints.wait()
        if run.step not in (self._begun, self._checkpoints.latest_step()):
            self._save(run)
            self._checkpoints.wait()

    def is_due(self, run: Run) -> bool:
        """Whether the run is saved at this step."""
        return run.step % self._save_every == 0

    def _save(self, run: Run) -> None:
        self._checkpoints.wait()  # what went wrong there is known before more is written
        run.flush()
        place = join_states(gather(run.data.state()))
        self._checkpoints.save(run.state, place, self._meta, run.measured)


class Evaluate(Hook):
    """Writes what `function(state)` measures every so many steps, and at the end of the run."""

    def __init__(
        self, function: Callable[[TrainState], Mapping[str, Any]], every: int, writer: Writer
    ):
        self.every = _positive(every)
        self._function, self._writer = function, writer
        self._last: int | None = None

    def start(self, run: Run) -> None:
        """Takes note of where the run begins: what lies before was evaluated then."""
        self._last = run.step

    def after_step(self, run: Run) -> None:
        """Evaluates; the time is no part of training's."""
        run.flush()
        with run.aside():
            row = self._function(run.state)
            self._writer.write(run.step, row)
        run.measured |= row
        self._last = run.step

    def finish(self, run: Run) -> None:
        """Evaluates a complete run, unless that was just done."""
        if run.complete and self._last != run.step:
            self.after_step(run)


def _positive(every: int) -> int:
    if every < 1:
        raise UsageError(f"every={every}; expected a number of steps of 1 or more")
    return every
