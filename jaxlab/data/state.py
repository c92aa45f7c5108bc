"""Saved positions of a stream: plain JSON that says which stream it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from jaxlab.core import UsageError

State = dict[str, Any]
"""A position in a stream as plain JSON: `stream` (what identifies it) and where it stands."""


def digest(text: str) -> str:
    """Returns 16 hex digits of `text`: the same in every process and on every machine."""
    data = text.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def require_same_stream(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Checks that `state` was saved by a stream with the identity `own`.

    Raises:
        UsageError: it is not a stream's state, or was saved by another stream; names each field
            that differs, with both values.
    """
    saved = state.get("stream")
    if not isinstance(saved, Mapping):
        raise UsageError(
            f"the data state has the keys {sorted(state)}; expected what stream.state() returned"
        )
    fields = [f for f in {**own, **saved} if own.get(f) != saved.get(f)]
    if fields:
        differences = ", ".join(f"{f}={saved.get(f)!r} (now {own.get(f)!r})" for f in fields)
        raise UsageError(
            f"the data state was saved by a stream with {differences}; use the saved values, or "
            f"start afresh"
        )
