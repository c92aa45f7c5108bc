"""Documents framed for next-token prediction: tokenised, with boundaries, padded."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError
from jaxlab.data.batches import NumpyBatch, require_positive
from jaxlab.data.retries import read_with_retries
from jaxlab.data.text.sources import Source
from jaxlab.data.text.tokenizers import Tokenizer

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True, eq=False)
class Framed:
    """A document with its boundaries, padded to a multiple of the alignment.

    The input at position p is `ids[p]`, the target `ids[p + 1]`.

    Attributes:
        ids: [length + 1]; the boundary, the tokens, then boundaries to the end.
        num_tokens: number of document tokens in `ids`.
        num_targets: number of targets that count: every token, and the end of the document unless
            it was truncated.
        num_bytes: bytes of text in those tokens.
        num_words: words in that text, see `count_words`; None if they were not counted.
    """

    ids: npt.NDArray[np.integer]
    num_tokens: int
    num_targets: int
    num_bytes: int
    num_words: int | None = None

    @property
    def length(self) -> int:
        """Number of positions, padding included; a multiple of the alignment."""
        return len(self.ids) - 1

    def copy_into(self, row: NumpyBatch, at: int, offset: int) -> int:
        """Copies the positions from `offset` on into `row[at:]`; returns how many fit.

        `row` has `inputs`, `targets` and a `mask` that is still False, each [t].
        """
        count = min(len(row["mask"]) - at, self.length - offset)
        row["inputs"][at : at + count] = self.ids[offset : offset + count]
        row["targets"][at : at + count] = self.ids[offset + 1 : offset + 1 + count]
        row["mask"][at : at + max(0, min(count, self.num_targets - offset))] = True
        return count


class FramedDocuments:
    """The documents of a source, tokenised and framed on access.

    A least-recently-used cache holds up to `cache_bytes` of ids. A document that is still
    referenced elsewhere is never tokenised again.

    Args:
        source: the documents.
        tokenizer: turns documents into ids.
        align: documents are padded to a multiple of this.
        cache_bytes: limit of the cache.
        max_tokens: documents are truncated after this many tokens; None: never.
        with_words: count the words of every document, which is slower than counting bytes.

    Raises:
        UsageError: `source` has no document; on access, a document cannot be read (named).
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        align: int,
        cache_bytes: int,
        max_tokens: int | None = None,
        with_words: bool = False,
    ):
        if not len(source):
            raise UsageError("the source has no document; expected at least one")
        self._source, self._tokenizer, self._align = source, tokenizer, align
        self._cache_bytes, self._max_tokens = cache_bytes, max_tokens
        self._with_words = with_words
        self._dtype: type[np.integer] = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        self._cache: OrderedDict[int, Framed] = OrderedDict()
        self._cached_bytes = 0
        self._live: weakref.WeakValueDictionary[int, Framed] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Framed:
        document = self._live.get(index)
        if document is None:
            document = self._live[index] = self._frame(self._read(index))
        self._add_to_cache(index, document)
        return document

    def _read(self, index: int) -> bytes:
        name = f"document {self._source.names[index]!r}"
        return read_with_retries(lambda: self._source[index], name)

    def _frame(self, data: bytes) -> Framed:
        tokens = self._tokenizer.encode(data)
        whole = self._max_tokens is None or len(tokens) <= self._max_tokens
        tokens = tokens[: self._max_tokens]
        num_targets = len(tokens) + whole
        length = -(-num_targets // self._align) * self._align
        ids = np.full(length + 1, self._tokenizer.boundary_id, self._dtype)
        ids[1 : 1 + len(tokens)] = tokens
        num_bytes = len(data) if whole else self._tokenizer.num_bytes(tokens)
        num_words = None
        if self._with_words:
            num_words = count_words(data if whole else self._tokenizer.decode(tokens))
        return Framed(ids, len(tokens), num_targets, num_bytes, num_words)

    def _add_to_cache(self, index: int, document: Framed) -> None:
        if index in self._cache:
            self._cache.move_to_end(index)
            return
        if document.ids.nbytes > self._cache_bytes:
            return
        self._cache[index] = document
        self._cached_bytes += document.ids.nbytes
        while self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].ids.nbytes


def count_words(text: bytes | str) -> int:
    """Returns the number of words separated by whitespace, as in `str.split`.

    Word-level perplexity on PG-19 counts words this way (arXiv 1911.05507). Punctuation belongs to
    the word that it touches.

    >>> count_words("Call me Ishmael.\\n\\nSome years ago--never mind")
    7

    Args:
        text: bytes are decoded as UTF-8; invalid bytes count as letters.
    """
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return sum(1 for _ in _WORD.finditer(text))


def require_aligned(segment_length: int, align: int) -> None:
    """Checks that `align` divides `segment_length`.

    Raises:
        UsageError: it does not, or a size is below 1.
    """
    require_positive(segment_length=segment_length, align=align)
    if segment_length % align:
        raise UsageError(
            f"segment_length={segment_length} is not a multiple of align={align}; nearest: "
            f"{_nearest_multiples(segment_length, align)}"
        )


def _nearest_multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return ", ".join(str(n) for n in (below, below + divisor) if n)
