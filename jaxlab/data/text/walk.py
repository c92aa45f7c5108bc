"""One pass over held-out documents: each is read whole and exactly once, with positions."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from jaxlab.core import UsageError
from jaxlab.data.batches import NumpyBatch, checked_rows, require_positive
from jaxlab.data.text.framing import FramedDocuments, require_aligned
from jaxlab.data.text.sources import Source
from jaxlab.data.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Walk:
    """The batches of one pass over a source; it can be iterated repeatedly.

    Row `b` of a batch continues row `b` of the previous batch. A batch has, for the rows of this
    process and t = `segment_length`, `inputs`, `targets`, `mask` and `start` as in
    `DocumentStream`, and

    * `position`: int32 [b, t]; position of the target in its document, from 0; 0 where mask is
      False.
    * `index`: int32 [b, t]; the document's index in the source; -1 where mask is False.

    Attributes:
        segment_length: positions per row and batch; all batches have the same shape.
        num_batches: number of batches, the same on every process; also `len(walk)`.
        num_targets: number of predictions on all processes together.
        num_bytes: bytes of text that those predict: bits per byte are nats / num_bytes / ln 2.
        num_words: words of that text, see `count_words`; a word cut off by truncation counts as
            one.
        num_documents: number of documents with text.
    """

    segment_length: int
    num_batches: int
    num_targets: int
    num_bytes: int
    num_words: int
    num_documents: int
    _documents: FramedDocuments = dataclasses.field(repr=False)
    _plan: tuple[tuple[int, ...], ...] = dataclasses.field(repr=False)
    _boundary_id: int = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[NumpyBatch]:
        rows = [self._segments(indices) for indices in self._plan]
        for _ in range(self.num_batches):
            segments = [next(row) for row in rows]
            yield {name: np.stack([s[name] for s in segments]) for name in segments[0]}

    def _segments(self, indices: tuple[int, ...]) -> Iterator[NumpyBatch]:
        """Yields the segments of one row, then empty ones forever."""
        segment, filled = self._empty(), 0
        for index in indices:
            document, offset = self._documents[index], 0
            while offset < document.length:
                if filled == self.segment_length:
                    yield segment
                    segment, filled = self._empty(), 0
                count = document.copy_into(segment, filled, offset)
                span = slice(filled, filled + count)
                counted = segment["mask"][span]
                segment["start"][filled] = offset == 0
                segment["position"][span] = np.arange(offset, offset + count) * counted
                segment["index"][span] = np.where(counted, index, -1)
                offset, filled = offset + count, filled + count
        while True:
            yield segment
            segment = self._empty()

    def _empty(self) -> NumpyBatch:
        size = self.segment_length
        return {
            "inputs": np.full(size, self._boundary_id, np.int32),
            "targets": np.full(size, self._boundary_id, np.int32),
            "mask": np.zeros(size, np.bool_),
            "start": np.zeros(size, np.bool_),
            "position": np.zeros(size, np.int32),
            "index": np.full(size, -1, np.int32),
        }


def walk(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    segment_length: int,
    align: int = 1,
    max_document_tokens: int | None = None,
    rows: Sequence[int] | None = None,
    cache_bytes: int = 1 << 27,
) -> Walk:
    """Plans a pass that reads each document of `source` whole and exactly once.

    Documents are assigned to rows longest first, each to the row with the least text so far; rows
    that end early are padded with mask False. Every process tokenises every document once to plan.

    Args:
        source: the held-out documents; those without tokens are left out.
        tokenizer: turns documents into ids.
        batch_size: rows of the global batch.
        segment_length: positions per row and batch.
        align: documents start at multiples of this, which must divide `segment_length`.
        max_document_tokens: truncates documents to this many tokens; the end of a truncated
            document is not predicted.
        rows: the rows of the global batch for this process, see `core.local_rows`; None: all.
        cache_bytes: limit of the cache of tokenised documents.

    Raises:
        UsageError: inconsistent sizes, or no document with text.
    """
    rows = checked_rows(batch_size, rows)
    require_aligned(segment_length, align)
    if max_document_tokens is not None:
        require_positive(max_document_tokens=max_document_tokens)
    documents = FramedDocuments(
        source, tokenizer, align, cache_bytes, max_document_tokens, with_words=True
    )
    lengths, num_targets, num_bytes, num_words = {}, 0, 0, 0
    for index in range(len(documents)):
        document = documents[index]
        if document.num_tokens:
            lengths[index] = document.length
            num_targets += document.num_targets
            num_bytes += document.num_bytes
            num_words += document.num_words or 0
    if not lengths:
        raise UsageError(
            f"all {len(documents)} documents are empty; expected at least one with text"
        )
    plan, longest = _deal(lengths, batch_size)
    return Walk(
        segment_length=segment_length,
        num_batches=-(-longest // segment_length),
        num_targets=num_targets,
        num_bytes=num_bytes,
        num_words=num_words,
        num_documents=len(lengths),
        _documents=documents,
        _plan=tuple(plan[row] for row in rows),
        _boundary_id=tokenizer.boundary_id,
    )


def _deal(lengths: dict[int, int], num_rows: int) -> tuple[list[tuple[int, ...]], int]:
    """Assigns documents to rows, longest first; also returns the length of the longest row."""
    heap = [(0, row) for row in range(num_rows)]
    plan: list[list[int]] = [[] for _ in heap]
    for index in sorted(lengths, key=lambda i: (-lengths[i], i)):
        load, row = heap[0]
        plan[row].append(index)
        heapq.heapreplace(heap, (load + lengths[index], row))
    return [tuple(row) for row in plan], max(load for load, _ in heap)
