"""Articles in TeX: one document an article, as in the arXiv set of arXiv 2203.07852."""

from __future__ import annotations

import itertools
import os
import pathlib
import posixpath
import re
from collections.abc import Sequence

from jaxlab.data.files import (
    all_empty,
    existing_folder,
    files_below,
    files_with_text,
    is_binary,
    matching_files,
    no_match,
    read_file,
    visible_entries,
    with_newline,
)

_PATTERN = "*.tex"
# How many files TeX itself keeps open at once: `max_in_open` of its distributions.
_MAX_DEPTH = 15
# An escaped character and a comment are passed over, so that neither hides or makes a command.
_PASSED_OVER = rb"|\\.|%[^\n]*"
_INPUT = re.compile(
    rb"\\(?:input|include)(?![A-Za-z@])\s*(?:\{([^{}]*)\}|([^\s{}\\%]+))" + _PASSED_OVER
)
_CLASS = re.compile(rb"(\\document(?:class|style)(?![A-Za-z]))" + _PASSED_OVER)


class TexArticles:
    r"""A folder of articles: every sub-folder with `.tex` files, and every `.tex` file beside them.

    The document of a sub-folder is its main file, with each `\input` and `\include` of a file in
    the sub-folder replaced by that file, and so on within it. The main file is the one with
    `\documentclass` (or `\documentstyle`); of several, the one that makes the longest document.
    Where none has it, the document is all `.tex` files in sorted path order, without those that
    another takes in.

    As in TeX, `.tex` is added to a name first, and a name is looked up from the main file's folder;
    then from the sub-folder, then from the folder of the file that asks. What cannot be replaced is
    left as it is: a file that is missing, outside the article or binary (with a NUL byte), one that
    would take in itself, and one more than 15 files deep. Commands in comments are left too. A
    `.tex` file beside the sub-folders is an article by itself, and takes in no other file. Hidden
    files and folders, and symbolic links, are left out.

    Opening lists the files; contents are read when a document is asked for.

    Args:
        folder: holds the articles, which are named after their sub-folder or file, in sorted order.

    Raises:
        UsageError: the folder does not exist or is a file; it has no `.tex` file, or all are empty.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        root = existing_folder(folder, "a folder with one sub-folder or .tex file an article")
        there = {entry: _files_of(entry) for entry in visible_entries(root)}
        found = {entry: matching_files(files, [_PATTERN]) for entry, files in there.items()}
        if not any(found.values()):
            raise no_match(root, itertools.chain(*there.values()), [_PATTERN])
        self._entries = tuple(entry for entry in found if files_with_text(found[entry]))
        if not self._entries:
            raise all_empty(root, sum(map(len, found.values())))
        self._files = tuple(tuple(there[entry]) for entry in self._entries)
        self.names = tuple(entry.name for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> bytes:
        entry = self._entries[index]
        return _Article(entry if entry.is_dir() else entry.parent, self._files[index]).document()


def _files_of(entry: pathlib.Path) -> list[pathlib.Path]:
    return files_below(entry, visible_only=True) if entry.is_dir() else [entry]


class _Article:
    """One article while its document is made; its files go by their path below `root`."""

    def __init__(self, root: pathlib.Path, files: Sequence[pathlib.Path]):
        self._files = {p.relative_to(root).as_posix(): p for p in files}
        self._texts: dict[str, bytes] = {}

    def document(self) -> bytes:
        sources = [name for name in self._files if name.endswith(".tex")]
        sources = [name for name in sources if not is_binary(self._text(name))]
        mains = [name for name in sources if any(m[1] for m in _CLASS.finditer(self._text(name)))]
        if mains:
            return max((self._resolved(main)[0] for main in mains), key=len)
        resolved = {name: self._resolved(name) for name in sources}
        taken_in = {other for _, others in resolved.values() for other in others}
        parts, covered = [], set()
        # Files that nobody takes in come first: the others are left only where they form a cycle.
        for name in sorted(sources, key=lambda name: (name in taken_in, name)):
            if name not in covered:
                text, others = resolved[name]
                parts.append(text)
                covered |= others
        return b"".join([*map(with_newline, parts[:-1]), *parts[-1:]])

    def _resolved(self, main: str) -> tuple[bytes, set[str]]:
        """The text of `main` with its inputs in place, and the names of the files taken in."""
        taken_in = set()

        def expand(name: str, above: tuple[str, ...]) -> bytes:
            def replace(match: re.Match[bytes]) -> bytes:
                wanted = match[1] or match[2]
                found = self._find(wanted, [main, "", name]) if wanted else None
                if found is None or found in opened or len(opened) >= _MAX_DEPTH:
                    return match[0]
                taken_in.add(found)
                return expand(found, opened)

            opened = (*above, name)
            return _INPUT.sub(replace, self._text(name))

        return expand(main, ()), taken_in

    def _find(self, wanted: bytes, askers: Sequence[str]) -> str | None:
        """The file of the article that is meant by a name in the folder of one of `askers`."""
        name = wanted.decode("utf-8", "surrogateescape").strip().strip('"')
        for asker in askers:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(asker), name))
            for known in (f"{path}.tex", path):
                if known in self._files and not is_binary(self._text(known)):
                    return known
        return None

    def _text(self, name: str) -> bytes:
        if name not in self._texts:
            self._texts[name] = read_file(self._files[name])
        return self._texts[name]
