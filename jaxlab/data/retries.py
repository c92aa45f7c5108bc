"""Reads that are retried when a disk or network fails for a moment."""

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

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def read_with_retries(read: Callable[[], T], what: str) -> T:
    """Returns `read()`, retrying after each of `WAITS` if it raises an OSError.

    Permanent errors, such as a missing file, are not retried.

    Raises:
        UsageError: the last attempt failed; names `what`, the reason and the number of attempts.
    """
    for attempt, seconds in enumerate((*WAITS, None), 1):
        try:
            return read()
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
            if seconds is None or isinstance(error, _PERMANENT):
                times = f" after {attempt} attempts" if attempt > 1 else ""
                raise UsageError(
                    f"{what} cannot be read{times} ({reason}); it was readable when the source was "
                    f"opened: restore it or leave it out"
                ) from error
            log.warning("%s cannot be read (%s); retrying in %g s", what, reason, seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")
