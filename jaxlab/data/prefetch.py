"""Reading ahead on one thread, with the position of what was handed out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from jaxlab.data.framing import require_positive
from jaxlab.data.state import State

T = TypeVar("T")


class Stream(Protocol):
    """An iterator of batches that knows its position."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state(self) -> State:
        """Returns the position right after the last batch, as plain JSON."""
        ...

    def restore(self, state: State) -> None:
        """Continues right after the batch at which `state` was taken."""
        ...


class Prefetch(Generic[T]):
    """Iterator over `transfer(next(stream))`, made ahead by one daemon thread.

    The thread starts at once; restore the stream before. Nothing else may use the stream until
    `close` has returned. Use as a context manager, or call `close`.

    Args:
        stream: the batches.
        size: how many batches are made ahead at most.
        transfer: run on the thread for each batch, for example a copy to the devices.

    Attributes:
        wait_seconds: total time in which `next` waited for a batch.

    Raises:
        UsageError: `size` is below 1.
    """

    def __init__(
        self, stream: Stream, size: int = 2, transfer: Callable[[Any], T] | None = None
    ):
        require_positive(size=size)
        self.wait_seconds = 0.0
        self._stream, self._size = stream, size
        self._transfer = transfer if transfer is not None else lambda batch: batch
        self._state = stream.state()
        self._ready: deque[tuple[T, State]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Returns the next batch, or raises what the stream or the transfer raised in its place.

        Raises:
            RuntimeError: after `close`.
        """
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
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
        """Returns the stream's state right after the last batch that was handed out."""
        return self._state

    def close(self) -> None:
        """Stops the thread after the batch it is making, and waits for it; drops what is ready."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                batch = next(self._stream)
                self._put(self._transfer(batch), self._stream.state())
        except BaseException as error:  # whatever it is, the consumer must see it
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
                self._changed.notify_all()
