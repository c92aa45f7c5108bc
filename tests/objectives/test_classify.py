"""Classification against sums written out, and its inputs checked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import unit_images
from jaxlab.objectives import classify

LOGITS = jnp.array([[0.0, np.log(3.0)], [np.log(4.0), 0.0]])
IMAGES = np.array([0, 51, 255, 102], np.uint8).reshape(2, 1, 2, 1)


def test_the_loss_is_the_mean_cross_entropy_of_the_rows_that_count():
    batch = {"inputs": IMAGES, "targets": jnp.array([1, 1])}
    loss = classify(lambda images: LOGITS, batch)
    assert float(loss.value) == pytest.approx(-(np.log(3 / 4) + np.log(1 / 5)) / 2, rel=1e-6)
    assert float(loss.metrics["accuracy"][0]) == 0.5
    masked = classify(lambda images: LOGITS, batch | {"mask": jnp.array([True, False])})
    assert float(masked.value) == pytest.approx(-np.log(3 / 4), rel=1e-6)
    assert float(masked.weight) == 1.0


def test_probabilities_as_targets_weigh_the_classes():
    batch = {"inputs": IMAGES, "targets": jnp.array([[0.25, 0.75], [1.0, 0.0]])}
    wanted = -(0.25 * np.log(1 / 4) + 0.75 * np.log(3 / 4) + np.log(4 / 5)) / 2
    assert float(classify(lambda images: LOGITS, batch).value) == pytest.approx(wanted, rel=1e-6)


def test_the_model_sees_levels_as_numbers_up_to_one():
    seen = []
    batch = {"inputs": IMAGES, "targets": jnp.array([0, 0])}
    classify(lambda images: (seen.append(images), LOGITS)[1], batch)
    assert seen[0].dtype == jnp.float32
    np.testing.assert_allclose(seen[0].ravel(), [0, 0.2, 1, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 2, 2, 1), 255.0, np.float32), r"float images from 255 to 255; .* \[0, 1\]"),
        (np.full((1, 2, 2, 1), -0.1, np.float32), "from -0.1"),
        (np.full((1, 2, 2, 1), np.nan, np.float32), "from nan"),
        (np.zeros((1, 2, 2, 1), np.int32), "images of dtype int32"),
        (np.zeros((2, 2, 1), np.uint8), r"images of shape \(2, 2, 1\)"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(UsageError, match=message):
        unit_images(images)


def test_floats_pass_unchanged_in_and_out_of_jit():
    images = jnp.linspace(0, 1, 8).reshape(2, 2, 2, 1)
    assert jnp.array_equal(unit_images(images), images)
    assert jnp.array_equal(jax.jit(unit_images)(images), images)
