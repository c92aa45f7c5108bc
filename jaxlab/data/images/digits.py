"""The images that every machine has: scikit-learn's handwritten digits."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, nearest
from jaxlab.data.images.image_set import ImageSet

HELD_OUT_RATE = 0.2
"""The share of the digits that is their split `test`."""


def digits(split: str = "train") -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn brings along: 8 x 8 pixels, 10 classes.

    Their 17 grey levels become round(level * 255 / 16). `train` has 1,438 and `test` 359, a split
    of ours (`ImageSet.split` at `HELD_OUT_RATE`): all writers are in both.

    Args:
        split: `train` or `test`.

    Raises:
        UsageError: another split, or scikit-learn is missing.
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
    # To import sklearn.datasets takes two seconds; to read the file it holds, milliseconds.
    table = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table.is_file():
        rows = np.loadtxt(table, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(np.int32)
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
