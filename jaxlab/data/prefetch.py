"""Prefetching on one thread, which keeps the stream position of the batches already returned."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from jaxlab.core import UsageError
from jaxlab.data.batches import require_positive
from jaxlab.data.stream import State, Stream

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_SECONDS = 1.0
"""How often a waiting `next` checks that the thread is still alive."""


class Prefetch(Generic[T]):
    """Iterator over `transfer(next(stream))`, computed ahead on a daemon thread.

    The thread starts at once, so restore the stream first. Nothing else may use the stream until
    `close` has returned. Use it as a context manager, or call `close`.

    An error of the stream or of `transfer` is raised by `next`, with a note that names the batch.
    If the thread dies without an error, it is restarted after the last batch it made, up to
    `restarts` times.

    Args:
        stream: the batches.
        size: the largest number of batches to hold ready.
        transfer: called on the thread for each batch, for example to copy it to the devices.
        restarts: how often a dead thread is restarted.

    Attributes:
        wait_seconds: total time that `next` spent waiting for a batch.

    Raises:
        UsageError: `size` is below 1.
    """

    def __init__(
        self,
        stream: Stream,
        size: int = 2,
        transfer: Callable[[Any], T] | None = None,
        *,
        restarts: int = 2,
    ):
        require_positive(size=size)
        self.wait_seconds = 0.0
        self._stream, self._size = stream, size
        self._transfer = transfer if transfer is not None else lambda batch: batch
        self._state = self._made = stream.state()
        self._num_made, self._restarts, self._restarts_left = 0, restarts, restarts
        self._ready: deque[tuple[T, State]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = self._start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Returns the next batch, or raises the error of the stream or of the transfer.

        Raises:
            RuntimeError: after `close`.
            UsageError: the thread died and no restart is left.
        """
        began = time.perf_counter()
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._ready or self._error or self._closed, CHECK_SECONDS
            ):
                if not self._thread.is_alive():
                    self._restart()
            self.wait_seconds += time.perf_counter() - began
            if self._closed:
                raise RuntimeError("this Prefetch is closed; make another one over the stream")
            if not self._ready:
                assert self._error is not None
                raise self._error
            batch, self._state = self._ready.popleft()
            self._changed.notify_all()
        return batch

    def state(self) -> State:
        """Returns the stream's state right after the last batch that `next` returned."""
        return self._state

    def close(self, seconds: float | None = None) -> None:
        """Drops the ready batches, stops the thread after its current batch and waits for it.

        Args:
            seconds: the longest time to wait; None: no limit.
        """
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(seconds)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C must not wait for a read that hangs.
        self.close(1.0 if kind is KeyboardInterrupt else None)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        thread.start()
        return thread

    def _restart(self) -> None:
        """Starts a new thread after the last batch of the dead one."""
        where = f"while making batch {self._num_made + 1}"
        if not self._restarts_left:
            raise UsageError(
                f"the data thread 'prefetch' died {where} without an error, after "
                f"{self._restarts} restarts; look for something that kills threads, such as a "
                "library that forks the process"
            )
        self._restarts_left -= 1
        log.warning("the data thread 'prefetch' died %s without an error; restarting it", where)
        self._stream.restore(self._made)
        self._thread = self._start()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                batch = next(self._stream)
                self._put(self._transfer(batch), self._stream.state())
        except BaseException as error:  # the consumer must see every error
            if not isinstance(error, StopIteration):
                error.add_note(
                    f"raised on the data thread 'prefetch' while making batch {self._num_made + 1}"
                )
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._size)
            return not self._closed

    def _put(self, batch: T, state: State) -> None:
        with self._changed:
            if not self._closed:
                self._ready.append((batch, state))
                self._made, self._num_made = state, self._num_made + 1
                self._changed.notify_all()
