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
# Behind a command TeX passes over blanks and the end of the line. `\newif` only names what follows.
_CONDITION = re.compile(
    rb"\\newif\s*\\[A-Za-z@]+"
    rb"|\\(?P<name>if[A-Za-z@]*|else|fi)(?![A-Za-z@])(?:[ \t]*\n|[ \t]+)?" + _PASSED_OVER
)
_ENDS_IN_COMMAND = re.compile(rb"\\[A-Za-z@]+\Z")
# Begin as conditionals do, but end without `\fi`: in mathematics, and of ifthen and etoolbox.
_NO_CONDITION = frozenset(
    b"iff ifthenelse ifblank ifbool ifboolexpe ifboolexpr ifcsdef ifcsempty ifcsmacro ifcsparam "
    b"ifcsstring ifcsundef ifcsvoid ifdef ifdefcounter ifdefdimen ifdefempty ifdeflength "
    b"ifdefmacro ifdefparam ifdefstrequal ifdefstring ifdefvoid ifdimcomp ifdimequal ifdimgreater "
    b"ifdimless ifinlist ifinlistcs ifnotblank ifnotbool ifnottoggle ifnumcomp ifnumequal "
    b"ifnumgreater ifnumless ifnumodd ifpatchable ifrmnum ifstrempty ifstrequal iftoggle ifundef "
    b"ifxinlist ifxinlistcs".split()
)


class TexArticles:
    r"""A folder of articles: every sub-folder with `.tex` files, and every `.tex` file beside them.

    The document of a sub-folder is its main file, with each `\input` and `\include` of a file in
    the sub-folder replaced by that file, and so on within it; so are `\import{folder}{file}` with
    its kin (`\subimport`, `\inputfrom`, ...), and `\subfile`, which brings what lies between that
    file's `\begin{document}` and `\end{document}`. What lies between `\iffalse` and its `\fi` (or
    `\else`) is dropped. The main file is the one with `\documentclass` (or `\documentstyle`); of
    several, one that is no subfile, and of these the one that makes the longest document. Where
    none has it, the document is all `.tex` files in sorted path order, without those that another
    takes in.

    As in TeX, `.tex` is added to a name first, and a name is looked up from the folder that the
    last import named, and from the main file's folder; then from the sub-folder, then from the
    folder of the file that asks. What cannot be replaced is left as it is: a file that is missing,
    outside the article or binary (with a NUL byte), one that would take in itself, and one more
    than 15 files deep. Commands in comments, and an `\iffalse` without its `\fi`, are left too. A
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
        classes = {name: _class_of(self._text(name)) for name in sources}
        mains = [name for name, found in classes.items() if found == "main"]
        mains = mains or [name for name, found in classes.items() if found]
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
        taken_in: set[str] = set()
        top = posixpath.dirname(main)

        def expand(name: str, text: bytes, folder: str, above: tuple[str, ...]) -> bytes:
            """`text` of the file `name`, read where the last import named `folder`."""

            def replace(match: re.Match[bytes]) -> bytes:
                wanted, folders = match["name"] or match["bare"] or match["part"], folders_here
                if match["import"]:
                    sub = match["import"].startswith(b"sub")
                    wanted = match["file"]
                    inner = _path(match["folder"])
                    folders = [posixpath.join(f, inner) for f in folders_here[0 if sub else 1 :]]
                found = self._find(wanted, folders) if wanted else None
                if found is None or found[0] in opened or len(opened) >= _MAX_DEPTH:
                    return match[0]
                other, within = found
                taken_in.add(other)
                text = self._text(other)
                if match["subfile"]:
                    return expand(other, _body(text), posixpath.dirname(other), opened)
                return expand(other, text, within if match["import"] else folder, opened)

            opened = (*above, name)
            folders_here = [folder, top, "", posixpath.dirname(name)]
            return _INPUT.sub(replace, text)

        return expand(main, self._text(main), top, ()), taken_in

    def _find(self, wanted: bytes, folders: Sequence[str]) -> tuple[str, str] | None:
        """The file of the article that a name means in one of `folders`, and that folder."""
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
    """'main' for a file with a document class, 'subfile' for that of a subfile, else None."""
    found = next((match for match in _CLASS.finditer(text) if match[1]), None)
    return None if found is None else "subfile" if found[2] else "main"


def _body(text: bytes) -> bytes:
    """What lies between the beginning and the end of the document; all where there is neither."""
    first, last = 0, len(text)
    for match in _BODY.finditer(text):
        if match[1] and not first:
            first = match.end()
        elif match[2]:
            last = match.start()
            break
    return text[first:last]


def _without_false(text: bytes) -> bytes:
    r"""The text without what `\iffalse` hides; one without its `\fi` is left as it is."""
    kept, at = bytearray(), 0  # what is kept so far, and from where on the text is looked at
    hidden, depth = None, 0  # where the text that is hidden begins; the conditionals within it
    shown: list[bool] = []  # conditionals around what is shown; true for an `\iffalse` with `\else`
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
            kept += text[at:cut]
            # The blanks stay where a command would run into the text behind them.
            at = match.end("name") if _ENDS_IN_COMMAND.search(kept[-50:]) else match.end()
    return bytes(kept) + text[at:]
