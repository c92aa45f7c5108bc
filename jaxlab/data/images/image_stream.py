"""Batches of images: an infinite stream for training, and a single pass for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxlab.data.batches import NumpyBatch, checked_rows, require_not_negative
from jaxlab.data.epoch_order import epoch_order
from jaxlab.data.images.image_set import ImageSet
from jaxlab.data.stream import State, require_same_stream


class ImageStream:
    """Infinite iterator of batches; every epoch visits each image once, in a new random order.

    Epochs are concatenated, so a batch may span two of them and nothing is dropped or padded: row r
    of batch i is image number p % n in the order of epoch p // n, for p = i * batch_size + r and n
    images. A batch depends only on its number, the seed and the images; rows do not depend on the
    number of processes.

    A batch has, for the rows of this process:
        inputs: uint8 [b, h, w, c].
        targets: int32 [b], the labels.
        index: int32 [b], the index of the image in the set.

    Args:
        images: the images.
        batch_size: rows of the global batch.
        seed: determines the order of images.
        rows: the rows of the global batch for this process, see `core.local_rows`; None: all.

    Raises:
        UsageError: a batch size below 1, rows out of range, or a negative seed.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, seed: int = 0, rows: Sequence[int] | None = None
    ):
        self.rows = checked_rows(batch_size, rows)
        require_not_negative(seed=seed)
        self.images, self.batch_size = images, batch_size
        self._row_numbers = np.array(self.rows)
        self._order = functools.lru_cache(maxsize=2)(
            functools.partial(epoch_order, len(images), seed)
        )
        self._next = 0
        self._identity = {
            "seed": seed,
            "batch_size": batch_size,
            "num_images": len(images),
            "images": images.fingerprint,
        }

    def __iter__(self) -> Iterator[NumpyBatch]:
        return self

    def __next__(self) -> NumpyBatch:
        positions = self._next * self.batch_size + self._row_numbers
        epochs, positions = np.divmod(positions, len(self.images))
        index = np.empty(len(positions), np.int32)
        for epoch in range(epochs[0], epochs[-1] + 1):
            in_epoch = epochs == epoch
            index[in_epoch] = self._order(epoch)[positions[in_epoch]]
        self._next += 1
        return _batch(self.images, index)

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


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """The batches of one pass over a set; it can be iterated repeatedly.

    A batch has `inputs`, `targets` and `index` as in `ImageStream`, and
        mask: bool [b]; False in rows after the last image, where `inputs` and `targets` are 0 and
            `index` is -1.

    Attributes:
        images: the images.
        batch_size: rows of the global batch; all batches have the same shape.
        rows: the rows of the global batch for this process.
    """

    images: ImageSet
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[NumpyBatch]:
        row_numbers = np.array(self.rows, np.int32)
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            index = begin + row_numbers
            mask = index < len(self.images)
            batch = _batch(self.images, np.where(mask, index, 0))
            if not mask.all():
                batch["inputs"][~mask] = 0
                batch["targets"][~mask] = 0
            yield batch | {"index": np.where(mask, index, -1), "mask": mask}


def image_batches(
    images: ImageSet, batch_size: int, rows: Sequence[int] | None = None
) -> ImageBatches:
    """Returns all images once, in order, in batches of one shape; see `ImageBatches`.

    Args:
        images: the images.
        batch_size: rows of the global batch.
        rows: the rows of the global batch for this process, see `core.local_rows`; None: all.

    Raises:
        UsageError: a batch size below 1, or rows out of range.
    """
    return ImageBatches(images, batch_size, checked_rows(batch_size, rows))


def image_batch_shapes(
    batch_size: int, image_shape: Sequence[int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch of an `ImageStream`, to plan a training without its images.

    Args:
        batch_size: rows of the global batch.
        image_shape: height, width and channels.

    >>> image_batch_shapes(8, (4, 4, 1))["inputs"].shape
    (8, 4, 4, 1)
    """
    labels = jax.ShapeDtypeStruct((batch_size,), np.int32)
    inputs = jax.ShapeDtypeStruct((batch_size, *image_shape), np.uint8)
    return {"inputs": inputs, "targets": labels, "index": labels}


def _batch(images: ImageSet, index: np.ndarray) -> NumpyBatch:
    return {
        "inputs": images.images[index],
        "targets": images.labels[index],
        "index": index,
    }
