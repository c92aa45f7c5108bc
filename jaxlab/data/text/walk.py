"""Held-out evaluation: every document whole, exactly once, with positions."""

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
    """The batches of one walk through a source; it can be walked again and again.

    Row `b` of a batch continues row `b` of the one before. A batch holds, for the rows of this
    process and t = `segment_length`, `inputs`, `targets`, `mask` and `start` as in
    `DocumentStream`, and

    * `position`: int32 [b, t]; position of the target in its document, from 0; 0 where mask is
      False.
    * `index`: int32 [b, t]; the document's number in the source; -1 where mask is False.

    Attributes:
        segment_length: positions of a row in one batch; all batches have one shape.
        num_batches: batches of the walk, the same on every host; also `len(walk)`.
        num_targets: predictions of all hosts together.
        num_bytes: bytes of text those predictions cover: nats / num_bytes / ln 2 is exactly the
            bits per byte.
        num_words: words of that text, see `count_words`; where a document is cut off within a word,
            that counts as one.
        num_documents: documents with text.
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
        """Yields the segments of one row, then empty ones without end."""
        segment, filled = self._empty(), 0
        for index in indices:
            document, offset = self._documents[index], 0
            while offset < document.length:
                if filled == self.segment_length:
                    yield segment
                    segment, filled = self._empty(), 0
                count = document.copy_into(segment, filled, offset)
                here = slice(filled, filled + count)
                counted = segment["mask"][here]
                segment["start"][filled] = offset == 0
                segment["position"][here] = np.arange(offset, offset + count) * counted
                segment["index"][here] = np.where(counted, index, -1)
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
    """Plans a walk in which each document of `source` is read whole and exactly once.

    Documents are dealt to rows longest first, each to the row with the least so far; rows that end
    early are padded with mask False. Every host tokenises every document once, to plan.

    Args:
        source: the held-out documents; those without tokens are left out.
        tokenizer: turns each into ids.
        batch_size: rows of the global batch.
        segment_length: positions of a row in one batch.
        align: documents start at multiples of this; it divides `segment_length`.
        max_document_tokens: only so many first tokens of each document; a document that is cut off
            has no end to predict.
        rows: those of the global batch that this host reads, see `core.local_rows`; None: all.
        cache_bytes: bound on the tokenised documents that are kept.

    Raises:
        UsageError: sizes that do not fit each other, or no document with text.
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
    """Deals documents to rows, longest first to the shortest row; also the longest row's length."""
    heap = [(0, row) for row in range(num_rows)]
    plan: list[list[int]] = [[] for _ in heap]
    for index in sorted(lengths, key=lambda i: (-lengths[i], i)):
        load, row = heap[0]
        plan[row].append(index)
        heapq.heapreplace(heap, (load + lengths[index], row))
    return [tuple(row) for row in plan], max(load for load, _ in heap)
