"""Documents framed for next-token prediction, and how rows of a batch are shared by hosts."""

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

    Position p of the document has the input `ids[p]` and the target `ids[p + 1]`.

    Attributes:
        ids: [length + 1]; the boundary, the tokens, and boundaries to the end.
        num_tokens: tokens of the document that are in `ids`.
        num_targets: positions whose target counts: every token, and the end of the document where
            it is not cut off.
        num_bytes: bytes of text that the tokens stand for.
        num_words: words of that text, see `count_words`; None where they are not counted.
    """

    ids: npt.NDArray[np.integer]
    num_tokens: int
    num_targets: int
    num_bytes: int
    num_words: int | None = None

    @property
    def length(self) -> int:
        """Positions with the padding; a multiple of the alignment."""
        return len(self.ids) - 1

    def copy_into(self, row: NumpyBatch, at: int, offset: int) -> int:
        """Copies positions from `offset` on to `row[at:]` and returns how many fitted.

        `row` holds `inputs`, `targets` and a `mask` that is False so far, each [t].
        """
        count = min(len(row["mask"]) - at, self.length - offset)
        row["inputs"][at : at + count] = self.ids[offset : offset + count]
        row["targets"][at : at + count] = self.ids[offset + 1 : offset + 1 + count]
        row["mask"][at : at + max(0, min(count, self.num_targets - offset))] = True
        return count


class FramedDocuments:
    """The documents of a source, tokenised and framed when asked for.

    The last ones used are kept, up to `cache_bytes` of ids. A document that somebody still holds is
    never made twice.

    Args:
        source: the documents.
        tokenizer: turns each into ids.
        align: each document is padded to a multiple of this many positions.
        cache_bytes: bound on the kept ids.
        max_tokens: a document is cut off after this many tokens; None keeps it whole.
        with_words: the words of every document are counted, which takes longer than its bytes do.

    Raises:
        UsageError: `source` has no document; when one is asked for, it cannot be read: the message
            names it.
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
        self._kept: OrderedDict[int, Framed] = OrderedDict()
        self._kept_bytes = 0
        self._live: weakref.WeakValueDictionary[int, Framed] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Framed:
        document = self._live.get(index)
        if document is None:
            document = self._live[index] = self._frame(self._read(index))
        self._keep(index, document)
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

    def _keep(self, index: int, document: Framed) -> None:
        if index in self._kept:
            self._kept.move_to_end(index)
            return
        if document.ids.nbytes > self._cache_bytes:
            return
        self._kept[index] = document
        self._kept_bytes += document.ids.nbytes
        while self._kept_bytes > self._cache_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].ids.nbytes


def count_words(text: bytes | str) -> int:
    """Returns the number of words: what whitespace parts, as in `str.split`.

    That is how the words of PG-19 are counted for a perplexity by word (arXiv 1911.05507).
    Punctuation belongs to the word that it touches.

    >>> count_words("Call me Ishmael.\\n\\nSome years ago--never mind")
    7

    Args:
        text: bytes are taken as UTF-8; those that are not count as letters.
    """
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return sum(1 for _ in _WORD.finditer(text))


def require_aligned(segment_length: int, align: int) -> None:
    """Checks that documents can start at multiples of `align` in segments of that length.

    Raises:
        UsageError: a size below 1, or a segment that `align` does not divide.
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
