"""Opening prepared `tensorflow_datasets` data sets without TensorFlow."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from jaxlab.core import UsageError, nearest

_HOW_TO_PREPARE = (
    "prepare it once with builder.download_and_prepare(file_format='array_record'), or pass the "
    "data_dir that holds it"
)


def import_tfds() -> Any:
    """Returns the package `tensorflow_datasets`.

    Raises:
        UsageError: it or a package it needs is not installed; says what to install.
    """
    try:
        import importlib_resources  # noqa: F401  tensorflow_datasets needs it undeclared
        import tensorflow_datasets
    except ImportError as error:
        raise UsageError(
            f"package {error.name!r} is missing; to read tensorflow_datasets, run: pip install "
            f"tensorflow-datasets importlib_resources array_record"
        ) from error
    return tensorflow_datasets


def open_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the builder of a data set that is already prepared on disk.

    Args:
        name: name of the data set, with an optional config and version: `pg19`, `glue/sst2`.
        data_dir: the folder of the data sets; None: the default of `tensorflow_datasets`.

    Raises:
        UsageError: a package is missing; the data set does not exist or is not prepared.
    """
    tfds = import_tfds()
    folder = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise UsageError(f"data_dir={str(folder)!r} is not a folder; pass the one with {name!r}")
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.core.registered.list_imported_builders()
        local = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder else []
        raise UsageError(
            f"no data set {name!r} in tensorflow_datasets or in data_dir={_shown(folder)}"
            f"{nearest(name, [*local, *known])}"
        ) from error
    except (AssertionError, ValueError) as error:
        raise UsageError(f"data set {name!r} cannot be opened: {error}") from error
    if not builder.is_prepared():
        raise UsageError(
            f"data set {name!r} is not prepared in {str(builder.data_dir)!r}; {_HOW_TO_PREPARE}"
        )
    return builder


def open_examples(builder: Any, split: str, decoders: Any = None) -> Any:
    """Returns the examples of a split with random access; there is at least one.

    Args:
        builder: the result of `open_builder`.
        split: a split or a part of one: `train`, `train[:60%]`.
        decoders: passed to `builder.as_data_source`.

    Raises:
        UsageError: a package is missing; the split does not exist or is empty; the file format has
            no random access.
    """
    splits = list(builder.info.splits)
    try:
        examples = builder.as_data_source(split, decoders=decoders)
    except ImportError as error:
        raise UsageError(
            f"package {error.name!r} is missing; to read {builder.name!r}, run: pip install "
            f"array_record"
        ) from error
    except NotImplementedError as error:
        raise UsageError(
            f"data set {builder.name!r} in {str(builder.data_dir)!r} has the format "
            f"{builder.info.file_format.value!r}, which has no random access; {_HOW_TO_PREPARE}"
        ) from error
    except (KeyError, ValueError, AssertionError) as error:
        whole = split.partition("[")[0]
        if whole in splits:
            raise UsageError(
                f"part {split!r} of {builder.name!r} cannot be read ({error}); {whole!r} has "
                f"{builder.info.splits[whole].num_examples} examples"
            ) from error
        raise UsageError(
            f"data set {builder.name!r} has no split {split!r}; it has {', '.join(splits)}"
            f"{nearest(split, splits)}"
        ) from error
    if not len(examples):
        raise UsageError(f"split {split!r} of {builder.name!r} has no examples; pass another split")
    return examples


def _shown(folder: pathlib.Path | None) -> str:
    return "None" if folder is None else repr(str(folder))
