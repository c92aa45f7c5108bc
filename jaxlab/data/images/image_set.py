"""Sets of labelled images in memory, and their statistics."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, require_labels
from jaxlab.data.batches import require_not_negative, require_positive
from jaxlab.data.digest import digest


class ImageSet:
    """Labelled images as uint8 levels; every source of images is one.

    >>> levels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    >>> images = ImageSet(levels, [0, 1, 0], class_names=["cat", "dog"])
    >>> len(images), images.num_classes, images[1:].labels.tolist()
    (3, 2, [1, 0])

    Args:
        images: uint8 [n, h, w, c]; used without a copy, as a read-only view. May be a memory map.
        labels: int [n], from 0 to the number of classes - 1.
        class_names: one name per class; None: `0`, `1`, ...
        num_classes: None: the number of `class_names`, or the largest label + 1.
        name: the name of the set in predictions and figures.

    Attributes:
        images: uint8 [n, h, w, c].
        labels: int32 [n].
        class_names: the name of each class.
        name: such as `cifar10/train[:80%]`; names of subsets say which part they are.

    Raises:
        UsageError: images that are not uint8 (floats are refused, their range is not guessed) or
            not of rank 4; no images; labels that are not one integer per image, or out of range.
    """

    def __init__(
        self,
        images: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        name: str = "arrays",
    ):
        self.images = _checked_images(images)
        given = _checked_labels(labels, len(self.images))
        self.class_names = _checked_classes(class_names, num_classes, given)
        require_labels(given, len(self.class_names))
        self.labels = _read_only(given.astype(np.int32))
        self.name = name

    @property
    def num_classes(self) -> int:
        """The number of classes, including those without images in this set."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on all levels, labels and class names, and their order.

        The first call reads all images; `python -m benchmarks.images --part=fingerprint` times it.
        """
        header = repr((self.images.shape, self.class_names))
        hashed = hashlib.blake2b(header.encode(), digest_size=8)
        hashed.update(np.ascontiguousarray(self.images).data)
        hashed.update(self.labels.astype("<i4").data)
        return hashed.hexdigest()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<{self.name}: {len(self)} images of {shape}, {self.num_classes} classes>"

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]: ...

    @overload
    def __getitem__(self, index: slice) -> ImageSet: ...

    def __getitem__(self, index: Any) -> Any:
        """Returns (image [h, w, c], label) for an integer, and a set (not copied) for a slice."""
        if isinstance(index, slice):
            parts = [index.start, index.stop, *([index.step] if index.step else [])]
            shown = ":".join("" if part is None else str(part) for part in parts)
            return self._subset(self.images[index], self.labels[index], f"{self.name}[{shown}]")
        return self.images[index], int(self.labels[index])

    def take(self, indices: npt.ArrayLike, name: str | None = None) -> ImageSet:
        """Returns the images at `indices`, int [m], in that order, as a new set.

        Args:
            indices: each from 0 to n - 1; may repeat.
            name: the name of the new set; None: this name with a digest of `indices`.

        Raises:
            UsageError: no indices, or one that is not an integer from 0 to n - 1.
        """
        at = np.asarray(indices)
        valid = at.ndim == 1 and at.size and np.issubdtype(at.dtype, np.integer)
        if not valid or at.min() < 0 or at.max() >= len(self):
            raise UsageError(
                f"indices {_shown(at)} of {self.name!r}; expected at least one integer, each from "
                f"0 to {len(self) - 1}"
            )
        name = name or f"{self.name}[{digest(','.join(map(str, at.tolist())))}]"
        return self._subset(self.images[at], self.labels[at], name)

    def first(self, count: int) -> ImageSet:
        """Returns the first `count` images; use `split` for folders, which are sorted by class.

        Raises:
            UsageError: `count` is below 1 or above the number of images.
        """
        require_positive(count=count)
        if count > len(self):
            raise UsageError(f"count={count}; {self.name!r} has only {len(self)} images")
        return self[:count]

    def split(self, held_out_rate: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Splits the set into training and held-out images, at the same rate in each class.

        Within a class, the images with the smallest hash of `seed` and index are held out.

        Returns:
            (train, held_out), both in the order of this set and never empty.

        Raises:
            UsageError: `held_out_rate` is not between 0 and 1, or there are fewer than two images.
        """
        if not 0 < held_out_rate < 1:
            raise UsageError(f"held_out_rate={held_out_rate}; expected a fraction between 0 and 1")
        require_not_negative(seed=seed)
        if len(self) < 2:
            raise UsageError(f"{self.name!r} has one image, too few to hold one out")
        held_out = _held_out(self.labels, self.num_classes, held_out_rate, seed)
        part = f"{held_out_rate:g}, seed {seed}"
        return (
            self.take(np.flatnonzero(~held_out), f"{self.name}[without {part}]"),
            self.take(np.flatnonzero(held_out), f"{self.name}[{part}]"),
        )

    def _subset(self, images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str) -> ImageSet:
        return ImageSet(images, labels, class_names=self.class_names, name=name)


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel over all pixels, in units of [0, 1].

    They are computed exactly, from counts of levels, and are meant for a model's normalisation.

    >>> black_and_white = np.array([[0, 255]] * 2, np.uint8).reshape(1, 2, 2, 1)
    >>> channel_statistics(ImageSet(black_and_white, [0]))
    ((0.5,), (0.5,))

    Returns:
        (mean, std), each with one number per channel; std is 0 for a constant channel.
    """
    counts = np.zeros((images.image_shape[2], 256), np.int64)
    for begin in range(0, len(images), _CHUNK):
        chunk = images.images[begin : begin + _CHUNK]
        for channel, row in enumerate(counts):
            row += np.bincount(chunk[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


_CHUNK = 1024


def _checked_images(images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    images = np.asarray(images)
    if images.dtype != np.uint8:
        way_out = (
            "for floats in [0, 1] pass np.rint(255 * images).astype(np.uint8)"
            if np.issubdtype(images.dtype, np.floating)
            else "if they are in that range, pass images.astype(np.uint8)"
        )
        raise UsageError(
            f"images of dtype {images.dtype}; expected uint8 levels from 0 to 255: {way_out}"
        )
    if images.ndim != 4:
        way_out = ": for grey images pass images[..., None]" if images.ndim == 3 else ""
        raise UsageError(f"images of shape {images.shape}; expected [n, h, w, c]{way_out}")
    if not images.size:
        raise UsageError(f"images of shape {images.shape}; expected at least one pixel")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise UsageError(
            f"images of shape {images.shape} have channels first; expected [n, h, w, c]: "
            f"pass images.transpose(0, 2, 3, 1)"
        )
    return _read_only(images)


def _checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        way_out = ": pass labels[:, 0]" if labels.shape == (count, 1) else ""
        raise UsageError(f"labels of shape {labels.shape}; expected [{count}]{way_out}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"labels of dtype {labels.dtype}; expected integers")
    return labels


def _checked_classes(
    class_names: Sequence[str] | None, num_classes: int | None, labels: npt.NDArray[Any]
) -> tuple[str, ...]:
    if class_names is None:
        count = max(int(labels.max()), 0) + 1 if num_classes is None else num_classes
        require_positive(num_classes=count)
        return tuple(map(str, range(count)))
    if num_classes not in (None, len(class_names)):
        raise UsageError(
            f"num_classes={num_classes}, but {len(class_names)} class_names; pass one of them"
        )
    return tuple(class_names)


def _held_out(
    labels: npt.NDArray[np.int32], num_classes: int, rate: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Marks the held-out images, bool [n]: `round(rate * n)`, at least one and at most n - 1."""
    total = min(max(round(rate * len(labels)), 1), len(labels) - 1)
    exact = rate * np.bincount(labels, minlength=num_classes)
    counts = np.floor(exact).astype(int)
    by_fraction = np.argsort(counts - exact, kind="stable")
    counts[by_fraction[: total - counts.sum()]] += 1
    held_out = np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label).tolist()
        held_out[sorted(members, key=lambda i: (digest(f"{seed}/{i}"), i))[:count]] = True
    return held_out


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.view()
    array.flags.writeable = False
    return array


def _shown(array: npt.NDArray[Any]) -> str:
    return np.array2string(array, threshold=6, edgeitems=3)
