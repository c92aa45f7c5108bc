"""Opening a source from the one string that stands in a config."""

from __future__ import annotations

import os
import pathlib

from jaxlab.core import UsageError, nearest
from jaxlab.data.sources import Source, StandardLibrary, TextFiles
from jaxlab.data.tfds_text import TfdsText

_FORMS = "'stdlib', 'tfds:<data set>/<split>', 'text:<folder or file>'"


def open_source(spec: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens the source that `spec` names.

    Args:
        spec: `stdlib`; `tfds:pg19/train` (after the last slash: the split; without a slash
            `train`); or `text:/path/to/folder` (the `*.txt` files in it, or one file).
        data_dir: the folder of the `tensorflow_datasets` data sets; only for `tfds:`.

    Raises:
        UsageError: an unknown form, or whatever the source finds wrong.
    """
    kind, _, rest = spec.partition(":")
    if spec == "stdlib":
        return StandardLibrary()
    if kind == "tfds" and rest:
        name, slash, split = rest.rpartition("/")
        return TfdsText(name, split, data_dir) if slash else TfdsText(rest, data_dir=data_dir)
    if kind == "text" and rest:
        return TextFiles(pathlib.Path(rest).expanduser())
    hint = nearest(kind, ["stdlib", "tfds", "text"])
    if not hint and pathlib.Path(spec).expanduser().exists():
        hint = f"; did you mean {'text:' + spec!r}?"
    raise UsageError(f"unknown source {spec!r}; expected one of {_FORMS}{hint}")
