"""Failures to write a checkpoint: their cause, found in what orbax raises, and the cleanup."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Callable

from jaxlab.core import FULL


def cause_of(error: BaseException) -> OSError | None:
    """The operating system's error behind a failed save, or None for other errors.

    Orbax writes JSON from Python, which raises an OSError, and arrays through TensorStore, which
    raises a ValueError that ends in `[os_error_code='28']`.

    >>> cause_of(ValueError("RESOURCE_EXHAUSTED: No space left [os_error_code='28']")).errno
    28
    >>> cause_of(ValueError("of another kind")) is None
    True
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"\[os_error_code='(\d+)'", str(error))
    return None if code is None else OSError(int(code[1]), "")


def close_failed(close: Callable[[], None], attempts: int = 5) -> None:
    """Closes a manager whose save failed: each call raises the error of one of its parts."""
    for _ in range(attempts):
        try:
            return close()
        except Exception:  # the cause was raised before
            continue


def remove_folders(parent: pathlib.Path, pattern: str, seconds: float = 5.0) -> None:
    """Removes matching folders, into which threads of a failed save may still be writing."""
    end = time.monotonic() + seconds
    quiet_since = time.monotonic()
    while time.monotonic() < min(end, quiet_since + 0.2):
        for folder in parent.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
            quiet_since = time.monotonic()
        time.sleep(0.02)


class QuietErrors(contextlib.AbstractContextManager):
    """Silences orbax's logging of errors that it also raises, one traceback per thread."""

    _FILTERS = {
        "absl": lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname,
        "asyncio": lambda record: not _is_of_a_full_disk(record),
    }

    def __enter__(self) -> QuietErrors:
        for name, keep in self._FILTERS.items():
            logging.getLogger(name).addFilter(keep)
        return self

    def __exit__(self, *_error: object) -> None:
        for name, keep in self._FILTERS.items():
            logging.getLogger(name).removeFilter(keep)


def _is_of_a_full_disk(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, OSError) and error.errno in FULL
