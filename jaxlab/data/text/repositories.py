"""Source trees: one document a repository, as in the GitHub set of arXiv 2203.07852."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from jaxlab.core import UsageError
from jaxlab.data.files import (
    all_empty,
    existing_folder,
    files_below,
    files_with_text,
    is_binary,
    matching_files,
    no_match,
    read_file,
    under_its_path,
    visible_entries,
)


class Repositories:
    """A folder of repositories: every direct sub-folder is one document (arXiv 2203.07852, 4).

    The document is the files of the wanted kinds in sorted path order. Each is preceded by a line
    `# <path within the repository>` and ends with a newline, as in `StandardLibrary`; there is
    nothing else between them. Hidden files and folders (`.git`), symbolic links, empty files and
    binary ones (with a NUL byte) are left out, and so is a repository that has no file of the
    wanted kinds. Files beside the sub-folders belong to no repository and are not read.

    Opening lists the files; contents are read when a document is asked for. One of which every file
    turns out to be binary is empty.

    Args:
        folder: its direct sub-folders are the repositories, named after them, in sorted order.
        patterns: shell patterns of the files that are taken, as `*.py`; any of them must match.

    Raises:
        UsageError: the folder does not exist or is a file; it has no sub-folder: a repository is
            not taken for a folder of them; no file in any of them matches, or all are empty.
    """

    def __init__(self, folder: str | os.PathLike[str], patterns: Sequence[str] = ("*",)):
        root = existing_folder(folder, "a folder with one sub-folder a repository")
        if not patterns:
            raise UsageError("patterns is empty; pass at least one, as '*.py'")
        trees = [p for p in visible_entries(root) if p.is_dir()]
        if not trees:
            raise UsageError(
                f"{str(root)!r} has no repository: every sub-folder is one, and there is none; if "
                f"it is itself a repository, pass the folder that holds it"
            )
        there = [files_below(tree, visible_only=True) for tree in trees]
        found = [matching_files(files, patterns) for files in there]
        if not any(found):
            raise no_match(root, itertools.chain(*there), patterns)
        kept = {tree: files_with_text(files) for tree, files in zip(trees, found, strict=True)}
        if not any(kept.values()):
            raise all_empty(root, sum(map(len, found)))
        self._trees = tuple((tree, tuple(files)) for tree, files in kept.items() if files)
        self.names = tuple(tree.name for tree, _ in self._trees)

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> bytes:
        tree, files = self._trees[index]
        texts = ((path, read_file(path)) for path in files)
        return b"".join(
            under_its_path(path.relative_to(tree).as_posix(), text)
            for path, text in texts
            if not is_binary(text)
        )
