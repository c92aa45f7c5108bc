"""Sources: random-access sequences of whole documents, as raw bytes.

Every source has `len(source)`, `source[i] -> bytes` and `source.names`. A document is read only
when it is accessed.
"""

from __future__ import annotations

import os
import pathlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from jaxlab.core import UsageError
from jaxlab.data.digest import digest
from jaxlab.data.files import (
    all_empty_error,
    files_below,
    files_with_text,
    matching_files,
    no_match_error,
    read_file,
    with_path_header,
)


@runtime_checkable
class Source(Protocol):
    """A sequence of documents; splits and saved positions depend on their `names`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each document, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


class Documents:
    """Documents held in memory.

    >>> source = Documents(["one", b"two"])
    >>> len(source), source[0], source.names
    (2, b'one', ('0', '1'))

    Args:
        documents: bytes, or str, which is encoded as UTF-8.
        names: one name per document; None: its number.

    Raises:
        UsageError: the numbers of names and documents differ.
    """

    def __init__(self, documents: Iterable[bytes | str], names: Sequence[str] | None = None):
        self._documents = tuple(d.encode() if isinstance(d, str) else bytes(d) for d in documents)
        self.names = tuple(map(str, range(len(self._documents)) if names is None else names))
        if len(self.names) != len(self._documents):
            raise UsageError(
                f"names has {len(self.names)} entries for {len(self._documents)} documents; "
                f"pass one name per document, or None"
            )

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> bytes:
        return self._documents[index]


class Subset:
    """Some documents of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Iterable[int]):
        self.source = source
        self.indices = tuple(int(i) for i in indices)
        self.names = tuple(source.names[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> bytes:
        return self.source[self.indices[index]]


class TextFiles:
    """Files on disk, one document per file; empty files are left out.

    Names are paths relative to the folder, or to the deepest folder that contains all listed files.

    Args:
        paths: a folder, searched recursively and sorted by relative path; or one file; or a list of
            files, in its order.
        pattern: shell pattern that file names in a folder must match.

    Raises:
        UsageError: a path is missing or unreadable, no file matches, or every file is empty.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        pattern: str = "*.txt",
    ):
        single = isinstance(paths, (str, os.PathLike))
        listed = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        files = [pathlib.Path(path) for path in listed]
        if single and files[0].is_dir():
            root = files[0]
            candidates = files_below(root)
            files = matching_files(candidates, [pattern])
            if not files:
                raise no_match_error(root, candidates, [pattern])
        else:
            if not files:
                raise UsageError("paths is an empty list; pass a folder or at least one file")
            root = pathlib.Path(os.path.commonpath([p.absolute().parent for p in files]))
            files = [p.absolute() for p in files]
        with_text = files_with_text(files)
        if not with_text:
            raise all_empty_error(root, len(files))
        self.files = tuple(with_text)
        self.names = tuple(p.relative_to(root).as_posix() for p in with_text)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> bytes:
        return read_file(self.files[index])


# Distributions package these separately, generate them at build time or patch them; without them,
# the documents of a Python version do not depend on how it was packaged.
_PACKAGED_APART = frozenset(
    {
        "_distutils_system_mod",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "sitecustomize",
        "tkinter",
        "turtle",
        "turtledemo",
        "usercustomize",
        "venv",
    }
)
_NOT_SOURCES = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "idle_test",
        "macholib",
        "site-packages",
        "test",
        "tests",
    }
)


class StandardLibrary:
    """The source code of the running interpreter's standard library.

    A document is a top-level module or package: all its `.py` files in sorted path order, each
    after a line `# <relative path>`. Tests, installed packages, and modules that distributions
    package separately from the interpreter are left out.

    Raises:
        UsageError: the `.py` files of the standard library are not on disk.
    """

    def __init__(self) -> None:
        self._root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        modules = dict(_modules(self._root))
        if not modules:
            raise UsageError(
                f"no .py files of the standard library in {str(self._root)!r}; pass a folder of "
                f"text files, such as 'text:/path/to/folder'"
            )
        self.names = tuple(modules)
        self._files = tuple(modules.values())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> bytes:
        return b"".join(
            with_path_header(path.relative_to(self._root).as_posix(), read_file(path))
            for path in self._files[index]
        )


def _modules(root: pathlib.Path) -> Iterator[tuple[str, tuple[pathlib.Path, ...]]]:
    """Yields (name, files) of each top-level module and package below `root`, by name."""
    for entry in sorted(root.glob("*"), key=lambda p: p.stem):
        name = entry.stem
        if name in _PACKAGED_APART | _NOT_SOURCES or name.startswith("_sysconfigdata"):
            continue
        if entry.suffix == ".py" and entry.is_file():
            yield name, (entry,)
        elif (entry / "__init__.py").is_file():
            files = (p.relative_to(root) for p in entry.rglob("*.py"))
            paths = sorted(p.as_posix() for p in files if _NOT_SOURCES.isdisjoint(p.parts[:-1]))
            yield name, tuple(root / p for p in paths)


def split(source: Source, held_out_rate: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits a source into training and held-out documents.

    The `round(held_out_rate * n)` documents (at least one, at most n - 1) with the smallest hash of
    `seed` and name are held out.

    Returns:
        (train, held_out), both in the order of `source` and never empty.

    Raises:
        UsageError: `held_out_rate` is not between 0 and 1, or there are fewer than two documents.
    """
    if not 0 < held_out_rate < 1:
        raise UsageError(f"held_out_rate={held_out_rate}; expected a fraction between 0 and 1")
    if len(source) < 2:
        raise UsageError(
            f"the source has {len(source)} document(s), too few to hold one out; pass a separate "
            f"held-out folder"
        )
    count = min(max(round(held_out_rate * len(source)), 1), len(source) - 1)
    ranked = sorted(range(len(source)), key=lambda i: (digest(f"{seed}/{source.names[i]}"), i))
    return Subset(source, sorted(ranked[count:])), Subset(source, sorted(ranked[:count]))


def source_fingerprint(source: Source) -> str:
    """Returns 16 hex digits that change when a document is added, removed, renamed or moved."""
    return digest("\0".join(source.names))
