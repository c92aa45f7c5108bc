"""Corrupted image sets, made once and kept on disk."""

from __future__ import annotations

import hashlib
import io
import logging
import math
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
    corruption = make(name, severity, **options)
    images_bhwc = np.asarray(images_bhwc)
    if cache_dir is not None and fingerprint is None:
        fingerprint = images_fingerprint(images_bhwc)
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
    images_bhwc = np.asarray(images_bhwc)
    if cache_dir is not None and fingerprint is None:
        fingerprint = images_fingerprint(images_bhwc)
    for corruption in corruptions:
        images = _corrupted(images_bhwc, corruption, cache_dir, seed, fingerprint)
        yield corruption.name, corruption.severity, images


def _corrupted(
    images_bhwc: np.ndarray, corruption: Corruption, cache_dir: str | os.PathLike[str] | None,
    seed: int, fingerprint: str | None,
) -> np.ndarray:
    corruption.require_images(images_bhwc)

    def made() -> np.ndarray:
        return np.asarray(corruption(jax.random.key(seed, impl=KEY_KIND), images_bhwc))

    if cache_dir is None or not images_bhwc.size:
        return made()
    path = pathlib.Path(cache_dir) / _file_name(fingerprint, corruption, seed)
    kept = _read(path, images_bhwc.shape)
    if kept is None:
        kept = _write(path, made())
    return kept


def _file_name(fingerprint: str, corruption: Corruption, seed: int) -> str:
    if not re.fullmatch(r"[\w.-]+", fingerprint, re.ASCII) or fingerprint.startswith("."):
        raise UsageError(
            f"fingerprint={fingerprint!r}; expected letters, digits, '.', '_' and '-', as "
            "images_fingerprint gives"
        )
    options = f"-{corruption.options}" if corruption.options else ""
    return f"{fingerprint}-{corruption.name}-{corruption.severity}{options}-{seed}-v{VERSION}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """What stands before the values in a NumPy file of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _checksum(array: np.ndarray) -> bytes:
    return zlib.crc32(memoryview(array).cast("B")).to_bytes(CHECKSUM_BYTES, "little")


def _mapped(path: pathlib.Path, shape: tuple[int, ...]) -> np.memmap:
    return np.memmap(path, np.uint8, "r", len(_header(shape)), shape)


def _read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a file, mapped into memory; None without one, or with a damaged one, told."""
    header = _header(shape)
    try:
        with open(path, "rb") as file:
            begins, num_bytes = file.read(len(header)), file.seek(0, os.SEEK_END)
            file.seek(-min(CHECKSUM_BYTES, num_bytes), os.SEEK_END)
            checksum = file.read()
        expected = len(header) + math.prod(shape) + CHECKSUM_BYTES
        if num_bytes != expected:
            found = f"{num_bytes} bytes, expected {expected}"
        elif begins != header:
            found = f"no header of uint8 {list(shape)}"
        elif checksum != _checksum(kept := _mapped(path, shape)):
            found = "the checksum is another"
        else:
            return kept
    except FileNotFoundError:
        return None
    except OSError as error:
        found = " ".join(str(error).split())
    log.warning("the kept images %r are damaged and are made again (%s)", str(path), found)
    return None


def _write(path: pathlib.Path, array: np.ndarray) -> np.ndarray:
    """Writes a file so that a reader sees all of it or none; returns its array as `_read` does."""
    array = np.ascontiguousarray(array)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "xb") as file:
                file.write(_header(array.shape))
                file.write(array)
                file.write(_checksum(array))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        return _mapped(path, array.shape)
    except OSError as error:
        raise WriteError(path.name, path, error, "nothing of it was left behind") from error
