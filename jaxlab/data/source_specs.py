"""Opening documents or images from the one string that stands in a config."""

from __future__ import annotations

import os
import pathlib

from jaxlab.core import UsageError, nearest
from jaxlab.data.images.digits import digits
from jaxlab.data.images.image_folder import ImageFolder
from jaxlab.data.images.image_set import ImageSet
from jaxlab.data.images.tfds_images import TfdsImages
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
        spec: `stdlib`; `tfds:pg19/train` (after the last slash: the split; without a slash
            `train`); `text:/path/to/folder` (the `*.txt` files in it, or one file);
            `repositories:/path/to/folder:*.py,*.c` (one document a sub-folder: its files that match
            one of the patterns after the last colon; without them every text file, see
            `Repositories`); or `tex:/path/to/folder` (one document an article, see `TexArticles`).
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
    if kind == "repositories" and rest:
        return _repositories(rest)
    if kind == "tex" and rest:
        return TexArticles(pathlib.Path(rest).expanduser())
    hint = nearest(kind, ["stdlib", "tfds", "text", "repositories", "tex"])
    if not hint and pathlib.Path(spec).expanduser().exists():
        hint = f"; did you mean {'text:' + spec!r}?"
    raise UsageError(f"unknown source {spec!r}; expected one of {_FORMS}{hint}")


_IMAGE_FORMS = "'digits/<split>', 'tfds:<data set>/<split>', 'images:<folder>'"


def open_images(
    spec: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageSet:
    """Opens the labelled images that `spec` names.

    >>> open_images("digits/test")
    <digits/test: 359 images of 8x8x1, 10 classes>

    Args:
        spec: `digits/train` or `digits/test`, on every machine; `tfds:cifar10/train[:80%]` (after
            the last slash: the split; without a slash `train`); or `images:/path/to/folder` (one
            sub-folder a class, see `ImageFolder`).
        data_dir: the folder of the `tensorflow_datasets` data sets; only for `tfds:`.
        size: (height, width) to which the images are resized; not for digits.
        cache_dir: a folder in which decoded images are kept, for the next time; None: nowhere.

    Raises:
        UsageError: an unknown form, or whatever the source finds wrong.
    """
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest:
        name, slash, split = rest.rpartition("/")
        name, split = (name, split) if slash else (rest, "train")
        return TfdsImages(name, split, data_dir, size=size, cache_dir=cache_dir)
    if kind == "images" and rest:
        return ImageFolder(pathlib.Path(rest).expanduser(), size=size, cache_dir=cache_dir)
    kind, _, split = spec.partition("/")
    if kind == "digits":
        if size is not None:
            raise UsageError(f"size={size} for {spec!r}; digits stay as they are: leave it out")
        return digits(split or "train")
    hint = nearest(kind.partition(":")[0], ["digits", "tfds", "images"])
    if not hint and pathlib.Path(spec).expanduser().is_dir():
        hint = f"; did you mean {'images:' + spec!r}?"
    raise UsageError(f"unknown images {spec!r}; expected one of {_IMAGE_FORMS}{hint}")


def _repositories(rest: str) -> Repositories:
    folder, colon, patterns = rest.rpartition(":")
    whole = pathlib.Path(rest).expanduser()
    if not colon or whole.is_dir():
        return Repositories(whole)
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    return Repositories(pathlib.Path(folder).expanduser(), [p for p in wanted if p])
