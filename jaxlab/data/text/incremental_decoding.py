"""Text from token ids that come bit by bit, up to a string that ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError
from jaxlab.data.text.tokenizers import Tokenizer


class IncrementalDecoder:
    """The text of one row of ids, as it becomes certain.

    Held back are a character whose bytes are not all there yet, and what may turn out to be the
    beginning of a stop string. The text ends before the stop string that is complete first, the
    longest of those that are complete at once: however the ids are cut into pieces, it is the same.

    Args:
      tokenizer: whose ids they are.
      stop: the text ends before any of these.

    Attributes:
      stopped: whether a stop string came; nothing follows.

    Raises:
      UsageError: an empty stop string.

    >>> from jaxlab.data import Bytes
    >>> row = IncrementalDecoder(Bytes(), stop="\\n\\n")
    >>> [row.add(list(piece)) for piece in (b"one\\n", b"two\\n", b"\\nthree")], row.stopped
    (['one', '\\ntwo', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = ()):
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise UsageError(
                f"stop={list(self._stop)} holds an empty string, which every text holds; leave it "
                "out to go on to the end"
            )
        self._tokenizer = tokenizer
        self._ids, self._shown = np.zeros(0, np.int64), 0
        self.stopped = False

    def add(self, ids: npt.ArrayLike) -> str:
        """The text that more ids [n] make certain."""
        self._ids = np.concatenate([self._ids, np.asarray(ids, np.int64).reshape(-1)])
        return "" if self.stopped else self._show(self._text().rstrip("\ufffd"), more=True)

    def finish(self) -> str:
        """What was held back, when no ids follow."""
        return "" if self.stopped else self._show(self._text(), more=False)

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids)

    def _show(self, text: str, more: bool) -> str:
        begin = self._shown
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s, begin)) >= 0]
        self.stopped = bool(found)
        if found:
            self._shown = min(found)[1]
        else:
            self._shown = max(begin, len(text) - (self._begun(text[begin:]) if more else 0))
        return text[begin : self._shown]

    def _begun(self, text: str) -> int:
        """How many characters at the end of the text a stop string may begin with."""
        sizes = (size for s in self._stop for size in range(1, len(s)) if text.endswith(s[:size]))
        return max(sizes, default=0)


def decode_incrementally(
    tokenizer: Tokenizer, chunks: Iterable[npt.ArrayLike], stop: str | Sequence[str] = ()
) -> Iterator[str]:
    """Yields the text of chunks of ids as it becomes certain; joined, it is that of all ids.

    With `stop` it ends before the first of these strings, and takes no chunk more; see
    `IncrementalDecoder`.

    Raises:
      UsageError: an empty stop string.

    >>> from jaxlab.data import Bytes
    >>> list(decode_incrementally(Bytes(), [[104, 105, 0xC3], [0xA9]]))
    ['hi', 'é']
    """
    return _pieces(IncrementalDecoder(tokenizer, stop), chunks)


def _pieces(row: IncrementalDecoder, chunks: Iterable[npt.ArrayLike]) -> Iterator[str]:
    for chunk in chunks:
        if piece := row.add(chunk):
            yield piece
        if row.stopped:
            return
    if rest := row.finish():
        yield rest
