"""Image classification data sets of `tensorflow_datasets`, read without TensorFlow."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.core import UsageError, nearest
from jaxlab.data.array_cache import cached_arrays
from jaxlab.data.images.image_decoding import decode_images, require_size
from jaxlab.data.images.image_set import ImageSet
from jaxlab.data.retries import read_with_retries
from jaxlab.data.tfds import import_tfds, open_builder, open_examples


class TfdsImages(ImageSet):
    """The images and labels of a prepared `tensorflow_datasets` data set, decoded into memory.

    The data set must already be on disk in a random-access format: nothing is downloaded.

    Args:
        name: name of the data set, with an optional config and version: `cifar10`, `mnist:3.0.1`.
        split: a split or a part of one: `train`, `train[:80%]`.
        data_dir: the folder of the data sets; None: the default of `tensorflow_datasets`.
        size: (height, width) to resize all images to, bilinear with anti-aliasing, whatever their
            aspect ratio; None: they must all have the same size.
        image: the image feature; None: the supervised one, or the only one.
        label: the label feature; None: the supervised one, or the only one.
        cache_dir: a folder that caches the decoded images; None: no cache.

    Raises:
        UsageError: a package is missing; the data set, split or feature does not exist, or has no
            8-bit images or no class labels; the data set is not prepared, or not in a random-access
            format; images differ in size and `size` is None.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | os.PathLike[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        image: str | None = None,
        label: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        require_size(size)
        tfds = import_tfds()
        builder = open_builder(name, data_dir)
        kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
        image = _feature(builder, "image", image, kinds["image"])
        label = _feature(builder, "label", label, kinds["label"])
        channels = _channels(builder, image)
        examples = open_examples(builder, split, {image: tfds.decode.SkipDecoding()})
        names = [f"image {i} of {name}/{split}" for i in range(len(examples))]

        def decode() -> dict[str, np.ndarray]:
            labels = np.empty(len(names), np.int64)

            def read(numbers: Sequence[int]) -> list[bytes]:
                chunk = read_with_retries(
                    lambda: examples.__getitems__(list(numbers)), names[numbers[0]]
                )
                labels[list(numbers)] = [example[label] for example in chunk]
                return [example[image] for example in chunk]

            images = decode_images(read, names, channels=channels, size=size)
            return {"images": images, "labels": labels}

        resized = "" if size is None else "@" + "x".join(map(str, size))
        key = {
            "builder": builder.info.full_name,
            "files": _file_stats(builder) if cache_dir else [],
            "split": split,
            "image": image,
            "label": label,
            "size": size,
        }
        arrays = cached_arrays(cache_dir, f"{name}/{split}{resized}", key, decode)
        super().__init__(
            arrays["images"],
            arrays["labels"],
            class_names=list(map(str, builder.info.features[label].names)),
            name=f"{name}/{split}{resized}",
        )


def _feature(builder: Any, role: str, wanted: str | None, kind: type) -> str:
    """Returns the name of the image or label feature."""
    features = builder.info.features
    fitting = [name for name in features if isinstance(features[name], kind)]
    if wanted is not None and wanted not in fitting:
        article = "an" if role == "image" else "a"
        raise UsageError(
            f"feature {wanted!r} of {builder.name!r} is not {article} {role}; expected one of: "
            f"{', '.join(fitting) or 'none'}{nearest(wanted, fitting)}"
        )
    if not fitting:
        raise UsageError(
            f"data set {builder.name!r} has no {role} feature; it has {', '.join(features)}"
        )
    supervised = builder.info.supervised_keys or ()
    choices = [wanted] if wanted else [n for n in fitting if n in supervised] or fitting
    if len(choices) > 1:
        raise UsageError(
            f"data set {builder.name!r} has several {role} features: {', '.join(choices)}; pass "
            f"{role}=..."
        )
    return choices[0]


def _channels(builder: Any, image: str) -> int:
    feature = builder.info.features[image]
    channels = feature.shape[-1]
    if feature.np_dtype != np.uint8 or channels not in (1, 3, 4):
        raise UsageError(
            f"feature {image!r} of {builder.name!r} has images of {feature.np_dtype} with "
            f"{channels} channels; expected uint8 with 1, 3 or 4"
        )
    return channels


def _file_stats(builder: Any) -> list[list[str | int]]:
    """Returns the names, sizes and modification times of the files of a data set."""
    files = sorted(p for p in pathlib.Path(builder.data_dir).iterdir() if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
