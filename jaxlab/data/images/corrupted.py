"""Corrupted image sets, computed once and cached on disk."""

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
"""An array of levels, or a labelled set; the result has the same type."""

VERSION = 1
"""Part of every cache key: increase it when a corruption changes its output."""


def images_fingerprint(images_bhwc: Any) -> str:
    """Returns 16 hex digits that depend on the values, shape and order of images.

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
    """Applies a corruption to a set of images; the index of an image is its position in the set.

    With `cache_dir`, the result is cached (`cached_arrays`) by corruption, severity, seed and
    version, and memory-mapped from then on; a damaged entry is computed again, with a warning.
    Levels may differ by one between kinds of devices and versions of JAX.

    Args:
      images: uint8 levels [n, h, w, c], or an image set.
      name: the corruption (`data.corruptions`).
      severity: 1 to 5.
      cache_dir: the cache folder, created if missing; None: no cache.
      seed: the seed of the corruption's randomness.
      fingerprint: any text that identifies the images; None: computed from them, which reads all.
      **options: passed to `corruptions.make`.

    Returns:
      uint8 [n, h, w, c], read-only if cached; for an image set, one with the same labels and
      classes, named `<name of the set>/<name>/<severity>`.

    Raises:
      UsageError: as `corruptions.make` and the corruption raise.
      WriteError: the cache cannot be written.

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
    """Yields `(name, severity, images)` for all corruptions of one set, by default 19 times 5.

    Arguments and images are as for `corrupted`; all names and severities are checked before the
    first set is computed.

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

    def compute() -> dict[str, np.ndarray]:
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
    changed = cached_arrays(cache_dir, label, key, compute)["images"]
    if not isinstance(images, ImageSet):
        return changed
    return ImageSet(
        changed,
        images.labels,
        class_names=images.class_names,
        name=f"{images.name}/{name}/{severity}",
    )
