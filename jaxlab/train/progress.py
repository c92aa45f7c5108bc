"""One line that shows how far a run is."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from jaxlab.train.hooks import Hook

if TYPE_CHECKING:
    from jaxlab.train.loop import Run


class ProgressBar(Hook):
    """Shows step, loss, tokens a second and the time left.

    A bar on a terminal; elsewhere one plain line for every twentieth of the run. The loss is the
    last one that was logged, so put this hook behind `LogMetrics`.

    Args:
      description: words before the bar.
      stream: where to write, by default the standard error stream of the time of `start`.
    """

    def __init__(self, description: str = "", stream: TextIO | None = None):
        self._description, self._given = description, stream
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Opens the bar at the run's present step."""
        self._stream = self._given or sys.stderr
        self._first, self._began, self._shown = run.step, time.monotonic(), run.latest
        self._part = 20 * run.step // max(run.steps, 1)
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._description or None,
                initial=run.step,
                total=run.steps,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
                mininterval=0.2,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
                " [{elapsed}<{remaining}]",
            )

    def after_step(self, run: Run) -> None:
        """Moves the bar, or writes the line that is due."""
        if self._bar is None:
            part = 20 * run.step // run.steps
            if part > self._part and not run.complete:
                self._part = part
                self._print(run)
            return
        if run.latest is not self._shown:
            self._shown = run.latest
            self._bar.set_postfix_str(", ".join(_figures(run)), refresh=False)
        self._bar.update(1)

    def finish(self, run: Run) -> None:
        """Shows the last figures."""
        if self._bar is None:
            self._print(run)
        else:
            self._bar.set_postfix_str(", ".join(_figures(run)))

    def close(self, run: Run) -> None:
        """Leaves the bar on the screen and ends its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, run: Run) -> None:
        done = run.step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (run.steps - run.step)
        ends = [f"{_clock(left)} left"] if done and not run.complete else []
        parts = [f"{run.step:,}/{run.steps:,}", *_figures(run), *ends]
        words = f"{self._description}: " if self._description else ""
        print(words + "step " + ", ".join(parts), file=self._stream, flush=True)


def _figures(run: Run) -> list[str]:
    figures = []
    if "train/loss" in run.latest:
        figures.append(f"loss {run.latest['train/loss']:.4f}")
    if "time/tokens_per_second" in run.latest:
        figures.append(f"{run.latest['time/tokens_per_second']:,.0f} tokens/s")
    elif "time/step_seconds" in run.latest:
        figures.append(f"{1 / run.latest['time/step_seconds']:,.1f} steps/s")
    return figures


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
