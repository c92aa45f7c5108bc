"""Predictions fit together or are refused."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlab.core import Predictions, UsageError


def predictions(labels, logits=((3.0, 1.0), (0.0, 2.0), (1.0, 0.0))):
    return Predictions(np.array(logits, np.float32), np.array(labels), np.arange(len(logits)), "x")


def test_accuracy_counts_the_rows_whose_largest_logit_is_the_label():
    assert predictions([0, 1, 1]).accuracy == pytest.approx(2 / 3)
    assert predictions([0, 1, 1]).correct.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 1], "label 2 of example 1 .* expected 0 to 1"),
        ([0, -1, 1], "label -1 of example 1"),
        ([0.0, 1.0, 1.0], "labels of dtype float64"),
        ([0, 1], r"do not fit; expected \[n, c\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(UsageError, match=message):
        predictions(labels)
