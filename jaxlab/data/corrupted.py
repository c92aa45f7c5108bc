"""Corrupted image sets, made once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxlab.core import UsageError, WriteError
from jaxlab.data.corruptions import EVALUATED_NAMES, EXTRA_NAMES, SEVERITIES, Corruption, make
from jaxlab.data.corruptions.catalogue import KEY_KIND

log = logging.getLogger(__name__)

VERSION = 1
"""Part of every file's name: raised when a corruption comes to make other bytes."""
CHECKSUM_BYTES = 4
"""Bytes after the array of a kept file: the CRC-32 of its values, the least significant first."""


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
    images_bhwc: Any, name: str, severity: int, *, cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0, fingerprint: str | None = None, **options: Any,
) -> np.ndarray:
    """A set of images with a corruption, the index of each its place in the set.

    With a folder they are kept there, in a file named after the set, the corruption, its severity,
    the seed and a version, and from then on read from it, mapped into memory. A file that is
    damaged is made again, with a warning. The last bit of a level may depend on the kind of
    device and the version of JAX that made the file.

    Args:
      images_bhwc: uint8 levels [n, h, w, c].
      name: of the corruption (`data.corruptions`).
      severity: 1 to 5.
      cache_dir: the folder, made if needed; None keeps nothing.
      seed: of the randomness.
      fingerprint: what tells the set from others, of letters, digits, `.`, `_` and `-`; by default
        `images_fingerprint`, which reads all images.
      **options: those of `corruptions.make`.

    Returns:
      uint8 [n, h, w, c]; from a file it is read-only.

    Raises:
      UsageError: as `corruptions.make` and the corruption; a fingerprint that is no file name.
      WriteError: the folder takes no file.
    """
    if cache_dir is not None and fingerprint is None:
        fingerprint = images_fingerprint(images_bhwc)
    corruption = make(name, severity, **options)
    return _corrupted(images_bhwc, corruption, cache_dir, seed, fingerprint)


def corrupted_sets(
    images_bhwc: Any, names: Iterable[str] = (*EVALUATED_NAMES, *EXTRA_NAMES),
    severities: Iterable[int] = SEVERITIES, *, cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0, fingerprint: str | None = None, **options: Any,
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields `(name, severity, images)` of one set with all corruptions, by default the 19 by 5.

    Arguments are those of `corrupted`; all names and severities are checked before the first set
    is made.

    Raises:
      UsageError: as `corrupted`.
    """
    severities = list(severities)
    corruptions = [make(name, s, **options) for name in names for s in severities]
    if cache_dir is not None and fingerprint is None:
        fingerprint = images_fingerprint(images_bhwc)
    for corruption in corruptions:
        images = _corrupted(images_bhwc, corruption, cache_dir, seed, fingerprint)
        yield corruption.name, corruption.severity, images


def _corrupted(
    images_bhwc: Any, corruption: Corruption, cache_dir: str | os.PathLike[str] | None, seed: int,
    fingerprint: str | None,
) -> np.ndarray:
    key = jax.random.key(seed, impl=KEY_KIND)
    if cache_dir is None:
        return np.asarray(corruption(key, images_bhwc))
    path = pathlib.Path(cache_dir) / _file_name(fingerprint, corruption, seed)
    kept = _read(path, np.shape(images_bhwc))
    if kept is None:
        _write(path, np.asarray(corruption(key, images_bhwc)))
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
    return kept


def _file_name(fingerprint: str, corruption: Corruption, seed: int) -> str:
    if not re.fullmatch(r"[\w.-]+", fingerprint, re.ASCII) or fingerprint.startswith("."):
        raise UsageError(
            f"fingerprint={fingerprint!r}; expected letters, digits, '.', '_' and '-', as "
            "images_fingerprint gives"
        )
    options = f"-{corruption.options}" if corruption.options else ""
    return f"{fingerprint}-{corruption.name}-{corruption.severity}{options}-{seed}-v{VERSION}.npy"


def _read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a file, mapped into memory; None without one, or with a damaged one, told."""
    if not path.exists():
        return None
    try:
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(-CHECKSUM_BYTES, os.SEEK_END)
            checksum = file.read()
        whole = path.stat().st_size == kept.offset + kept.nbytes + CHECKSUM_BYTES
        if (kept.dtype, kept.shape, whole) == (np.uint8, shape, True) and checksum == _sum(kept):
            return kept
        found = f"{kept.dtype} {list(kept.shape)}, expected uint8 {list(shape)} and its checksum"
    except (OSError, ValueError, EOFError) as error:
        found = " ".join(str(error).split())
    log.warning("the kept images %r are damaged and are made again (%s)", str(path), found)
    return None


def _sum(array: np.ndarray) -> bytes:
    values = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b""
    return zlib.crc32(values).to_bytes(CHECKSUM_BYTES, "little")


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes the file so that a reader sees all of it or none."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "xb") as file:
                np.save(file, array, allow_pickle=False)
                file.write(_sum(array))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path.name, path, error, "nothing of it was left behind") from error
