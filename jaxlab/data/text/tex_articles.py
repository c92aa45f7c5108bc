"""Articles in TeX, one document each, as in the arXiv data of arXiv 2203.07852."""

from __future__ import annotations

import itertools
import os
import pathlib
import posixpath
import re
from collections.abc import Sequence

from jaxlab.data.files import (
    all_empty_error,
    existing_folder,
    files_below,
    files_with_text,
    is_binary,
    matching_files,
    no_match_error,
    read_file,
    visible_entries,
    with_newline,
)

_PATTERN = "*.tex"
# The number of files that TeX can have open at once: `max_in_open` of its distributions.
_MAX_DEPTH = 15
# Escaped characters and comments are matched, and so skipped: neither may hide or form a command.
_PASSED_OVER = rb"|\\.|%[^\n]*"
_INPUT = re.compile(
    rb"\\(?:"
    rb"(?:input|include)(?![A-Za-z@])\s*(?:\{(?P<name>[^{}]*)\}|(?P<bare>[^\s{}\\%]+))"
    rb"|(?P<subfile>subfile|subfileinclude)(?![A-Za-z@])\s*\{(?P<part>[^{}]*)\}"
    rb"|(?P<import>(?:sub)?(?:import|inputfrom|includefrom))(?![A-Za-z@])\*?\s*"
    rb"\{(?P<folder>[^{}]*)\}\s*\{(?P<file>[^{}]*)\}"
    rb")" + _PASSED_OVER
)
_CLASS = re.compile(
    rb"(\\document(?:class|style)(?![A-Za-z]))\s*(?:\[[^\]]*\])?\s*(\{\s*subfiles\s*\})?"
    + _PASSED_OVER
)
_BODY = re.compile(rb"\\(?:(begin)|(end))\s*\{document\}" + _PASSED_OVER)
# After a command, TeX skips blanks and the end of the line. `\newif` only names what follows it.
_CONDITION = re.compile(
    rb"\\newif\s*\\[A-Za-z@]+"
    rb"|\\(?P<name>if[A-Za-z@]*|else|fi)(?![A-Za-z@])(?:[ \t]*\n|[ \t]+)?" + _PASSED_OVER
)
_ENDS_IN_COMMAND = re.compile(rb"\\[A-Za-z@]+\Z")
# These look like conditionals but have no `\fi`: in mathematics, and in ifthen and etoolbox.
_NO_CONDITION = frozenset(
    b"iff ifthenelse ifblank ifbool ifboolexpe ifboolexpr ifcsdef ifcsempty ifcsmacro ifcsparam "
    b"ifcsstring ifcsundef ifcsvoid ifdef ifdefcounter ifdefdimen ifdefempty ifdeflength "
    b"ifdefmacro ifdefparam ifdefstrequal ifdefstring ifdefvoid ifdimcomp ifdimequal ifdimgreater "
    b"ifdimless ifinlist ifinlistcs ifnotblank ifnotbool ifnottoggle ifnumcomp ifnumequal "
    b"ifnumgreater ifnumless ifnumodd ifpatchable ifrmnum ifstrempty ifstrequal iftoggle ifundef "
    b"ifxinlist ifxinlistcs".split()
)


class TexArticles:
    r"""A folder of articles: every sub-folder with `.tex` files, and every `.tex` file in it.

    The document of a sub-folder is its main file, in which every `\input` and `\include` of a file
    in the sub-folder is replaced by the file, recursively. The same holds for
    `\import{folder}{file}` and its variants (`\subimport`, `\inputfrom`, ...), and for `\subfile`,
    which includes the text between the file's `\begin{document}` and `\end{document}`. Text between
    `\iffalse` and its `\fi` (or `\else`) is dropped. The main file is the one with `\documentclass`
    (or `\documentstyle`); of several, one that is not a subfile, and of these the one that gives
    the longest document. If there is none, the document is all `.tex` files in sorted path order,
    except those that another file includes.

    As in TeX, a name is tried with `.tex` first, and is looked up in the folder of the last import,
    the main file's folder, the sub-folder, and the folder of the including file, in this order. A
    command stays unchanged if its file is missing, outside the article, binary (with a NUL byte),
    an ancestor of itself, or more than 15 files deep. Commands in comments, and an `\iffalse`
    without `\fi`, stay too. A `.tex` file next to the sub-folders is an article by itself and
    includes no other file. Hidden files and folders and symbolic links are left out.

    Opening lists the files; their contents are read on access.

    Args:
        folder: the folder of the articles, which are named after their sub-folder or file and
            sorted by name.

    Raises:
        UsageError: the folder does not exist or is a file; it has no `.tex` file, or all are empty.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        root = existing_folder(folder, "a folder with one sub-folder or .tex file per article")
        files = {entry: _files_of(entry) for entry in visible_entries(root)}
        sources = {entry: matching_files(inside, [_PATTERN]) for entry, inside in files.items()}
        if not any(sources.values()):
            raise no_match_error(root, itertools.chain(*files.values()), [_PATTERN])
        self._entries = tuple(entry for entry in sources if files_with_text(sources[entry]))
        if not self._entries:
            raise all_empty_error(root, sum(map(len, sources.values())))
        self._files = tuple(tuple(files[entry]) for entry in self._entries)
        self.names = tuple(entry.name for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> bytes:
        entry = self._entries[index]
        return _Article(entry if entry.is_dir() else entry.parent, self._files[index]).document()


def _files_of(entry: pathlib.Path) -> list[pathlib.Path]:
    return files_below(entry, visible_only=True) if entry.is_dir() else [entry]


class _Article:
    """Assembles the document of one article; its files are named by their path below `root`."""

    def __init__(self, root: pathlib.Path, files: Sequence[pathlib.Path]):
        self._files = {p.relative_to(root).as_posix(): p for p in files}
        self._texts: dict[str, bytes] = {}

    def document(self) -> bytes:
        sources = [name for name in self._files if name.endswith(".tex")]
        sources = [name for name in sources if not is_binary(self._text(name))]
        classes = {name: _class_of(self._text(name)) for name in sources}
        mains = [name for name, kind in classes.items() if kind == "main"]
        mains = mains or [name for name, kind in classes.items() if kind]
        if mains:
            return max((self._resolved(main)[0] for main in mains), key=len)
        resolved = {name: self._resolved(name) for name in sources}
        included = {other for _, others in resolved.values() for other in others}
        parts, covered = [], set()
        # Files that no other includes come first; the rest matters only if files form a cycle.
        for name in sorted(sources, key=lambda name: (name in included, name)):
            if name not in covered:
                text, others = resolved[name]
                parts.append(text)
                covered |= others
        return b"".join([*map(with_newline, parts[:-1]), *parts[-1:]])

    def _resolved(self, main: str) -> tuple[bytes, set[str]]:
        """Returns the text of `main` with its inputs replaced, and the names of included files."""
        included: set[str] = set()
        top = posixpath.dirname(main)

        def expand(name: str, text: bytes, folder: str, above: tuple[str, ...]) -> bytes:
            """Replaces inputs in `text` of the file `name`; the last import named `folder`."""

            def replace(match: re.Match[bytes]) -> bytes:
                wanted, folders = match["name"] or match["bare"] or match["part"], folders_here
                if match["import"]:
                    sub = match["import"].startswith(b"sub")
                    wanted = match["file"]
                    inner = _path(match["folder"])
                    folders = [posixpath.join(f, inner) for f in folders_here[0 if sub else 1 :]]
                file_and_folder = self._find(wanted, folders) if wanted else None
                if file_and_folder is None or len(opened) >= _MAX_DEPTH:
                    return match[0]
                other, within = file_and_folder
                if other in opened:
                    return match[0]
                included.add(other)
                text = self._text(other)
                if match["subfile"]:
                    return expand(other, _body(text), posixpath.dirname(other), opened)
                return expand(other, text, within if match["import"] else folder, opened)

            opened = (*above, name)
            folders_here = [folder, top, "", posixpath.dirname(name)]
            return _INPUT.sub(replace, text)

        return expand(main, self._text(main), top, ()), included

    def _find(self, wanted: bytes, folders: Sequence[str]) -> tuple[str, str] | None:
        """Returns the file that a name refers to in one of `folders`, and that folder."""
        name = _path(wanted)
        for folder in folders:
            path = posixpath.normpath(posixpath.join(folder, name))
            for known in (f"{path}.tex", path):
                if known in self._files and not is_binary(self._text(known)):
                    return known, folder
        return None

    def _text(self, name: str) -> bytes:
        if name not in self._texts:
            self._texts[name] = _without_false(read_file(self._files[name]))
        return self._texts[name]


def _path(written: bytes) -> str:
    return written.decode("utf-8", "surrogateescape").strip().strip('"')


def _class_of(text: bytes) -> str | None:
    """Returns 'subfile' for the document class of a subfile, 'main' for another, else None."""
    declared = next((match for match in _CLASS.finditer(text) if match[1]), None)
    return None if declared is None else "subfile" if declared[2] else "main"


def _body(text: bytes) -> bytes:
    """Returns the text between the beginning and the end of the document, or all without them."""
    first, last = 0, len(text)
    for match in _BODY.finditer(text):
        if match[1] and not first:
            first = match.end()
        elif match[2]:
            last = match.start()
            break
    return text[first:last]


def _without_false(text: bytes) -> bytes:
    r"""Removes the text that `\iffalse` hides; an `\iffalse` without `\fi` stays."""
    visible, at = bytearray(), 0  # the output so far, and where the rest of the input begins
    hidden, depth = None, 0  # where the hidden text begins, and the conditionals open in it
    shown: list[bool] = []  # open conditionals in shown text; True for the `\else` of `\iffalse`
    for match in _CONDITION.finditer(text) if rb"\iffalse" in text else ():
        name = match["name"]
        if name is None or name in _NO_CONDITION:
            continue
        begins, cut = name not in (b"else", b"fi"), None
        if hidden is None:
            if name == b"iffalse":
                hidden, depth = match.start(), 0
            elif begins:
                shown.append(False)
            elif name == b"fi" and shown and shown.pop():
                cut = match.start()
        elif begins:
            depth += 1
        elif depth:
            depth -= name == b"fi"
        else:
            cut, hidden = hidden, None
            if name == b"else":
                shown.append(True)
        if cut is not None:
            visible += text[at:cut]
            # Keep the blanks if a command would otherwise run into the text after them.
            at = match.end("name") if _ENDS_IN_COMMAND.search(visible[-50:]) else match.end()
    return bytes(visible) + text[at:]
