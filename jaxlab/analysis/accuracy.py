"""Accuracy with its interval: of one model, and of two models on the same examples."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri

from jaxlab.analysis.intervals import Interval
from jaxlab.core import Predictions, UsageError

_Z = float(ndtri(0.975))


def accuracy_interval(predictions: Predictions) -> Interval:
    """Accuracy and its 95% interval over examples by Wilson's score (1927).

    It tells how the accuracy would vary over other examples of the same kind, not over other
    trainings, draws or attacks. It stays within [0, 1] and has a width even at 0 and 1.

    Raises:
      UsageError: no examples.

    >>> logits, n = np.array([[1.0, 0.0]] * 10, np.float32), np.arange(10)
    >>> print(accuracy_interval(Predictions(logits, n // 9, n)))
    +0.9000 [+0.5958, +0.9821]
    """
    n = len(predictions.labels)
    if not n:
        raise UsageError("no examples; predict at least one")
    share = predictions.accuracy
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    margin = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    # At 0 and 1 one bound equals the share up to rounding.
    return Interval(
        share, min(share, max(0.0, middle - margin)), max(share, min(1.0, middle + margin))
    )


def accuracy_difference(a: Predictions, b: Predictions) -> Interval:
    """Accuracy of `a` minus that of `b` on the same examples: above 0 where `a` is better.

    Only the `n_a` and `n_b` of n examples that exactly one of them gets right matter, which makes
    the interval far narrower than for two independent samples. The 95% interval is Wald's with half
    an example added to each cell of the two by two table (Agresti and Min, Statistics in Medicine
    24, 2005). It covers well in small samples and has a width even where `a` and `b` agree
    everywhere. It is over examples, not over training seeds: see `mean_over_seeds`.

    Raises:
      UsageError: predictions of no or of different examples.
    """
    if not np.array_equal(a.index, b.index) or not np.array_equal(a.labels, b.labels):
        raise UsageError(
            f"predictions of {len(a.index)} and {len(b.index)} examples that are not the same; "
            "predict both on one image set"
        )
    if not len(a.labels):
        raise UsageError("no examples; predict at least one")
    n_a, n_b = (a.correct & ~b.correct).sum(), (b.correct & ~a.correct).sum()
    n = len(a.labels)
    middle = (n_a - n_b) / (n + 2)
    margin = _Z * math.sqrt((n_a + n_b + 1) - (n_a - n_b) ** 2 / (n + 2)) / (n + 2)
    value = float(n_a - n_b) / n
    low, high = max(-1.0, float(middle - margin)), min(1.0, float(middle + margin))
    return Interval(value, min(value, low), max(value, high))
