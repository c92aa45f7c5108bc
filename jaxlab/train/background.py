"""Work beside the training steps, on a thread that lets them go first."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

NICE = 10
"""The nice value of the thread: about a tenth of a core where steps or other programs want it all.

At 19, or with `SCHED_IDLE`, a save delays each step a little less and more of them, but where other
programs keep all cores busy it gets only about 3% or 1% of one, and a run that waits for its last
save waits minutes.
"""


class Background:
    """One thread of low priority, which does one thing after the other.

    On Linux a priority belongs to a thread, and the threads that it starts have it too: what a
    library does on threads of its own, called from here, gives way to the steps as well. Elsewhere
    the thread is an ordinary one.
    """

    def __init__(self, name: str):
        self._threads = ThreadPoolExecutor(1, name, initializer=_step_back)
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._last is not None and not self._last.done()

    def start(self, work: Callable[[], None]) -> None:
        """Does `work` once what came before is done; see `wait` for its errors."""
        self.wait()
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Returns when all is done; raises what the last work raised, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        self._threads.shutdown()


def _step_back() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
