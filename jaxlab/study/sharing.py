"""Trainings spread over machines that share a folder: each is taken once, under a lock."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import os
import pathlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jaxlab.core import UsageError, from_main_process, is_main_process

T = TypeVar("T")

LOCK = "lock.json"
HEARTBEAT = 20.0
"""Seconds between two signs of life of the process that holds a lock."""

STALE = 15 * HEARTBEAT
"""Seconds without a sign of life after which a lock is taken from a process that must be dead."""


class Unfinished(Exception):
    """Rows of a study that another share still measures.

    Attributes:
      missing: trainings without all their rows.
      total: trainings of the study's part.
    """

    def __init__(self, missing: int, total: int):
        self.missing, self.total = missing, total
        super().__init__(
            f"{missing} of {total} trainings are left to other shares; the share that finds all of "
            "them measured writes the results"
        )


@dataclasses.dataclass(frozen=True)
class Share:
    """One of `count` processes that work on one study in one folder; `index` counts from 0."""

    index: int
    count: int

    def order(self, items: Sequence[T]) -> list[T]:
        """All items, starting at this share's own, so that shares rarely meet.

        >>> Share(1, 2).order(["a", "b", "c", "d"])
        ['c', 'd', 'a', 'b']
        """
        start = self.index * len(items) // self.count
        return [*items[start:], *items[:start]]


_share: contextvars.ContextVar[Share | None] = contextvars.ContextVar("share", default=None)


@contextlib.contextmanager
def use_share(share: Share | None) -> Iterator[None]:
    """Within this context `measure` takes the trainings that no other share has taken."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def current_share() -> Share | None:
    """The share of `use_share`; None: this process measures all."""
    return _share.get()


def parse_share(text: str | None, environment: Mapping[str, str] = os.environ) -> Share | None:
    """The share of `--share=INDEX/COUNT`, of a SLURM array or of a Kubernetes indexed job.

    Args:
      text: `'3/64'`; `'none'` for no sharing; None asks the environment.
      environment: the process's.

    Raises:
      UsageError: another text, or an index that is not below the count.

    >>> parse_share("3/64")
    Share(index=3, count=64)
    >>> parse_share(None, {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1",
    ...                    "SLURM_ARRAY_TASK_COUNT": "8"})
    Share(index=4, count=8)
    """
    if text == "none":
        return None
    if text is None:
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
            index = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
            count = int(environment.get("SLURM_ARRAY_TASK_COUNT", "0"))
            return Share(index, max(count, index + 1))
        if "JOB_COMPLETION_INDEX" in environment:
            # Kubernetes does not tell the number of completions; the locks do without it.
            index = int(environment["JOB_COMPLETION_INDEX"])
            return Share(index, index + 1)
        return None
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    if matched is None or int(matched[1]) >= int(matched[2]):
        raise UsageError(
            f"--share={text}; it takes INDEX/COUNT with an index from 0 to below the count, such "
            "as 3/64, or none"
        )
    return Share(int(matched[1]), int(matched[2]))


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[bool]:
    """Takes the lock of a folder, and gives it back at the end; yields whether it was free.

    A lock is a file that only one process can create. Its holder touches it every `HEARTBEAT`
    seconds; a lock that was not touched for `STALE` seconds, by the file system's own clock, is
    taken over. In a run of several processes the main one holds it for all.
    """
    path = folder / LOCK
    if not from_main_process(lambda: _create(path)):
        yield False
        return
    stop = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, stop), name="lock", daemon=True)
    if is_main_process():
        thread.start()
    try:
        yield True
    finally:
        if is_main_process():
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)


def _create(path: pathlib.Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _create_file(path) or (_is_stale(path) and _take_over(path))


def _create_file(path: pathlib.Path) -> bool:
    """Creates a file that names its holder; False where it is there already."""
    holder: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
    try:
        with open(path, "x") as file:
            json.dump(holder, file)
    except FileExistsError:
        return False
    return True


def _take_over(path: pathlib.Path) -> bool:
    """Puts a lock in place of a stale one.

    A second file lets one process at a time do it. It looks at the lock again, which another may
    have replaced by a live one since it was seen to be stale.
    """
    guard = path.with_name(f"{path.name}.guard")
    if not _create_file(guard):
        if _is_stale(guard):  # its holder died here; the next attempt takes the lock over
            guard.unlink(missing_ok=True)
        return False
    try:
        if not _is_stale(path):
            return False
        path.unlink(missing_ok=True)
        return _create_file(path)
    finally:
        guard.unlink(missing_ok=True)


def _is_stale(path: pathlib.Path) -> bool:
    probe = path.with_name(f"clock.{socket.gethostname()}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > STALE
    except FileNotFoundError:  # given back meanwhile
        return False
    finally:
        probe.unlink(missing_ok=True)


def _touch(path: pathlib.Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)  # by the clock of the file system, with which `_is_stale` compares
