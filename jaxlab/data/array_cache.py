"""Arrays that are costly to make, kept in a folder that the user names."""

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
"""The file of an entry that says what is in it: its key, then each other file with its sum."""
LABEL_LENGTH = 48
"""The most letters of a label in the name of an entry: names have an end at 255 bytes."""
CHUNK = 1 << 20
"""Bytes of a file that are summed at once."""


def cached_arrays(
    folder: str | os.PathLike[str] | None, label: str, key: Any, make: Callable[[], Arrays]
) -> Arrays:
    """Returns `make()`, or what it returned when it was last called with the same `key`.

    An entry is a sub-folder `<label>-<digest of key>` with one `.npy` file an array, read as
    read-only memory maps, and a file with the key and with the length and CRC-32 of each. It
    appears whole or not at all, also when several processes make it at once. It is checked whenever
    it is read: one that is damaged is made again, with a warning of one line.

    Args:
        folder: where entries are kept, made if it is missing; None: nowhere, `make` is called.
        label: the readable part of an entry's name.
        key: JSON; all that the arrays depend on.
        make: makes the arrays; none may be of objects.

    Raises:
        WriteError: an entry that cannot be written.

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
    told = json.dumps(key, sort_keys=True)
    readable = re.sub(r"[^\w.-]+", "_", label)[:LABEL_LENGTH]
    entry = pathlib.Path(folder).expanduser() / f"{readable}-{digest(told)}"
    kept, damage = _read(entry, told)
    if kept is not None:
        return kept
    if damage:
        log.warning("the kept arrays %r are damaged and are made again (%s)", str(entry), damage)
    made = make()
    _write(entry, told, made)
    kept, _ = _read(entry, told)
    # None: another process that saw the damage too is exchanging the entry at this moment.
    return made if kept is None else kept


def _read(entry: pathlib.Path, told: str) -> tuple[Arrays | None, str]:
    """The arrays of a sound entry, or None and what is wrong; `""` where there is none."""
    if not os.path.lexists(entry):
        return None, ""
    try:
        files = sorted(entry.glob("*.npy"))
        said, found = (entry / CONTENTS).read_bytes().split(b"\n"), _contents(told, files)
        if said == found:
            return {file.stem: np.load(file, mmap_mode="r") for file in files}, ""
    except (OSError, ValueError, EOFError) as error:
        return None, " ".join(str(error).split())
    others = [line.decode() for line in found[1:-1] if line not in said]
    if said[0] != found[0]:
        return None, f"another key in {CONTENTS}"
    if others:
        return None, f"{', '.join(others)}, where {CONTENTS} says otherwise"
    return None, f"{CONTENTS} says more than is there"


def _contents(told: str, files: list[pathlib.Path]) -> list[bytes]:
    """Lines: the key, one for each file with its length and checksum, and an empty one."""
    lines = [told]
    buffer = memoryview(bytearray(CHUNK))
    for file in sorted(files):
        checksum = num_bytes = 0
        # Read, not mapped: a file that is cut off meanwhile is an error then, not a dead process.
        with open(file, "rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                checksum = zlib.crc32(buffer[:count], checksum)
                num_bytes += count
        lines.append(f"{file.name} of {num_bytes} bytes with CRC-32 {checksum:08x}")
    return [line.encode() for line in (*lines, "")]


def _write(entry: pathlib.Path, told: str, arrays: Arrays) -> None:
    """Writes beside `entry`, then renames: whoever comes second leaves what is there."""
    scratch = entry.with_name(f".{uuid.uuid4().hex}")
    draft = scratch / "new"
    try:
        draft.mkdir(parents=True)
        files = [draft / f"{name}.npy" for name in arrays]
        for file in files:
            with _settled(file) as opened:
                # Given the file itself, NumPy does not say why it cannot be written.
                sink = types.SimpleNamespace(write=opened.write)
                np.save(sink, arrays[file.stem], allow_pickle=False)
        with _settled(draft / CONTENTS) as opened:
            opened.write(b"\n".join(_contents(told, files)))
        kept, _ = _read(entry, told)
        if kept is None:
            _exchange(draft, entry, scratch / "damaged")
    except OSError as error:
        raise WriteError(
            f"kept arrays {entry.name!r}", entry.parent, error, "nothing whole there is changed"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _settled(file: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file, which is on the device at the end: a full disk is told here at the latest."""
    with open(file, "xb") as opened:
        yield opened
        opened.flush()
        os.fsync(opened.fileno())


def _exchange(draft: pathlib.Path, entry: pathlib.Path, aside: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(entry, aside)
    try:
        os.rename(draft, entry)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
