"""Errors of one line, with values and the way out: wrong input, files that cannot be written."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class UsageError(ValueError):
    """Input that cannot be used as given.

    The message is one line that says what was received, what is accepted and what to do next.
    The experiment command line prints it without a traceback and exits with 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class WriteError(OSError):
    """A file that could not be written: the disk is full, a quota is used up, a device failed.

    The message is one line that says what was being written, where, why that failed, what is still
    good and what to do next. The experiment command line prints it without a traceback and exits
    with 5.

    Args:
      what: what was being written.
      path: where.
      error: what the system said; its `errno` becomes that of this error.
      good: what is still good.

    >>> print(WriteError("w.json", "r/w.json", OSError(errno.EIO, ""), "the old one stays"))
    w.json cannot be written to 'r/w.json' (Input/output error); the old one stays; mend that and \
run the same command again
    """

    def __init__(self, what: str, path: str | os.PathLike[str], error: OSError, good: str):
        reason = " ".join((os.strerror(error.errno) if error.errno else str(error)).split())
        way_out = "free some space there" if error.errno in FULL else "mend that"
        # Without the errno in `args`: OSError would print it as `[Errno 28]`.
        super().__init__(
            f"{what} cannot be written to {os.fspath(path)!r} ({reason}); {good}; "
            f"{way_out} and run the same command again"
        )
        self.errno = error.errno


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says where no more can be written: a full disk, a quota, a limit on a file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or `""`.

    >>> nearest("num_layer", ["num_layers", "width"])
    "; did you mean 'num_layers'?"
    >>> nearest("zzz", ["num_layers", "width"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
