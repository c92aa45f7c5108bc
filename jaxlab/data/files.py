"""Files in a folder: listed in a fixed order, selected by pattern, read with retries."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

from jaxlab.core import UsageError
from jaxlab.data.retries import read_with_retries


def existing_folder(path: str | os.PathLike[str], expected: str) -> pathlib.Path:
    """Returns `path` if it is a folder.

    Raises:
        UsageError: it is not; `expected` describes the folder that it should be.
    """
    folder = pathlib.Path(path)
    if not folder.exists():
        raise UsageError(f"{str(folder)!r} does not exist; expected {expected}")
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; expected {expected}")
    return folder


def visible_entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries of `folder` by name, without hidden ones and symbolic links."""
    return [p for p in sorted(folder.iterdir(), key=lambda p: p.name) if _is_visible(p)]


def files_below(folder: pathlib.Path, *, visible_only: bool = False) -> list[pathlib.Path]:
    """Returns the files in `folder` and its sub-folders, sorted by path.

    Symbolic links to folders are never followed.

    Args:
        folder: where to look.
        visible_only: leaves out symbolic links, files and folders whose name starts with a dot, and
            everything in such folders.
    """
    files: list[pathlib.Path] = []
    for parent, folders, names in os.walk(folder):
        if visible_only:
            folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [pathlib.Path(parent, name) for name in names]
        files += [p for p in paths if p.is_file() and (not visible_only or _is_visible(p))]
    return sorted(files, key=pathlib.Path.as_posix)


def _is_visible(path: pathlib.Path) -> bool:
    return not path.name.startswith(".") and not path.is_symlink()


def matching_files(files: Iterable[pathlib.Path], patterns: Sequence[str]) -> list[pathlib.Path]:
    """Returns the `files` that match one of the shell patterns, in order."""
    return [p for p in files if any(p.match(pattern) for pattern in patterns)]


def no_match_error(
    folder: pathlib.Path, files: Iterable[pathlib.Path], patterns: Sequence[str]
) -> UsageError:
    """Returns the error for a folder in which no file matches; lists the suffixes that exist."""
    suffixes = Counter(p.suffix or p.name for p in files).most_common(8)
    listing = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes) or "no files"
    return UsageError(
        f"no file in {str(folder)!r} matches {','.join(patterns)!r}; there are: {listing}; pass "
        f"another folder or pattern"
    )


def files_with_text(files: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the `files` that are not empty.

    Raises:
        UsageError: one is missing, is a folder, or is not readable.
    """
    return [p for p in files if _checked_size(p) > 0]


def _checked_size(path: pathlib.Path) -> int:
    if not path.exists():
        raise UsageError(
            f"{str(path)!r} does not exist; expected a text file or a folder of text files"
        )
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder in a list of files; pass the folder alone")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{str(path)!r} is not readable; change its permissions or leave it out")
    return path.stat().st_size


def all_empty_error(folder: pathlib.Path, count: int) -> UsageError:
    """Returns the error for a folder whose `count` files are all empty."""
    return UsageError(f"all {count} files in {str(folder)!r} are empty; expected one with text")


def read_file(path: pathlib.Path) -> bytes:
    """Returns the bytes of a file, read by `read_with_retries`.

    Raises:
        UsageError: it cannot be read.
    """
    return read_with_retries(path.read_bytes, repr(str(path)))


def is_binary(data: bytes) -> bool:
    """Returns whether `data` has a NUL byte, which text does not."""
    return b"\0" in data


def with_path_header(path: str, text: bytes) -> bytes:
    """Returns `text` after a line `# <path>`, ending with a newline.

    >>> with_path_header("a/b.py", b"x = 1")
    b'# a/b.py\\nx = 1\\n'
    """
    return b"# " + path.encode("utf-8", "replace") + b"\n" + with_newline(text)


def with_newline(text: bytes) -> bytes:
    """Returns `text`, ending with a newline, which is added if missing."""
    return text if text.endswith(b"\n") else text + b"\n"
