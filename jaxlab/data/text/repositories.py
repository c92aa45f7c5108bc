"""Source code repositories, one document each, as in the GitHub data of arXiv 2203.07852."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from jaxlab.core import UsageError
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
    with_path_header,
)


class Repositories:
    """A folder of repositories: every direct sub-folder is one document (arXiv 2203.07852, sec. 4).

    A document joins the matching files in sorted path order. Each file follows a line
    `# <path within the repository>` and ends with a newline, as in `StandardLibrary`. Hidden files
    and folders (`.git`), symbolic links, empty files and binary files (with a NUL byte) are left
    out, and so are repositories without a matching file. Files directly in the folder are ignored.

    Opening lists the files; their contents are read on access. A repository whose files all turn
    out to be binary is an empty document.

    Args:
        folder: the folder whose sub-folders are the repositories, in sorted order, by name.
        patterns: shell patterns such as `*.py`; a file must match one of them.

    Raises:
        UsageError: the folder does not exist, is a file or has no sub-folders (so a single
            repository is refused); no file matches, or all matching files are empty.
    """

    def __init__(self, folder: str | os.PathLike[str], patterns: Sequence[str] = ("*",)):
        root = existing_folder(folder, "a folder with one sub-folder per repository")
        if not patterns:
            raise UsageError("patterns is empty; pass at least one, such as '*.py'")
        trees = [p for p in visible_entries(root) if p.is_dir()]
        if not trees:
            raise UsageError(
                f"{str(root)!r} has no repository: it has no sub-folders; if it is itself a "
                f"repository, pass the folder that holds it"
            )
        files = [files_below(tree, visible_only=True) for tree in trees]
        matching = [matching_files(in_tree, patterns) for in_tree in files]
        if not any(matching):
            raise no_match_error(root, itertools.chain(*files), patterns)
        with_text = [files_with_text(in_tree) for in_tree in matching]
        if not any(with_text):
            raise all_empty_error(root, sum(map(len, matching)))
        pairs = zip(trees, with_text, strict=True)
        self._trees = tuple((tree, tuple(in_tree)) for tree, in_tree in pairs if in_tree)
        self.names = tuple(tree.name for tree, _ in self._trees)

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> bytes:
        tree, files = self._trees[index]
        texts = ((path, read_file(path)) for path in files)
        return b"".join(
            with_path_header(path.relative_to(tree).as_posix(), text)
            for path, text in texts
            if not is_binary(text)
        )
