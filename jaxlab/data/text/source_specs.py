"""Opening a source of documents from the one string that a config holds."""

from __future__ import annotations

import os
import pathlib

from jaxlab.core import UsageError, nearest
from jaxlab.data.text.repositories import Repositories
from jaxlab.data.text.sources import Source, StandardLibrary, TextFiles
from jaxlab.data.text.tex_articles import TexArticles
from jaxlab.data.text.tfds_text import TfdsText

_FORMS = (
    "'stdlib', 'tfds:<data set>/<split>', 'text:<folder or file>', "
    "'repositories:<folder>[:<patterns>]', 'tex:<folder>'"
)


def open_source(spec: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens the source that `spec` names.

    Args:
        spec: one of

            * `stdlib`: the source code of Python's standard library;
            * `tfds:pg19/train`: the split follows the last slash, `train` by default;
            * `text:/path/to/folder`: the `*.txt` files of a folder, or a single file;
            * `repositories:/path/to/folder:*.py,*.c`: one document per sub-folder, made of the
              files that match a pattern after the last colon (by default all text files), see
              `Repositories`;
            * `tex:/path/to/folder`: one document per article, see `TexArticles`.
        data_dir: the folder of the `tensorflow_datasets` data sets; only for `tfds:`.

    Raises:
        UsageError: an unknown form, or an error of the source.
    """
    kind, _, rest = spec.partition(":")
    if spec == "stdlib":
        return StandardLibrary()
    if kind == "tfds" and rest:
        name, slash, split = rest.rpartition("/")
        return TfdsText(name, split, data_dir) if slash else TfdsText(rest, data_dir=data_dir)
    if kind == "text" and rest:
        return TextFiles(pathlib.Path(rest).expanduser())
    if kind == "repositories" and rest:
        return _repositories(rest)
    if kind == "tex" and rest:
        return TexArticles(pathlib.Path(rest).expanduser())
    hint = nearest(kind, ["stdlib", "tfds", "text", "repositories", "tex"])
    if not hint and pathlib.Path(spec).expanduser().exists():
        hint = f"; did you mean {'text:' + spec!r}?"
    raise UsageError(f"unknown source {spec!r}; expected one of {_FORMS}{hint}")


def _repositories(rest: str) -> Repositories:
    folder, colon, patterns = rest.rpartition(":")
    path = pathlib.Path(rest).expanduser()
    if not colon or path.is_dir():
        return Repositories(path)
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    return Repositories(pathlib.Path(folder).expanduser(), [p for p in wanted if p])
