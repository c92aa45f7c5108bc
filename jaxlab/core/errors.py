"""One-line errors with the values received and a way out: wrong input, failed writes."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class UsageError(ValueError):
    """Input that cannot be used.

    The message is one line that says what was received, what is accepted and what to do next. The
    command line of an experiment prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class WriteError(OSError):
    """A file could not be written: the disk is full, a quota is exceeded, a device failed.

    The message is one line that says what could not be written, where, why, what is intact and what
    to do next. The command line of an experiment prints it without a traceback and exits with
    code 5.

    Args:
      what: what was being written.
      path: the file or folder.
      error: the error of the system, whose `errno` this error takes.
      good: what is intact.

    >>> print(WriteError("w.json", "r/w.json", OSError(errno.EIO, ""), "the old file is intact"))
    w.json cannot be written to 'r/w.json' (Input/output error); the old file is intact; fix that \
and run the same command again
    """

    def __init__(self, what: str, path: str | os.PathLike[str], error: OSError, good: str):
        reason = " ".join((os.strerror(error.errno) if error.errno else str(error)).split())
        way_out = "free some space there" if error.errno in FULL else "fix that"
        # The errno must not be in `args`: OSError would print it as `[Errno 28]`.
        super().__init__(
            f"{what} cannot be written to {os.fspath(path)!r} ({reason}); {good}; "
            f"{way_out} and run the same command again"
        )
        self.errno = error.errno


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The error numbers of a full disk, an exceeded quota and a file size limit."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or `""` if none is.

    >>> nearest("num_layer", ["num_layers", "width"])
    "; did you mean 'num_layers'?"
    >>> nearest("zzz", ["num_layers", "width"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
