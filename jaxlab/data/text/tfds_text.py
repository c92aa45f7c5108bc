"""Text data sets of `tensorflow_datasets`, read without TensorFlow."""

from __future__ import annotations

import os
from typing import Any

from jaxlab.core import UsageError, nearest
from jaxlab.data.tfds import import_tfds, open_builder, open_examples


class TfdsText:
    """A text feature of a prepared `tensorflow_datasets` data set, one document per example.

    The data set must already be on disk in a random-access format: nothing is downloaded. `names`
    are `<data set>/<split>/<number>`, which needs no reading.

    Args:
        name: name of the data set, with an optional config and version: `pg19`, `glue/sst2`.
        split: a split or a part of one: `train`, `train[:60%]`.
        data_dir: the folder of the data sets; None: the default of `tensorflow_datasets`.
        feature: the text feature. None: the only `Text` feature; of several, or of plain strings if
            there is none, the longest in the first example.

    Raises:
        UsageError: a package is missing; the data set, split or feature does not exist or is not
            text; the data set is not prepared, or not in a random-access format.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | os.PathLike[str] | None = None,
        feature: str | None = None,
    ):
        builder = open_builder(name, data_dir)
        self._examples = open_examples(builder, split)
        self.feature = _text_feature(builder, self._examples[0], feature)
        self.names = tuple(f"{name}/{split}/{i}" for i in range(len(self._examples)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return self._examples[index][self.feature]

    def title(self, index: int) -> str | None:
        """Returns the example's `title` (or `..._title`) feature, or None if it has none."""
        example = self._examples[index]
        keys = [k for k in example if k == "title" or k.endswith("_title")]
        return example[keys[0]].decode("utf-8", "replace") if keys else None


def _text_feature(builder: Any, example: dict[str, Any], wanted: str | None) -> str:
    tfds = import_tfds()
    strings = [k for k, v in example.items() if isinstance(v, bytes)]
    texts = [k for k in strings if isinstance(builder.info.features[k], tfds.features.Text)]
    if wanted is not None:
        if wanted not in strings:
            raise UsageError(
                f"feature {wanted!r} of {builder.name!r} is not a text; the texts are: "
                f"{', '.join(strings) or 'none'}{nearest(wanted, strings)}"
            )
        return wanted
    candidates = texts or [k for k in strings if builder.info.features[k].shape == ()]
    candidates = [k for k in candidates if not _is_image(builder.info.features[k], tfds)]
    if not candidates:
        raise UsageError(
            f"data set {builder.name!r} has no text feature; it has {', '.join(example)}"
        )
    return max(candidates, key=lambda k: len(example[k]))


def _is_image(feature: Any, tfds: Any) -> bool:
    return isinstance(feature, (tfds.features.Image, tfds.features.Audio, tfds.features.Video))
