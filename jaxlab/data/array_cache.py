"""A cache on disk of arrays that are expensive to compute."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import types
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from jaxlab.core import WriteError
from jaxlab.data.digest import digest

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by name."""
CONTENTS = "contents.txt"
"""The file of an entry that lists its key, and the length and checksum of every other file."""
LABEL_LENGTH = 48
"""The longest label in an entry's name, in characters: file names are limited to 255 bytes."""
CHUNK = 1 << 20
"""Bytes of a file to read at once for its checksum."""


def cached_arrays(
    folder: str | os.PathLike[str] | None, label: str, key: Any, make: Callable[[], Arrays]
) -> Arrays:
    """Returns the cached arrays for `key`, or calls `make()` and caches its result.

    A cache entry is a sub-folder `<label>-<digest of key>` with one `.npy` file per array, opened
    as a read-only memory map, and a file with the key and the length and CRC-32 of each array file.
    An entry appears atomically, even if several processes make it at once. Every read checks it; a
    damaged entry is made again, with a one-line warning.

    Args:
        folder: the cache, created if missing; None: no cache, `make` is called.
        label: the readable part of the entry's name.
        key: JSON; everything that the arrays depend on.
        make: makes the arrays, which must not have the dtype object.

    Raises:
        WriteError: the entry cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for level in (1, 2):
    ...         arrays = cached_arrays(folder, "levels", ["v1"], lambda: {"x": np.full(3, level)})
    ...         print(arrays["x"].tolist())
    [1, 1, 1]
    [1, 1, 1]
    """
    if folder is None:
        return make()
    key_json = json.dumps(key, sort_keys=True)
    readable = re.sub(r"[^\w.-]+", "_", label)[:LABEL_LENGTH]
    entry = pathlib.Path(folder).expanduser() / f"{readable}-{digest(key_json)}"
    cached, damage = _read(entry, key_json)
    if cached is not None:
        return cached
    if damage:
        log.warning("the cached arrays %r are damaged; making them again (%s)", str(entry), damage)
    arrays = make()
    _write(entry, key_json, arrays)
    cached, _ = _read(entry, key_json)
    # None: another process that noticed the damage is replacing the entry at this moment.
    return arrays if cached is None else cached


def _read(entry: pathlib.Path, key_json: str) -> tuple[Arrays | None, str]:
    """Returns the arrays of a sound entry, else None and the damage (`""` for no entry)."""
    if not os.path.lexists(entry):
        return None, ""
    try:
        files = sorted(entry.glob("*.npy"))
        listed, actual = (entry / CONTENTS).read_bytes().split(b"\n"), _contents(key_json, files)
        if listed == actual:
            return {file.stem: np.load(file, mmap_mode="r") for file in files}, ""
    except (OSError, ValueError, EOFError) as error:
        return None, " ".join(str(error).split())
    unlisted = [line.decode() for line in actual[1:-1] if line not in listed]
    if listed[0] != actual[0]:
        return None, f"another key in {CONTENTS}"
    if unlisted:
        return None, f"{', '.join(unlisted)}: not what {CONTENTS} lists"
    return None, f"a file that {CONTENTS} lists is missing"


def _contents(key_json: str, files: list[pathlib.Path]) -> list[bytes]:
    """Returns lines: the key, the length and checksum of each file, and an empty line."""
    lines = [key_json]
    buffer = memoryview(bytearray(CHUNK))
    for file in sorted(files):
        checksum = num_bytes = 0
        # Read, not mapped: truncating a mapped file kills the process that reads it.
        with open(file, "rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                checksum = zlib.crc32(buffer[:count], checksum)
                num_bytes += count
        lines.append(f"{file.name} of {num_bytes} bytes with CRC-32 {checksum:08x}")
    return [line.encode() for line in (*lines, "")]


def _write(entry: pathlib.Path, key_json: str, arrays: Arrays) -> None:
    """Writes next to `entry`, then renames; leaves a sound entry of another process in place."""
    scratch = entry.with_name(f".{uuid.uuid4().hex}")
    draft = scratch / "new"
    try:
        draft.mkdir(parents=True)
        files = [draft / f"{name}.npy" for name in arrays]
        for file in files:
            with _synced(file) as opened:
                # With the file itself, NumPy hides the reason of a failed write.
                sink = types.SimpleNamespace(write=opened.write)
                np.save(sink, arrays[file.stem], allow_pickle=False)
        with _synced(draft / CONTENTS) as opened:
            opened.write(b"\n".join(_contents(key_json, files)))
        cached, _ = _read(entry, key_json)
        if cached is None:
            _replace(draft, entry, scratch / "damaged")
    except OSError as error:
        raise WriteError(
            f"cached arrays {entry.name!r}", entry.parent, error, "other entries are intact"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _synced(file: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a new file and syncs it at the end, so that a full disk is noticed here."""
    with open(file, "xb") as opened:
        yield opened
        opened.flush()
        os.fsync(opened.fileno())


def _replace(draft: pathlib.Path, entry: pathlib.Path, aside: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(entry, aside)
    try:
        os.rename(draft, entry)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
