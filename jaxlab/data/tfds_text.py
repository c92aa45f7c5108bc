"""Text data sets of `tensorflow_datasets`, read without TensorFlow."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from jaxlab.core import UsageError, nearest


class TfdsText:
    """One text feature of a prepared `tensorflow_datasets` data set, one document an example.

    The data set must already lie on disk in a random-access format: nothing is downloaded.
    `names` are `<data set>/<split>/<number>`, so that they cost no reading.

    Args:
        name: name of the data set, with an optional config and version: `pg19`, `glue/sst2`.
        split: a split or a part of one: `train`, `train[:60%]`.
        data_dir: the folder that holds the data sets; None is the default of `tensorflow_datasets`.
        feature: the feature that holds the text. None takes the only `Text` feature; where there
            are several, or none but plain strings, the one that is longest in the first example.

    Raises:
        UsageError: a package is missing; the data set, split or feature does not exist or holds no
            text; the data set is not prepared, or not in a random-access format.
    """

    def __init__(
        self, name: str, split: str = "train",
        data_dir: str | os.PathLike[str] | None = None, feature: str | None = None,
    ):
        builder = _builder(name, data_dir)
        self._examples = _examples(builder, split)
        if not len(self._examples):
            raise UsageError(f"split {split!r} of {name!r} holds no example; pass another split")
        self.feature = _text_feature(builder, self._examples[0], feature)
        self.names = tuple(f"{name}/{split}/{i}" for i in range(len(self._examples)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return self._examples[index][self.feature]

    def title(self, index: int) -> str | None:
        """Returns the example's `title` (or `..._title`) feature, or None where it has none."""
        example = self._examples[index]
        keys = [k for k in example if k == "title" or k.endswith("_title")]
        return example[keys[0]].decode("utf-8", "replace") if keys else None


def _import_tfds() -> Any:
    try:
        import importlib_resources  # noqa: F401  tensorflow_datasets needs it undeclared
        import tensorflow_datasets
    except ImportError as error:
        raise UsageError(
            f"package {error.name!r} is missing; to read tensorflow_datasets, run: pip install "
            f"tensorflow-datasets importlib_resources array_record"
        ) from error
    return tensorflow_datasets


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    tfds = _import_tfds()
    folder = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise UsageError(f"data_dir={str(folder)!r} is not a folder; expected the one of {name!r}")
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.core.registered.list_imported_builders()
        here = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder else []
        raise UsageError(
            f"no data set {name!r} in tensorflow_datasets or in data_dir={_shown(folder)}"
            f"{nearest(name, [*here, *known])}"
        ) from error
    except (AssertionError, ValueError) as error:
        raise UsageError(f"data set {name!r} cannot be opened: {error}") from error
    if not builder.is_prepared():
        raise UsageError(f"data set {name!r} is not prepared in {str(builder.data_dir)!r}; {_HOW}")
    return builder


_HOW = (
    "prepare it once with builder.download_and_prepare(file_format='array_record'), or pass the "
    "data_dir that holds it"
)


def _shown(folder: pathlib.Path | None) -> str:
    return "None" if folder is None else repr(str(folder))


def _examples(builder: Any, split: str) -> Any:
    splits = list(builder.info.splits)
    try:
        return builder.as_data_source(split)
    except ImportError as error:
        raise UsageError(
            f"package {error.name!r} is missing; to read {builder.name!r}, run: pip install "
            f"array_record"
        ) from error
    except NotImplementedError as error:
        raise UsageError(
            f"data set {builder.name!r} in {str(builder.data_dir)!r} has the format "
            f"{builder.info.file_format.value!r}, which cannot be read at random; {_HOW}"
        ) from error
    except (KeyError, ValueError, AssertionError) as error:
        raise UsageError(
            f"data set {builder.name!r} has no split {split!r}; it has {', '.join(splits)}"
            f"{nearest(split, splits)}"
        ) from error


def _text_feature(builder: Any, example: dict[str, Any], wanted: str | None) -> str:
    tfds = _import_tfds()
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
