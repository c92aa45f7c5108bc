"""Opening a labelled image set from the one string that a config holds."""

from __future__ import annotations

import os
import pathlib

from jaxlab.core import UsageError, nearest
from jaxlab.data.images.digits import digits
from jaxlab.data.images.image_folder import ImageFolder
from jaxlab.data.images.image_set import ImageSet
from jaxlab.data.images.tfds_images import TfdsImages

_FORMS = "'digits/<split>', 'tfds:<data set>/<split>', 'images:<folder>'"


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
        spec: `digits/train` or `digits/test`, which need no download; `tfds:cifar10/train[:80%]`,
            where the split follows the last slash and is `train` by default; or
            `images:/path/to/folder` with one sub-folder per class, see `ImageFolder`.
        data_dir: the folder of the `tensorflow_datasets` data sets; only for `tfds:`.
        size: (height, width) to resize the images to; not for digits.
        cache_dir: a folder that caches the decoded images; None: no cache.

    Raises:
        UsageError: an unknown form, or an error of the source.
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
            raise UsageError(f"size={size} for {spec!r}; digits are not resized: leave it out")
        return digits(split or "train")
    hint = nearest(kind.partition(":")[0], ["digits", "tfds", "images"])
    if not hint and pathlib.Path(spec).expanduser().is_dir():
        hint = f"; did you mean {'images:' + spec!r}?"
    raise UsageError(f"unknown images {spec!r}; expected one of {_FORMS}{hint}")
