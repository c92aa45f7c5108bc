"""Arrays that are costly to make, kept in a folder that the user names."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, WriteError
from jaxlab.data.state import digest

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by name."""


def kept_arrays(
    folder: str | os.PathLike[str] | None, label: str, key: Any, make: Callable[[], Arrays]
) -> Arrays:
    """Returns `make()`, or what it returned when it was last called with the same `key`.

    An entry is a sub-folder `<label>-<digest of key>` with one `.npy` file an array, read as memory
    maps. It appears whole or not at all, also when several processes make it at once.

    Args:
        folder: where entries are kept, made if it is missing; None: nowhere, `make` is called.
        label: the readable part of an entry's name.
        key: JSON; all that the arrays depend on.
        make: makes the arrays; none may be of objects.

    Raises:
        UsageError: an entry that cannot be read.
        WriteError: an entry that cannot be written.
    """
    if folder is None:
        return make()
    told = json.dumps(key, sort_keys=True)
    readable = re.sub(r"[^\w.-]+", "_", label)
    entry = pathlib.Path(folder).expanduser() / f"{readable}-{digest(told)}"
    if not entry.is_dir():
        _write(entry, told, make())
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(entry.glob("*.npy"))}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"kept arrays in {str(entry)!r} cannot be read ({error}); delete that folder"
        ) from error


def _write(entry: pathlib.Path, told: str, arrays: Arrays) -> None:
    """Writes beside `entry`, then renames: whoever comes second leaves what is there."""
    draft = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        draft = tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent)
        for name, array in arrays.items():
            np.save(pathlib.Path(draft, f"{name}.npy"), array)
        pathlib.Path(draft, "key.json").write_text(told)
        try:
            os.rename(draft, entry)
        except OSError:
            if not entry.is_dir():
                raise
    except OSError as error:
        raise WriteError(
            f"kept arrays {entry.name!r}", entry.parent, error, "nothing there is changed"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
