"""Incremental decoding of token ids to text, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError
from jaxlab.data.text.tokenizers import Tokenizer


class IncrementalDecoder:
    """Decodes one row of ids as they arrive, returning text as soon as it is final.

    It holds back a character whose bytes are incomplete, and the possible beginning of a stop
    string. The text ends before the first stop string to be completed, or the longest of several
    completed by the same character. How the ids are split into chunks makes no difference.

    Args:
      tokenizer: the tokenizer of the ids.
      stop: the strings before which the text ends.

    Attributes:
      stopped: whether a stop string was found; nothing follows.

    Raises:
      UsageError: an empty stop string.

    >>> from jaxlab.data import Bytes
    >>> row = IncrementalDecoder(Bytes(), stop="\\n\\n")
    >>> [row.add(list(chunk)) for chunk in (b"one\\n", b"two\\n", b"\\nthree")], row.stopped
    (['one', '\\ntwo', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = ()):
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise UsageError(
                f"stop={list(self._stop)} holds an empty string, which would end every text; "
                "leave it out to decode everything"
            )
        self._tokenizer = tokenizer
        self._ids, self._shown = np.zeros(0, np.int64), 0
        self.stopped = False

    def add(self, ids: npt.ArrayLike) -> str:
        """Adds ids [n] and returns the text that they make final."""
        self._ids = np.concatenate([self._ids, np.asarray(ids, np.int64).reshape(-1)])
        return "" if self.stopped else self._show(self._text().rstrip("\ufffd"), more=True)

    def finish(self) -> str:
        """Returns the text held back; call it when no ids follow."""
        return "" if self.stopped else self._show(self._text(), more=False)

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids)

    def _show(self, text: str, more: bool) -> str:
        begin = self._shown
        stops = [(at + len(s), at) for s in self._stop if (at := text.find(s, begin)) >= 0]
        self.stopped = bool(stops)
        if stops:
            self._shown = min(stops)[1]
        else:
            held_back = self._possible_stop(text[begin:]) if more else 0
            self._shown = max(begin, len(text) - held_back)
        return text[begin : self._shown]

    def _possible_stop(self, text: str) -> int:
        """Returns how many characters at the end of the text may begin a stop string."""
        sizes = (size for s in self._stop for size in range(1, len(s)) if text.endswith(s[:size]))
        return max(sizes, default=0)


def decode_incrementally(
    tokenizer: Tokenizer, chunks: Iterable[npt.ArrayLike], stop: str | Sequence[str] = ()
) -> Iterator[str]:
    """Yields the text of chunks of ids as it becomes final; joined, it is the text of all ids.

    With `stop`, the text ends before the first stop string, and no further chunk is read; see
    `IncrementalDecoder`.

    Raises:
      UsageError: an empty stop string.

    >>> from jaxlab.data import Bytes
    >>> list(decode_incrementally(Bytes(), [[104, 105, 0xC3], [0xA9]]))
    ['hi', 'é']
    """
    return _decode(IncrementalDecoder(tokenizer, stop), chunks)


def _decode(row: IncrementalDecoder, chunks: Iterable[npt.ArrayLike]) -> Iterator[str]:
    for chunk in chunks:
        if text := row.add(chunk):
            yield text
        if row.stopped:
            return
    if rest := row.finish():
        yield rest
