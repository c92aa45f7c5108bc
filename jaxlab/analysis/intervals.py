"""Estimates with 95% intervals: over seeds by Student's t, over units by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxlab.core import UsageError


class Interval(NamedTuple):
    """An estimate and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one value per seed, and its 95% interval by Student's t.

    For differences between two models that share seeds it tells whether other seeds would show them
    too. With one seed the interval is infinite.

    Raises:
      UsageError: no values.

    >>> print(mean_over_seeds([0.1, 0.2, 0.3]))
    +0.2000 [-0.0484, +0.4484]
    """
    if not len(values):
        raise UsageError("no values to average; give one per seed")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    margin = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - margin, mean + margin)


def bootstrap(
    statistic: Callable[[np.ndarray], float], num_units: int, num_samples: int, seed: int
) -> Interval:
    """A statistic of all units, with its 95% percentile interval over bootstrap samples.

    Args:
      statistic: takes the indices of the drawn units, int [num_units].
      num_units: number of units (documents, examples), drawn with replacement.
      num_samples: number of bootstrap samples.
      seed: seed of the samples.

    >>> heights = np.array([1.0, 2.0, 3.0, 4.0])
    >>> bootstrap(lambda drawn: heights[drawn].mean(), 4, 1000, 0).value
    2.5
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    samples = [statistic(rng.integers(num_units, size=num_units)) for _ in range(num_samples)]
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(float(statistic(np.arange(num_units))), float(low), float(high))
