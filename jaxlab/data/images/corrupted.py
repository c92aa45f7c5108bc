"""Corrupted image sets, made once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from jaxlab.data.array_cache import cached_arrays
from jaxlab.data.images.corruptions import (
    EVALUATED_NAMES,
    EXTRA_NAMES,
    SEVERITIES,
    Corruption,
    make,
)
from jaxlab.data.images.corruptions.catalogue import KEY_KIND
from jaxlab.data.images.image_set import ImageSet

Images = TypeVar("Images", np.ndarray, ImageSet)
"""Levels alone, or with labels: what goes in is what comes out."""

VERSION = 1
"""Part of every entry's name: raised when a corruption comes to make other bytes."""


def images_fingerprint(images_bhwc: Any) -> str:
    """16 hex digits that change with any value, the shape or the order of images.

    >>> images_fingerprint(np.zeros((1, 32, 32, 3), np.uint8))
    'c3b6ea4a60c9f53a'
    """
    images_bhwc = np.ascontiguousarray(images_bhwc)
    digest = hashlib.blake2b(f"{images_bhwc.shape}{images_bhwc.dtype}".encode(), digest_size=8)
    digest.update(memoryview(images_bhwc).cast("B") if images_bhwc.size else b"")
    return digest.hexdigest()


def corrupted(
    images: Images,
    name: str,
    severity: int,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
    **options: Any,
) -> Images:
    """A set of images with a corruption, the index of each its place in the set.

    With a folder they are kept there (`cached_arrays`), under the name of the corruption, its
    severity, the seed and a version, and from then on read from it, mapped into memory. What is
    damaged is made again, with a warning. The last bit of a level may depend on the kind of device
    and the version of JAX that made them.

    Args:
      images: uint8 levels [n, h, w, c], or an image set.
      name: of the corruption (`data.corruptions`).
      severity: 1 to 5.
      cache_dir: the folder, made if needed; None keeps nothing.
      seed: of the randomness.
      fingerprint: any text that tells the set from others; by default that of the image set, or
        else `images_fingerprint`: both read all images.
      **options: those of `corruptions.make`.

    Returns:
      uint8 [n, h, w, c], read-only where they are kept. Of an image set, one with the same labels
      and classes, named `<name of the set>/<name>/<severity>`.

    Raises:
      UsageError: as `corruptions.make` and the corruption.
      WriteError: the folder takes no file.

    >>> grey = ImageSet(np.full((2, 32, 32, 3), 100, np.uint8), [0, 1], name="grey")
    >>> brighter = corrupted(grey, "brightness", 5)
    >>> brighter
    <grey/brightness/5: 2 images of 32x32x3, 2 classes>
    >>> brighter.images[0, 0, 0].tolist(), brighter.labels.tolist()
    ([176, 176, 176], [0, 1])
    """
    corruption = make(name, severity, **options)
    if cache_dir is not None and fingerprint is None:
        fingerprint = _fingerprint(images)
    return _corrupted(images, corruption, cache_dir, seed, fingerprint)


def corrupted_sets(
    images: Images,
    names: Iterable[str] = (*EVALUATED_NAMES, *EXTRA_NAMES),
    severities: Iterable[int] = SEVERITIES,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
    **options: Any,
) -> Iterator[tuple[str, int, Images]]:
    """Yields `(name, severity, images)` of one set with all corruptions, by default the 19 by 5.

    Arguments are those of `corrupted`, and so are the images; all names and severities are checked
    before the first set is made.

    Raises:
      UsageError: as `corrupted`.

    >>> grey = ImageSet(np.full((2, 32, 32, 3), 100, np.uint8), [0, 1], name="grey")
    >>> for name, severity, changed in corrupted_sets(grey, ["brightness"], [1, 5]):
    ...     print(name, severity, changed.name, changed.images.max())
    brightness 1 grey/brightness/1 112
    brightness 5 grey/brightness/5 176
    """
    severities = list(severities)
    corruptions = [make(name, s, **options) for name in names for s in severities]
    if cache_dir is not None and fingerprint is None:
        fingerprint = _fingerprint(images)
    for corruption in corruptions:
        changed = _corrupted(images, corruption, cache_dir, seed, fingerprint)
        yield corruption.name, corruption.severity, changed


def _fingerprint(images: Any) -> str:
    return images.fingerprint if isinstance(images, ImageSet) else images_fingerprint(images)


def _corrupted(
    images: Any,
    corruption: Corruption,
    cache_dir: str | os.PathLike[str] | None,
    seed: int,
    fingerprint: str | None,
) -> Any:
    name, severity = corruption.name, corruption.severity
    levels = images.images if isinstance(images, ImageSet) else np.asarray(images)
    corruption.require_images(levels)

    def made() -> dict[str, np.ndarray]:
        return {"images": np.asarray(corruption(jax.random.key(seed, impl=KEY_KIND), levels))}

    key = {
        "set": fingerprint,
        "shape": levels.shape,
        "corruption": name,
        "severity": severity,
        "options": corruption.options,
        "seed": int(seed),
        "version": VERSION,
    }
    label = f"{name}-{severity}-seed{seed}-v{VERSION}"
    changed = cached_arrays(cache_dir, label, key, made)["images"]
    if not isinstance(images, ImageSet):
        return changed
    return ImageSet(
        changed,
        images.labels,
        class_names=images.class_names,
        name=f"{images.name}/{name}/{severity}",
    )
