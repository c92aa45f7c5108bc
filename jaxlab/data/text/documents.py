"""Training batches in which every row reads whole documents, one after the other."""

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
    """Where one row stands: in its document, and in the order of documents."""

    row: int
    ordinal: int
    begin: int
    offset: int
    document: Framed


class DocumentStream:
    """Infinite iterator of batches: row `b` of step `t + 1` continues row `b` of step `t`.

    A document x_0..x_{n-1} gives the inputs B, x_0..x_{n-1} and the targets x_0..x_{n-1}, B, with
    B the tokenizer's boundary: every token, and the end, is predicted exactly once. Documents start
    at multiples of `align`; the tail of one is padded with B and mask False up to the next
    multiple, and there is no other padding. Unlike in arXiv 2203.07852, the next
    document follows in the same segment.

    A batch holds, for the rows of this host and t = `segment_length`:
        inputs: int32 [b, t].
        targets: int32 [b, t].
        mask: bool [b, t]; True where the target counts.
        start: bool [b, t]; True where a document starts: state of the past ends here.

    Row r of the global batch reads the documents with the ordinals r, r + B, r + 2B, ... for the
    global batch size B; ordinal o is place o % D of the order of epoch o // D, for D documents. So
    rows do not depend on the number of hosts. Where D < B, the rows that open the same document
    begin at evenly spaced places in it. Documents without tokens are passed over.

    Args:
        source: the documents.
        tokenizer: turns each into ids.
        batch_size: rows of the global batch.
        segment_length: positions of a row in one step.
        align: documents start at multiples of this; it divides `segment_length`.
        seed: the order of documents.
        shuffle: False reads every epoch in the source's order.
        rows: those of the global batch that this host reads, see `core.local_rows`; None: all.
        cache_bytes: bound on the tokenised documents that are kept beside those being read.

    Raises:
        UsageError: sizes that do not fit each other; an empty source; at the first batch, a source
            whose documents are all empty.
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
        """Returns where the rows of this host stand, as plain JSON.

        `rows` lists, for each row, its number in the global batch, the ordinal of its document, the
        position in it, and how many targets the document has. The states of all hosts joined by
        `join_states` restore any number of hosts.
        """
        rows = [[r.row, r.ordinal, r.offset, r.document.num_targets] for r in self._opened()]
        return {"stream": dict(self._identity), "rows": rows}

    def restore(self, state: State) -> None:
        """Continues at the exact position where `state` was taken.

        Raises:
            UsageError: `state` is of another stream, lacks rows of this host, or a document that is
                being read has changed since.
        """
        require_same_stream(state, self._identity)
        saved = {row: place for row, *place in state["rows"]}
        missing = [row for row in self.rows if row not in saved]
        if missing:
            raise UsageError(
                f"the data state has no row {missing[0]}: it was saved by another host; join the "
                f"states of all hosts with join_states"
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
                f"{num_targets} when the data state was saved; put it back, or start afresh"
            )
        return _Reader(row, ordinal, self._begin(row, ordinal, document), offset, document)

    def _begin(self, row: int, ordinal: int, document: Framed) -> int:
        """Returns where the row begins to read: rows that open one document are spread over it."""
        if ordinal != row or self.batch_size <= len(self._documents):
            return 0
        mine = self._openers[row]
        number = self._openers[:row].count(mine)
        blocks = document.length // self.align
        return number * blocks // self._openers.count(mine) * self.align

    @functools.cached_property
    def _openers(self) -> list[int]:
        """The document that each row of the global batch opens first, where those repeat."""
        return [self._document_of(row) for row in range(self.batch_size)]

    def _after(self, ordinal: int) -> tuple[int, Framed]:
        """Returns the row's next ordinal and document; up to D empty documents are passed over."""
        for _ in range(len(self._documents)):
            ordinal += self.batch_size
            document = self._documents[self._place(ordinal)]
            if document.num_tokens:
                return ordinal, document
        return ordinal, self._documents[self._document_of(ordinal)]

    def _place(self, ordinal: int, further: int = 0) -> int:
        epoch, place = divmod(ordinal, len(self._documents))
        return int(self._order(epoch)[(place + further) % len(self._documents)])

    def _document_of(self, ordinal: int) -> int:
        """Returns the document at `ordinal`, or the next in the epoch's order that has tokens."""
        for further in range(len(self._documents)):
            index = self._place(ordinal, further)
            if self._documents[index].num_tokens:
                return index
        raise UsageError(
            f"all {len(self._documents)} documents are empty; expected at least one with text"
        )


def join_states(states: Sequence[State]) -> State:
    """Joins the states that all hosts saved at one step into one that any number of hosts restores.

    States without `rows` are of streams that stand at one place on every host, and are equal.

    Raises:
        UsageError: no state, states of different streams, or states that differ without `rows`.
    """
    if not states:
        raise UsageError("no data state to join; pass the states of all hosts")
    if all(state == states[0] for state in states):
        return states[0]
    for state in states:
        if "rows" not in state:
            raise UsageError(
                f"the data states of two hosts differ and have no rows: {state} and {states[0]}; "
                "a stream must stand at one place on all hosts, or tell its rows"
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
