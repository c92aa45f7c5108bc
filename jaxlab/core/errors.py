"""The error for what a user got wrong: one line, with values and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Input that cannot be used as given.

    The message is one line that says what was received, what is accepted and what to do next.
    The experiment command line prints it without a traceback and exits with 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or `""`.

    >>> nearest("num_layer", ["num_layers", "width"])
    "; did you mean 'num_layers'?"
    >>> nearest("zzz", ["num_layers", "width"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
