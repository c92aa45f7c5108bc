"""The predictions of a classifier, as used by evaluations of shift, calibration and ensembles."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxlab.core.errors import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Logits and labels of examples.

    Attributes:
      logits: float32 [n, c].
      labels: int32 [n], from 0 to c - 1.
      index: int [n], the index of each example in its data set.
      domain: the source of the examples, such as `cifar10/test` or `fog/3`.

    Raises:
      UsageError: sizes differ, or labels are out of range.

    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    >>> Predictions(logits, np.array([0, 0]), np.arange(2), "test").accuracy
    0.5
    """

    logits: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    domain: str = ""

    def __post_init__(self):
        n = len(self.logits)
        if self.logits.ndim != 2 or self.labels.shape != (n,) or self.index.shape != (n,):
            raise UsageError(
                f"logits {self.logits.shape}, labels {self.labels.shape} and index "
                f"{self.index.shape} do not fit; expected [n, c], [n], [n]"
            )
        require_labels(self.labels, self.logits.shape[1])

    @property
    def correct(self) -> np.ndarray:
        """Whether the label has the largest logit, bool [n]."""
        return self.logits.argmax(axis=1) == self.labels

    @property
    def accuracy(self) -> float:
        """Fraction of correct examples, in [0, 1]."""
        return float(self.correct.mean())


def require_labels(labels: np.ndarray, num_classes: int) -> None:
    """Checks that labels are integers from 0 to `num_classes` - 1.

    Raises:
      UsageError: one is not; names the first and its index.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"labels of dtype {labels.dtype}; expected integers")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UsageError(
            f"label {labels[wrong[0]]} of example {wrong[0]} is out of range; expected 0 to "
            f"{num_classes - 1} ({len(wrong)} such labels)"
        )
