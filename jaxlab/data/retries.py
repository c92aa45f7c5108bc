"""Reading that outlasts a passing fault of a disk or a network, and then names what it read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from jaxlab.core import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITS = (0.1, 1.0, 5.0)
"""Seconds before the second, third and fourth attempt to read a document."""

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def read_with_retries(read: Callable[[], T], what: str) -> T:
    """Returns `read()`, tried again after each of `WAITS` while it raises an OSError.

    Where no waiting helps, as with a file that is gone, it is not tried again.

    Raises:
        UsageError: it still failed; names `what`, why, and how often it was tried.
    """
    for attempt, seconds in enumerate((*WAITS, None), 1):
        try:
            return read()
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
            if seconds is None or isinstance(error, _LASTING):
                times = f" after {attempt} attempts" if attempt > 1 else ""
                raise UsageError(
                    f"{what} cannot be read{times} ({reason}); it was there when the source was "
                    f"opened: put it back or leave it out"
                ) from error
            log.warning("%s cannot be read (%s); trying again in %g s", what, reason, seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")
