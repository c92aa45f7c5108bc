"""Ends a run that is stuck, after printing the stack of every thread."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxlab.train.hooks import Evaluate, Hook, SaveCheckpoint

if TYPE_CHECKING:
    from jaxlab.checkpoint.checkpoints import Checkpoints
    from jaxlab.train.loop import Run

STUCK = 4
"""Exit code of a process ended by its watchdog."""

PATIENCE = 10
"""How many times longer than a step compilations, evaluations and saves may take."""

REPORT_SECONDS = 5.0
"""How long each part of the report may take: its output may be what is stuck."""

STDERR = 2

_Marks = queue.SimpleQueue[tuple[int, jax.Array] | None]
"""Steps, each with the same number on the devices; None at the end."""


class Watchdog(Hook):
    """Ends the process when no step completes for `seconds`.

    A step completes when the devices have computed it, not when it was dispatched: each leaves a
    copy of its number, for which a separate thread waits. So the hook notices both a collective
    held up by a lost process and data that never arrive.

    `PATIENCE` times as long is allowed for the first step, which is compiled; for a step followed
    by an evaluation, a save or any hook not called every step; and for everything after the last
    step. Time during which the whole process was stopped, as by Ctrl-Z, does not count.

    A thread cannot raise an error in another that is blocked. So the watchdog prints the stacks of
    all threads and one line to standard error, and ends the process with exit code 4, without
    cleanup. Checkpoints are complete or absent all the same, and the next run continues from the
    newest. With several processes each watches itself. It cannot act while an extension holds
    Python's interpreter lock.

    Put it first.

    Args:
      seconds: that a step may take.
      checkpoints: of the run; the line names the newest.
      end: called last, with the exit code; by default it ends the process.
    """

    def __init__(
        self,
        seconds: float,
        checkpoints: Checkpoints | None = None,
        end: Callable[[int], object] = os._exit,
    ):
        self._seconds, self._checkpoints, self._end = seconds, checkpoints, end
        self._lock = threading.Lock()

    def start(self, run: Run) -> None:
        """Starts watching; the first step may take long."""
        self._closed, self._marks = threading.Event(), _Marks()
        self._done, self._steps = run.step, run.steps
        self._expect(patient=True)
        for work, on in ((self._follow, self._marks), (self._watch, self._closed)):
            name = f"watchdog{work.__name__}"
            threading.Thread(target=work, args=(on,), name=name, daemon=True).start()

    def after_step(self, run: Run) -> None:
        """Leaves a mark after the dispatched step."""
        # The next step donates the state: the mark is a copy.
        self._marks.put((run.step, _copy(run.state.step)))
        last = run.complete or run.stop
        patient = last or any(_takes_long(hook, run) for hook in run.hooks)
        if patient or self._patient:
            self._expect(patient)

    def finish(self, run: Run) -> None:
        """Allows the rest to take long: the last rows, an evaluation, a save."""
        self._expect(patient=True)

    def close(self, run: Run) -> None:
        """Stops watching."""
        self._closed.set()
        self._marks.put(None)

    def _expect(self, patient: bool) -> None:
        with self._lock:
            self._patient, self._waited = patient, 0.0

    def _follow(self, marks: _Marks) -> None:
        """Waits for each step in turn."""
        while (mark := marks.get()) is not None:
            step, number = mark
            try:
                number.block_until_ready()
            except Exception:  # the loop raises it too
                return
            with self._lock:
                self._done, self._waited = step, 0.0

    def _watch(self, closed: threading.Event) -> None:
        tick = min(self._seconds / 10, 1.0)
        before = time.monotonic()
        while not closed.wait(tick):
            now = time.monotonic()
            with self._lock:
                self._waited += min(now - before, 5 * tick)
                limit = self._seconds * (PATIENCE if self._patient else 1)
                stuck = self._waited > limit
            before = now
            if stuck and not closed.is_set():
                return self._give_up(limit)

    def _give_up(self, limit: float) -> None:
        def say() -> None:
            line = (
                f"stuck: no step completed for {limit:g} s after step {self._done} of "
                f"{self._steps}; {kept}; the stacks of all threads are above. The same command "
                "continues; if steps really take this long, raise train.stuck_seconds\n"
            )
            os.write(STDERR, line.encode())

        try:
            # Bypasses sys.stderr, whose lock may be held by the stuck thread.
            _try(lambda: faulthandler.dump_traceback(STDERR, all_threads=True))
            kept = _try(self._checkpoint) or "its checkpoints cannot be listed"
            _try(say)
            _try(sys.stdout.flush)
        finally:
            self._end(STUCK)

    def _checkpoint(self) -> str:
        # Lists the folder itself, since the manager may hold a lock.
        names = [] if self._checkpoints is None else os.listdir(self._checkpoints.folder)
        steps = [int(name) for name in names if name.isdigit()]
        return f"the checkpoint of step {max(steps)} is kept" if steps else "there is no checkpoint"


@jax.jit
def _copy(number: jax.Array) -> jax.Array:
    return jnp.copy(number)


def _try(work: Callable[[], str | None]) -> str | None:
    """The result of `work()`, or None if it fails or takes longer than `REPORT_SECONDS`."""
    results: list[str | None] = []

    def attempt() -> None:
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=attempt, name="watchdog_report", daemon=True)
    thread.start()
    thread.join(REPORT_SECONDS)
    return results[0] if results else None


def _takes_long(hook: Hook, run: Run) -> bool:
    if isinstance(hook, SaveCheckpoint):
        return hook.is_due(run)
    return (hook.every > 1 or isinstance(hook, Evaluate)) and run.step % hook.every == 0
