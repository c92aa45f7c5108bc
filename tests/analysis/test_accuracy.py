from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxlab.analysis import accuracy_difference, accuracy_interval
from jaxlab.core import Predictions, UsageError


def predictions(is_right, index=None) -> Predictions:
    """Of two classes, all labelled 0."""
    is_right = np.asarray(is_right, bool)
    logits = np.where(is_right[:, None], [1.0, 0.0], [0.0, 1.0])
    n = len(is_right)
    return Predictions(logits, np.zeros(n, int), np.arange(n) if index is None else index)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (1, 1), (30, 100), (999, 1000)])
def test_the_interval_of_an_accuracy_is_wilsons(right, n):
    found = accuracy_interval(predictions(np.arange(n) < right))
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(found, (right / n, expected.low, expected.high), atol=1e-12)


def test_a_difference_is_that_of_the_accuracies_and_turns_with_the_pair():
    rng = np.random.default_rng(0)
    a, b = (predictions(rng.random(60) < share) for share in (0.9, 0.6))
    found, turned = accuracy_difference(a, b), accuracy_difference(b, a)
    assert found.value == pytest.approx(a.accuracy - b.accuracy) and found.low > 0
    np.testing.assert_allclose(turned, (-found.value, -found.high, -found.low))


def test_a_pair_that_agrees_has_a_narrower_interval_than_one_that_does_not():
    a = predictions(np.arange(100) < 80)
    near, far = predictions(np.arange(100) < 70), predictions(np.arange(100) >= 30)
    assert near.accuracy == far.accuracy
    narrow, wide = (np.ptp(accuracy_difference(a, b)[1:]) for b in (near, far))
    assert narrow < 0.7 * wide
    same = accuracy_difference(a, a)
    assert same.value == 0 and -0.05 < same.low < 0 < same.high < 0.05


def test_intervals_of_differences_cover_the_truth():
    rng, covered = np.random.default_rng(1), 0
    cells = np.array([0.7, 0.12, 0.05, 0.13])  # both right, a alone, b alone, none
    for _ in range(1000):
        cell = rng.choice(4, 50, p=cells)
        found = accuracy_difference(predictions(cell <= 1), predictions(cell % 2 == 0))
        covered += found.low <= 0.07 <= found.high
    assert 0.93 <= covered / 1000 <= 0.985


def test_what_has_no_interval_is_refused():
    a = predictions([True, False])
    with pytest.raises(UsageError, match="2 and 2 examples that are not the same"):
        accuracy_difference(a, predictions([True, False], index=np.array([1, 0])))
    empty = predictions([])
    for call in (lambda: accuracy_interval(empty), lambda: accuracy_difference(empty, empty)):
        with pytest.raises(UsageError, match="no examples"):
            call()
