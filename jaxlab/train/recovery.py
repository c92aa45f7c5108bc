"""Recovery from divergence: back to the last good checkpoint, skipping the data after it (PaLM).

"We re-started training from a checkpoint roughly 100 steps before the spike started, and skipped
roughly 200-500 data batches" (Chowdhery et al., arXiv:2204.02311, section 5.1). Here the run goes
back to its newest checkpoint and skips the batches from there to the step at which divergence was
seen. They are recorded in a file beside the checkpoints before the run continues, so that a run
that is killed and resumed skips the same batches, once.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import logging
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxlab.core import UsageError, gather, on_main_process
from jaxlab.results import METRICS_FILE, read_metrics, replace_json
from jaxlab.train.hooks import Hook
from jaxlab.train.stopping import TrainingDiverged

if TYPE_CHECKING:
    from jaxlab.checkpoint.checkpoints import Checkpoints
    from jaxlab.train.loop import Run

log = logging.getLogger(__name__)

FILE = "skips.json"
NUM_ROWS, LEAST_ROWS = 16, 4


class StopOnSpike(Hook):
    """Raises `TrainingDiverged` when the training loss jumps.

    A spike is a `train/loss` (the mean since the last row of metrics) above `factor` times the
    median of the last 16 rows, given at least 4 rows and a median above zero. Like `StopOnNaN` it
    checks every row and, before a checkpoint or evaluation, the mean since the last row, so that no
    state after a spike is saved. Put it after `LogMetrics`.

    Args:
      factor: above 1.
      losses: of the rows before the run's first step, oldest first; see `losses_until`.
      checkpoints: of the run; the error names the last good one.
    """

    def __init__(
        self, factor: float, losses: Iterable[float] = (), checkpoints: Checkpoints | None = None
    ):
        self._factor, self._checkpoints = factor, checkpoints
        self._losses = collections.deque(losses, NUM_ROWS)
        self._seen: dict[str, float] = {}

    def after_step(self, run: Run) -> None:
        """Checks a new row."""
        if run.latest is not self._seen and "train/loss" in run.latest:
            self._seen = run.latest
            self._check(run.latest["train/loss"], int(run.latest["step"]))
            self._losses.append(run.latest["train/loss"])

    def flush(self, run: Run) -> None:
        """Checks the mean since the last row."""
        self.after_step(run)
        total, weight = run.fetch(run.state.metrics["loss"])
        if weight > 0:
            self._check(float(total) / float(weight), run.step)

    def finish(self, run: Run) -> None:
        """Checks the last row."""
        self.flush(run)

    def _check(self, loss: float, step: int) -> None:
        if len(self._losses) < LEAST_ROWS:
            return
        usual = statistics.median(self._losses)
        if usual > 0 and loss > self._factor * usual:
            raise TrainingDiverged.at(
                f"train/loss is {loss:.4g}, over {self._factor:g} times the {usual:.4g} before it",
                step,
                self._checkpoints,
            )


def losses_until(workdir: pathlib.Path, step: int) -> list[float]:
    """The training losses of the last rows of metrics up to `step`, read by the main process."""

    def read() -> list[float]:
        rows = [row for row in read_metrics(workdir / METRICS_FILE) if row["step"] <= step]
        return [r["train/loss"] for r in rows if r.get("train/loss") is not None][-NUM_ROWS:]

    return agreed(read)


@dataclasses.dataclass
class Skips:
    """The batches that a run skips, and the file that records them.

    Attributes:
      path: the file, created at the first skip.
      after: step to the number of batches skipped after it.
      reasons: what diverged, one line per skip.
    """

    path: pathlib.Path
    after: dict[int, int] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Skips:
        """Reads the file in `folder`, on the main process for all.

        Raises:
          UsageError: the file is damaged.
        """
        path = pathlib.Path(folder) / FILE

        def read() -> tuple[list[tuple[int, int]], list[str]]:
            if not path.exists():
                return [], []
            try:
                stored = json.loads(path.read_text())
                after = [(int(step), int(count)) for step, count in stored["after"].items()]
                return after, [str(line) for line in stored["reasons"]]
            except (AttributeError, KeyError, OSError, TypeError, ValueError):
                raise UsageError(
                    f"{os.fspath(path)!r} does not say which batches to skip; restore it, or "
                    "remove it to train on all data again"
                ) from None

        after, reasons = agreed(read)
        return cls(path, dict(after), reasons)

    def from_step(self, step: int) -> int:
        """How many batches a run skips first when it continues from the checkpoint of `step`.

        If that checkpoint is older than a recorded skip, as when a newer one is unreadable,
        everything up to the end of that skip is skipped, and the file is updated.
        """
        late = [s for s in self.after if s > step]
        if late:
            self.extend(step, max(late))
        return self.after.get(step, 0)

    def extend(self, step: int, end: int) -> None:
        """Skips the batches that the run read between the checkpoint of `step` and step `end`."""
        again = [s for s in self.after if s >= step]
        self.after[step] = end - step + sum(self.after.pop(s) for s in again)
        self._write()

    def note(self, reason: str) -> None:
        """Adds the reason for a skip; `extend` writes it."""
        self.reasons.append(reason)

    def _write(self) -> None:
        stored = {"after": self.after, "reasons": self.reasons}
        # No process continues before the file is written.
        on_main_process(lambda: replace_json(self.path, stored))


@dataclasses.dataclass
class Recovery:
    """What a run does when it diverges; see `TrainConfig.on_divergence`.

    Attributes:
      checkpoints: of the run.
      skips: the batches skipped so far.
      max_skips: skips in the whole run before a divergence ends it.
      enabled: whether to skip at all; False ends the run at the first divergence.
    """

    checkpoints: Checkpoints
    skips: Skips
    max_skips: int
    enabled: bool

    def pass_over(self, stream: Iterator[Any], step: int) -> None:
        """Advances a stream that is at `step` past the batches to skip.

        Raises:
          UsageError: the data ended.
        """
        count = self.skips.from_step(step)
        for done in range(count):
            try:
                next(stream)
            except StopIteration:
                raise UsageError(
                    f"the data ended after {done} of the {count} batches to skip after step {step};"
                    " give an endless stream"
                ) from None

    def roll_back(self, what: str, step: int) -> int:
        """Decides where a run that diverged continues, and records it.

        A checkpoint from which the run diverged twice is set aside in favour of the one before it,
        if there is one.

        Args:
          what: what diverged.
          step: at which that was seen.

        Returns:
          The step of the checkpoint to continue from, 0 for the start.

        Raises:
          TrainingDiverged: the run must stop.
        """
        self.checkpoints.wait()
        if not self.enabled or len(self.skips.reasons) >= self.max_skips:
            skips = len(self.skips.reasons) if self.enabled else None
            raise TrainingDiverged.at(what, step, self.checkpoints, skips)
        good = self.checkpoints.latest_step()
        if good in self.skips.after and self.checkpoints.set_aside_newest("diverged"):
            good = self.checkpoints.latest_step()
        begin = good or 0
        self.skips.note(f"{what} at step {step}")
        self.skips.extend(begin, step)
        where = "the beginning" if good is None else f"the checkpoint of step {good}"
        log.warning(
            "training diverged: %s at step %d; back to %s; batches skipped after it: %d "
            "(skip %d of at most %d)",
            what,
            step,
            where,
            self.skips.after[begin],
            len(self.skips.reasons),
            self.max_skips,
        )
        gc.collect()  # frees the state that diverged before the next one is restored
        return begin


def agreed(read: Callable[[], Any]) -> Any:
    """The result of `read()` on the main process, plain JSON, on every process."""
    return gather(on_main_process(read))[0]
