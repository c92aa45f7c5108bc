"""Long-range recall: a value is shown once, at the beginning, and queried in every later block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError
from jaxlab.data.batches import (
    NumpyBatch,
    checked_rows,
    require_not_negative,
    require_positive,
)
from jaxlab.data.stream import State, require_same_stream


@dataclasses.dataclass(frozen=True)
class RecallTask:
    """Sequences in which queries ask for values shown in the first block.

    Block 0 has `num_pairs` pairs (key, value) at random even slots. Every later block has
    `queries_per_block` queries (Q, key) at random even slots, each with a key of block 0; the
    target at the key is its value. All other positions are filler. The answer is never an input
    after block 0, so it cannot be copied forward: a model whose context does not reach back to
    block 0 has an accuracy of 1 / `num_values`.

    The ids are values, then keys, then fillers, then Q.

    Attributes:
        num_values: number of possible values.
        num_keys: number of possible keys; they do not repeat within a sequence.
        num_fillers: number of possible fillers.
        num_pairs: pairs per sequence.
        block: positions per block.
        num_blocks: blocks per sequence.
        queries_per_block: queries in every block but the first.

    Raises:
        UsageError: a size below 1 (2 for `num_blocks`), more pairs than keys, or more pairs or
            queries than a block has even slots.
    """

    num_values: int = 16
    num_keys: int = 8
    num_fillers: int = 16
    num_pairs: int = 1
    block: int = 16
    num_blocks: int = 6
    queries_per_block: int = 3

    def __post_init__(self) -> None:
        require_positive(**dataclasses.asdict(self))
        _require_blocks(self.num_blocks)
        slots = self.block // 2
        limits = {"num_keys": self.num_keys, "block // 2": slots}
        for name, limit in limits.items():
            if self.num_pairs > limit:
                raise UsageError(f"num_pairs={self.num_pairs}; expected at most {name} = {limit}")
        if self.queries_per_block > slots:
            raise UsageError(
                f"queries_per_block={self.queries_per_block}; expected at most block // 2 = {slots}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: values, keys, fillers and Q."""
        return self.num_values + self.num_keys + self.num_fillers + 1

    def stream(
        self, batch_size: int, seed: int = 0, rows: Sequence[int] | None = None, segments: int = 1
    ) -> RecallStream:
        """Returns an infinite stream of fresh sequences; see `RecallStream`."""
        return RecallStream(self, batch_size, seed, rows, segments)

    def batch(
        self, seed: int, index: int, batch_size: int, num_blocks: int | None = None
    ) -> NumpyBatch:
        """Returns batch number `index` for `seed`; it depends only on these and on its shape.

        Args:
            seed: 0 or more.
            index: 0 or more.
            batch_size: number of rows.
            num_blocks: blocks per sequence; None: as in the task.

        Returns:
            For t = num_blocks * block: `inputs` and `targets` int32 [b, t]; `mask` bool [b, t],
            True at the key of a query, where the target is the value (0 elsewhere); `start` bool
            [b, t], True at position 0; `position` int32 [b, t], from 0, so that
            `position // block` is the block.

        Raises:
            UsageError: a size below 1, fewer than 2 blocks, or a negative seed or index.
        """
        blocks = self.num_blocks if num_blocks is None else num_blocks
        _require_blocks(blocks)
        require_positive(batch_size=batch_size)
        require_not_negative(seed=seed, index=index)
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        shape = (batch_size, blocks * self.block)
        fillers = rng.integers(self.num_fillers, size=shape)
        inputs = (fillers + self.num_values + self.num_keys).astype(np.int32)
        targets, mask = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
        keys, values = self._write_pairs(rng, inputs)
        self._write_queries(rng, keys, values, inputs, targets, mask)
        start = np.zeros(shape, np.bool_)
        start[:, 0] = True
        position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
        return {
            "inputs": inputs,
            "targets": targets,
            "mask": mask,
            "start": start,
            "position": position,
        }

    def _write_pairs(
        self, rng: np.random.Generator, inputs: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Writes the pairs into block 0; returns keys and values [b, num_pairs], as ids."""
        size = len(inputs)
        keys = self.num_values + _choose(rng, (size,), self.num_keys, self.num_pairs)
        values = rng.integers(self.num_values, size=(size, self.num_pairs))
        at = 2 * _choose(rng, (size,), self.block // 2, self.num_pairs)
        np.put_along_axis(inputs, at, keys, axis=1)
        np.put_along_axis(inputs, at + 1, values, axis=1)
        return keys, values

    def _write_queries(
        self,
        rng: np.random.Generator,
        keys: npt.NDArray[np.int64],
        values: npt.NDArray[np.int64],
        inputs: npt.NDArray[np.int32],
        targets: npt.NDArray[np.int32],
        mask: npt.NDArray[np.bool_],
    ) -> None:
        """Writes the queries of all later blocks, their answers and the mask."""
        size, blocks = len(inputs), inputs.shape[1] // self.block - 1
        slots = _choose(rng, (size, blocks), self.block // 2, self.queries_per_block)
        first = self.block * (1 + np.arange(blocks))[None, :, None]
        at = (first + 2 * slots).reshape(size, -1)
        which = rng.integers(self.num_pairs, size=at.shape)
        np.put_along_axis(inputs, at, self.vocab_size - 1, axis=1)
        np.put_along_axis(inputs, at + 1, np.take_along_axis(keys, which, 1), axis=1)
        np.put_along_axis(targets, at + 1, np.take_along_axis(values, which, 1), axis=1)
        np.put_along_axis(mask, at + 1, True, axis=1)


class RecallStream:
    """Infinite iterator of `RecallTask.batch`, whose position can be saved and restored.

    With several `segments`, a sequence is that many times as long and is split over as many
    batches of `task.num_blocks` blocks each: row b continues row b of the previous batch, so the
    model needs a carry.

    Batch number i depends only on the task, `seed`, i, `segments` and the global `batch_size`. A
    process gets the `rows` it asks for, by default all.
    """

    def __init__(
        self,
        task: RecallTask,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
        segments: int = 1,
    ):
        require_positive(segments=segments)
        self.task, self.batch_size, self.segments = task, batch_size, segments
        self.rows = checked_rows(batch_size, rows)
        require_not_negative(seed=seed)
        self._seed, self._next = seed, 0
        self._identity = {
            **dataclasses.asdict(task),
            "batch_size": batch_size,
            "seed": seed,
            "segments": segments,
        }

    def __iter__(self) -> Iterator[NumpyBatch]:
        return self

    def __next__(self) -> NumpyBatch:
        sequence, segment = divmod(self._next, self.segments)
        batch = self.task.batch(
            self._seed, sequence, self.batch_size, self.segments * self.task.num_blocks
        )
        self._next += 1
        length = self.task.num_blocks * self.task.block
        span = slice(segment * length, (segment + 1) * length)
        return {name: array[list(self.rows), span] for name, array in batch.items()}

    def state(self) -> State:
        """Returns the number of the next batch and the identity of the stream, as plain JSON."""
        return {"stream": dict(self._identity), "next_index": self._next}

    def restore(self, state: State) -> None:
        """Continues with the batch at which `state` was saved.

        Raises:
            UsageError: another stream saved `state`.
        """
        require_same_stream(state, self._identity)
        self._next = state["next_index"]


def _choose(
    rng: np.random.Generator, shape: tuple[int, ...], total: int, count: int
) -> npt.NDArray[np.int64]:
    """Returns `count` distinct numbers below `total` in random order, [*shape, count]."""
    return rng.random((*shape, total)).argsort(axis=-1)[..., :count]


def _require_blocks(num_blocks: int) -> None:
    if num_blocks < 2:
        raise UsageError(f"num_blocks={num_blocks}; expected at least 2: the first has no queries")
