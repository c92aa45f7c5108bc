"""Training batches whose rows read whole documents, one after another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxlab.core import UsageError
from jaxlab.data.batches import NumpyBatch, checked_rows, require_not_negative
from jaxlab.data.epoch_order import epoch_order
from jaxlab.data.stream import State, require_same_stream
from jaxlab.data.text.framing import Framed, FramedDocuments, require_aligned
from jaxlab.data.text.sources import Source, source_fingerprint
from jaxlab.data.text.tokenizers import Tokenizer


@dataclasses.dataclass
class _Reader:
    """The position of one row: in its document, and in the order of documents."""

    row: int
    ordinal: int
    begin: int
    offset: int
    document: Framed


class DocumentStream:
    """Infinite iterator of batches: row `b` of step `t + 1` continues row `b` of step `t`.

    A document x_0..x_{n-1} becomes the inputs B, x_0..x_{n-1} and the targets x_0..x_{n-1}, B,
    where B is the tokenizer's boundary, so every token and the end are predicted exactly once.
    Documents start at multiples of `align`; each is padded to the next multiple with B and mask
    False, and there is no other padding. Unlike in arXiv 2203.07852, the next document follows in
    the same segment.

    A batch has, for the rows of this process and t = `segment_length`:
        inputs: int32 [b, t].
        targets: int32 [b, t].
        mask: bool [b, t]; True where the target counts.
        start: bool [b, t]; True where a document starts, so recurrent state must be reset.

    Row r of the global batch reads documents number r, r + B, r + 2B, ... for the global batch size
    B. With D documents, number o is the document at index o % D in the order of epoch o // D, so
    rows do not depend on the number of processes. If D < B, the rows that open the same document
    begin at evenly spaced positions in it. Documents without tokens are skipped.

    Args:
        source: the documents.
        tokenizer: turns documents into ids.
        batch_size: rows of the global batch.
        segment_length: positions per row and batch.
        align: documents start at multiples of this, which must divide `segment_length`.
        seed: determines the order of documents.
        shuffle: False reads every epoch in the order of the source.
        rows: the rows of the global batch for this process, see `core.local_rows`; None: all.
        cache_bytes: limit of the cache of tokenised documents, besides those being read.

    Raises:
        UsageError: inconsistent sizes; an empty source; at the first batch, a source whose
            documents are all empty.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        segment_length: int,
        align: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        rows: Sequence[int] | None = None,
        cache_bytes: int = 1 << 27,
    ):
        self.rows = checked_rows(batch_size, rows)
        require_aligned(segment_length, align)
        require_not_negative(seed=seed)
        self.batch_size, self.segment_length, self.align = batch_size, segment_length, align
        self._documents = FramedDocuments(source, tokenizer, align, cache_bytes)
        self._names = source.names
        self._order = functools.lru_cache(maxsize=4)(
            functools.partial(epoch_order, len(source), seed)
            if shuffle
            else lambda epoch: np.arange(len(source))
        )
        self._readers: list[_Reader] | None = None
        self._identity = {
            "seed": seed,
            "shuffle": shuffle,
            "batch_size": batch_size,
            "segment_length": segment_length,
            "align": align,
            "num_documents": len(source),
            "source": source_fingerprint(source),
            "tokenizer": tokenizer.fingerprint(),
        }

    def __iter__(self) -> Iterator[NumpyBatch]:
        return self

    def __next__(self) -> NumpyBatch:
        shape = (len(self.rows), self.segment_length)
        batch: NumpyBatch = {
            "inputs": np.empty(shape, np.int32),
            "targets": np.empty(shape, np.int32),
            "mask": np.zeros(shape, np.bool_),
            "start": np.zeros(shape, np.bool_),
        }
        for i, reader in enumerate(self._opened()):
            self._fill({name: array[i] for name, array in batch.items()}, reader)
        return batch

    def state(self) -> State:
        """Returns the positions of the rows of this process, as plain JSON.

        `rows` lists, for each row, its number in the global batch, the number of its document, the
        position in it, and how many targets the document has. `join_states` joins the states of all
        processes into one that any number of processes can restore.
        """
        rows = [[r.row, r.ordinal, r.offset, r.document.num_targets] for r in self._opened()]
        return {"stream": dict(self._identity), "rows": rows}

    def restore(self, state: State) -> None:
        """Continues at the exact position at which `state` was saved.

        Raises:
            UsageError: `state` belongs to another stream or lacks rows of this process, or a
                document that was being read has changed.
        """
        require_same_stream(state, self._identity)
        saved = {row: position for row, *position in state["rows"]}
        missing = [row for row in self.rows if row not in saved]
        if missing:
            raise UsageError(
                f"the data state has no row {missing[0]}: another process saved it; join the "
                f"states of all processes with join_states"
            )
        self._readers = [self._reopen(row, *saved[row]) for row in self.rows]

    def _fill(self, row: NumpyBatch, reader: _Reader) -> None:
        filled = 0
        while filled < self.segment_length:
            if reader.offset == reader.document.length:
                reader.ordinal, reader.document = self._after(reader.ordinal)
                reader.begin = reader.offset = 0
            row["start"][filled] = reader.offset == reader.begin
            count = reader.document.copy_into(row, filled, reader.offset)
            reader.offset += count
            filled += count

    def _opened(self) -> list[_Reader]:
        if self._readers is None:
            self._readers = [self._first(row) for row in self.rows]
        return self._readers

    def _first(self, row: int) -> _Reader:
        if self.batch_size <= len(self._documents):
            ordinal, document = self._after(row - self.batch_size)
        else:
            ordinal, document = row, self._documents[self._openers[row]]
        begin = self._begin(row, ordinal, document)
        return _Reader(row, ordinal, begin, begin, document)

    def _reopen(self, row: int, ordinal: int, offset: int, num_targets: int) -> _Reader:
        index = self._document_of(ordinal)
        document = self._documents[index]
        if document.num_targets != num_targets:
            raise UsageError(
                f"document {self._names[index]!r} has {document.num_targets} targets, but had "
                f"{num_targets} when the data state was saved; restore it, or start afresh"
            )
        return _Reader(row, ordinal, self._begin(row, ordinal, document), offset, document)

    def _begin(self, row: int, ordinal: int, document: Framed) -> int:
        """Returns where the row begins: rows that open the same document are spread over it."""
        if ordinal != row or self.batch_size <= len(self._documents):
            return 0
        opened = self._openers[row]
        number = self._openers[:row].count(opened)
        blocks = document.length // self.align
        return number * blocks // self._openers.count(opened) * self.align

    @functools.cached_property
    def _openers(self) -> list[int]:
        """The document that each row of the global batch opens first, if rows share documents."""
        return [self._document_of(row) for row in range(self.batch_size)]

    def _after(self, ordinal: int) -> tuple[int, Framed]:
        """Returns the row's next ordinal and document, skipping up to D empty documents."""
        for _ in range(len(self._documents)):
            ordinal += self.batch_size
            document = self._documents[self._index_of(ordinal)]
            if document.num_tokens:
                return ordinal, document
        return ordinal, self._documents[self._document_of(ordinal)]

    def _index_of(self, ordinal: int, skip: int = 0) -> int:
        epoch, position = divmod(ordinal, len(self._documents))
        return int(self._order(epoch)[(position + skip) % len(self._documents)])

    def _document_of(self, ordinal: int) -> int:
        """Returns the document at `ordinal`, or the next in the epoch's order that has tokens."""
        for skip in range(len(self._documents)):
            index = self._index_of(ordinal, skip)
            if self._documents[index].num_tokens:
                return index
        raise UsageError(
            f"all {len(self._documents)} documents are empty; expected at least one with text"
        )


def join_states(states: Sequence[State]) -> State:
    """Joins the states of all processes at one step, for any number of processes to restore.

    States without `rows` come from streams with one position for all processes, and must be equal.

    Raises:
        UsageError: no state, states of different streams, or different states without `rows`.
    """
    if not states:
        raise UsageError("no data state to join; pass the states of all processes")
    if all(state == states[0] for state in states):
        return states[0]
    for state in states:
        if "rows" not in state:
            raise UsageError(
                f"the data states of two processes differ and have no rows: {state} and "
                f"{states[0]}; a stream must have one position on all processes, or list its rows"
            )
        require_same_stream(state, states[0]["stream"])
    rows = {row[0]: row for state in states for row in state["rows"]}
    return {**states[0], "rows": [rows[number] for number in sorted(rows)]}


def token_batch_shapes(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch of a `DocumentStream`, to plan a training without its text.

    Args:
        batch_size: rows of the global batch.
        length: tokens of a segment.

    >>> token_batch_shapes(8, 128)["mask"].dtype
    dtype('bool')
    """
    ids = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    flags = jax.ShapeDtypeStruct((batch_size, length), np.bool_)
    return {"inputs": ids, "targets": ids, "mask": flags, "start": flags}
