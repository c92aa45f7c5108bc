"""Streams of batches, and their saved positions as plain JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jaxlab.core import UsageError

State = dict[str, Any]
"""A position in a stream as plain JSON: `stream` identifies the stream, the rest is where it is."""


class Stream(Protocol):
    """An iterator of batches that knows its position."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state(self) -> State:
        """Returns the position right after the last batch, as plain JSON."""
        ...

    def restore(self, state: State) -> None:
        """Continues right after the batch at which `state` was saved."""
        ...


def require_same_stream(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Checks that `state` was saved by a stream with the identity `own`.

    Raises:
        UsageError: it is not the state of a stream, or another stream saved it; names each field
            that differs, with both values.
    """
    saved = state.get("stream")
    if not isinstance(saved, Mapping):
        raise UsageError(
            f"the data state has the keys {sorted(state)}; expected the result of stream.state()"
        )
    fields = [f for f in {**own, **saved} if own.get(f) != saved.get(f)]
    if fields:
        differences = ", ".join(f"{f}={saved.get(f)!r} (now {own.get(f)!r})" for f in fields)
        raise UsageError(
            f"the data state was saved by a stream with {differences}; use the saved values, or "
            f"start afresh"
        )
