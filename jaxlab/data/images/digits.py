"""Scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, nearest
from jaxlab.data.images.image_set import ImageSet

HELD_OUT_RATE = 0.2
"""The fraction of the digits in the split `test`."""


def digits(split: str = "train") -> ImageSet:
    """Returns scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    Their 17 grey levels become round(level * 255 / 16). `train` has 1,438 images and `test` 359;
    the split is ours (`ImageSet.split` at `HELD_OUT_RATE`), with all writers in both.

    Args:
        split: `train` or `test`.

    Raises:
        UsageError: an unknown split, or scikit-learn is not installed.
    """
    splits = ("train", "test")
    if split not in splits:
        raise UsageError(
            f"digits have no split {split!r}; they have {', '.join(splits)}{nearest(split, splits)}"
        )
    levels, labels = _load()
    images = np.rint(levels * (255 / 16)).astype(np.uint8)
    whole = ImageSet(images.reshape(-1, 8, 8, 1), labels, num_classes=10, name="digits")
    part = whole.split(HELD_OUT_RATE)[splits.index(split)]
    return ImageSet(part.images, part.labels, num_classes=10, name=f"digits/{split}")


def _load() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns levels [1797, 64] from 0 to 16, and labels."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError(
            "package 'sklearn' is missing; to read its digits, run: pip install scikit-learn"
        )
    # Importing sklearn.datasets takes two seconds, reading its file milliseconds.
    table = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table.is_file():
        rows = np.loadtxt(table, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(np.int32)
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
