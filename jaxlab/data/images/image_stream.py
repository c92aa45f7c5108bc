"""Batches of images: an endless stream to train on, and one pass in order to evaluate."""

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
    """Infinite iterator of batches; every epoch shows each image exactly once, in an own order.

    The epochs lie end to end: a batch may begin in one and end in the next, so nothing is dropped
    or padded. Place p of the whole is place p % n of the order of epoch p // n, for n images; row r
    of batch i is place i * batch_size + r. So a batch depends on nothing but its number, the seed
    and the images, and rows do not depend on the number of hosts.

    A batch holds, for the rows of this host:
        inputs: uint8 [b, h, w, c].
        targets: int32 [b], the labels.
        index: int32 [b], the number of the image in the set.

    Args:
        images: the images.
        batch_size: rows of the global batch.
        seed: the order of images.
        rows: those of the global batch that this host reads, see `core.local_rows`; None: all.

    Raises:
        UsageError: a batch below 1, rows that are not in it, or a negative seed.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, seed: int = 0, rows: Sequence[int] | None = None
    ):
        self.rows = checked_rows(batch_size, rows)
        require_not_negative(seed=seed)
        self.images, self.batch_size = images, batch_size
        self._places = np.array(self.rows)
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
        epochs, places = np.divmod(self._next * self.batch_size + self._places, len(self.images))
        index = np.empty(len(places), np.int32)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            index[here] = self._order(epoch)[places[here]]
        self._next += 1
        return _batch(self.images, index)

    def state(self) -> State:
        """Returns the number of the next batch and what identifies the stream, as plain JSON."""
        return {"stream": dict(self._identity), "next_index": self._next}

    def restore(self, state: State) -> None:
        """Continues with the batch at which `state` was taken.

        Raises:
            UsageError: `state` is of another stream.
        """
        require_same_stream(state, self._identity)
        self._next = state["next_index"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """The batches of one pass over a set; it can be passed over again and again.

    A batch holds `inputs`, `targets` and `index` as in `ImageStream`, and
        mask: bool [b]; False in the rows behind the last image, where `inputs` and `targets` are 0
            and `index` is -1.

    Attributes:
        images: the images.
        batch_size: rows of the global batch; all batches have one shape.
        rows: those of the global batch that this host reads.
    """

    images: ImageSet
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[NumpyBatch]:
        places = np.array(self.rows, np.int32)
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            index = begin + places
            mask = index < len(self.images)
            batch = _batch(self.images, np.where(mask, index, 0))
            if not mask.all():
                batch["inputs"][~mask] = 0
                batch["targets"][~mask] = 0
            yield batch | {"index": np.where(mask, index, -1), "mask": mask}


def image_batches(
    images: ImageSet, batch_size: int, rows: Sequence[int] | None = None
) -> ImageBatches:
    """All images once, in order, in batches of one shape; see `ImageBatches`.

    Args:
        images: the images.
        batch_size: rows of the global batch.
        rows: those of the global batch that this host reads, see `core.local_rows`; None: all.

    Raises:
        UsageError: a batch below 1, or rows that are not in it.
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
