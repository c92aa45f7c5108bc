"""A run that is stuck says where every thread stands, and ends."""

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
"""Exit code of a process that its watchdog ended."""

PATIENCE = 10
"""How many times longer than a step compilations, evaluations and saves may take."""

REPORT_SECONDS = 5.0
"""How long each part of the last words may take: what they go to may be what is stuck."""

STDERR = 2

_Marks = queue.SimpleQueue  # of (step, its number on the devices), or None at the end


class Watchdog(Hook):
    """Ends the process when no step is done for so many seconds.

    A step is done when the devices have computed it, not when it was dispatched: each leaves a
    copy of its number, which a thread of its own waits for. So the hook sees a collective that a
    lost host holds up and data that do not come alike.

    `PATIENCE` times longer may take: the first step, with its compilation; a step after which an
    evaluation, a save or any hook comes that is not called every step; and all that follows the
    last step. Time in which the whole process stood still, as after Ctrl-Z, does not count.

    A thread cannot raise an error in another that is blocked. So the watchdog prints the stacks of
    all threads and one line on the standard error stream, and ends the process with the exit code
    4 and without any cleaning up; checkpoints are whole or absent all the same, and the next run
    continues from the newest. On several processes each watches itself. While some extension holds
    Python's interpreter lock for ever no thread can print: that it does not see.

    Put it first.

    Args:
      seconds: that a step may take.
      checkpoints: names the newest in the line.
      end: called with the exit code at the end of it all; by default the process ends there.
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
        """Starts the watch; the first step may take long."""
        self._closed, self._marks = threading.Event(), _Marks()
        self._done, self._steps = run.step, run.steps
        self._expect(patient=True)
        for work, on in ((self._follow, self._marks), (self._watch, self._closed)):
            name = f"watchdog{work.__name__}"
            threading.Thread(target=work, args=(on,), name=name, daemon=True).start()

    def after_step(self, run: Run) -> None:
        """Leaves a mark behind the step that was dispatched."""
        # The next step donates the state: the mark is a copy.
        self._marks.put((run.step, _copy(run.state.step)))
        last = run.complete or run.stop
        patient = last or any(_takes_long(hook, run) for hook in run.hooks)
        if patient or self._patient:
            self._expect(patient)

    def finish(self, run: Run) -> None:
        """The rest may take long: the last rows, an evaluation, a save."""
        self._expect(patient=True)

    def close(self, run: Run) -> None:
        """Ends the watch."""
        self._closed.set()
        self._marks.put(None)

    def _expect(self, patient: bool) -> None:
        with self._lock:
            self._patient, self._waited = patient, 0.0

    def _follow(self, marks: _Marks) -> None:
        """Waits for one step after the other to be computed."""
        while (mark := marks.get()) is not None:
            step, number = mark
            try:
                number.block_until_ready()
            except Exception:  # the loop meets it as well, and raises it
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
                f"stuck: no step was done for {limit:g} s after step {self._done} of "
                f"{self._steps}; {kept}; above stands where every thread is. The same command "
                "continues; where steps do take so long, raise train.stuck_seconds\n"
            )
            os.write(STDERR, line.encode())

        try:
            # Past the stream and its lock: who holds that may be the one that is stuck.
            _try(lambda: faulthandler.dump_traceback(STDERR, all_threads=True))
            kept = _try(self._checkpoint) or "its checkpoints cannot be listed"
            _try(say)
            _try(sys.stdout.flush)
        finally:
            self._end(STUCK)

    def _checkpoint(self) -> str:
        # From the names on disk: a lock of the manager may be held.
        names = [] if self._checkpoints is None else os.listdir(self._checkpoints.folder)
        steps = [int(name) for name in names if name.isdigit()]
        return f"the checkpoint of step {max(steps)} is kept" if steps else "no checkpoint is there"


@jax.jit
def _copy(number: jax.Array) -> jax.Array:
    return jnp.copy(number)


def _try(work: Callable[[], str | None]) -> str | None:
    """What `work()` returns, or None where it fails or takes longer than `REPORT_SECONDS`."""
    found: list[str | None] = []

    def attempt() -> None:
        with contextlib.suppress(Exception):
            found.append(work())

    thread = threading.Thread(target=attempt, name="watchdog_report", daemon=True)
    thread.start()
    thread.join(REPORT_SECONDS)
    return found[0] if found else None


def _takes_long(hook: Hook, run: Run) -> bool:
    if isinstance(hook, SaveCheckpoint):
        return hook.is_due(run)
    return (hook.every > 1 or isinstance(hook, Evaluate)) and run.step % hook.every == 0
