"""Work beside the training steps, on a thread that lets them go first."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

NICE = 10
"""The nice value of the thread: about a tenth of a core where steps or other programs want it all.

At 19, or with `SCHED_IDLE`, a save delays each step a little less and more of them, but where other
programs keep all cores busy it gets only about 3% or 1% of one, and a run that waits for its last
save waits minutes.
"""

PAUSE = 0.5
"""Seconds between two pieces of work that pauses: each of a save takes about 0.01 s of a core."""

SHARE = 1 / 16
"""A pause is at most this part of the time from one work's start to the next one's: a save has six
or eight of them, and ought to be over when the next one comes."""


class Background:
    """One thread of low priority, which does one thing after the other.

    On Linux a priority belongs to a thread, and the threads that it starts have it too: what a
    library does on threads of its own, called from here, gives way to the steps as well. Elsewhere
    the thread is an ordinary one.
    """

    def __init__(self, name: str):
        self._threads = ThreadPoolExecutor(1, name, initializer=_step_back)
        self._last: Future[None] | None = None
        self._waited_for = threading.Event()
        self._started, self._pause = -math.inf, 0.0

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._last is not None and not self._last.done()

    def start(self, work: Callable[[], None]) -> None:
        """Does `work` once what came before is done; see `wait` for its errors."""
        self.wait()
        self._waited_for.clear()
        started, self._started = self._started, time.monotonic()
        self._pause = min(PAUSE, SHARE * (self._started - started))
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Returns when all is done; raises what the last work raised, once."""
        self._waited_for.set()
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def pause(self) -> None:
        """Called by the work between its pieces: it costs each step one or two, not one step all.

        Returns after `PAUSE`, sooner where works follow each other fast (see `SHARE`), and at once
        when the work is waited for.
        """
        self._waited_for.wait(self._pause)

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        self._waited_for.set()
        self._threads.shutdown()


def _step_back() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
