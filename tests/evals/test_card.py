from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlab.analysis import accuracy_interval
from jaxlab.core import UsageError, View, named
from jaxlab.data import ImageSet
from jaxlab.evals import attack_accuracy, fgsm, pgd, predict, robustness_card, weight_noise_curve

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 2, 2, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 30)


class Net(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x_bhwc):
        return self.out(x_bhwc.reshape(len(x_bhwc), 4) - 0.5)


@pytest.fixture(scope="module")
def view() -> View:
    return View.of(Net())


@pytest.fixture(scope="module")
def labels(view) -> np.ndarray:
    return predict(view, IMAGES, LABELS, batch_size=30).logits.argmax(1)


def test_a_card_holds_what_each_test_gives_alone(view, labels):
    dark = IMAGES // 2
    images = ImageSet(IMAGES, labels, num_classes=3, name="squares")
    darker = ImageSet(dark // 2, labels, num_classes=3, name="squares/dark/3")
    card = robustness_card(
        view,
        images,
        key=KEY,
        eps=[0.1],
        steps=5,
        batch_size=30,
        draws=3,
        corrupted=[("dark", 2, dark), ("dark", 3, darker)],
        weight_noise={"relative": [0.5, 1.0]},
    )
    key = named(KEY, "attack")
    accuracies = [
        predict(view, IMAGES, labels, batch_size=30),
        predict(view, dark, labels, batch_size=30),
        predict(view, dark // 2, labels, batch_size=30),
        attack_accuracy(view, fgsm(view, 0.1), IMAGES, labels, key=key, batch_size=30),
        attack_accuracy(view, pgd(view, 0.1, steps=5), IMAGES, labels, key=key, batch_size=30),
    ]
    noise = weight_noise_curve(
        view,
        IMAGES,
        labels,
        kind="relative",
        sizes=[0.5, 1.0],
        draws=3,
        batch_size=30,
        key=named(KEY, "weights"),
    )
    expected = [*map(accuracy_interval, accuracies), *noise.intervals]
    assert [row.accuracy for row in card.rows] == expected
    assert len({interval.value for interval in expected}) > 3
    assert [(row.test, row.name, row.size) for row in card.rows] == [
        ("clean", "", None),
        ("corruption", "dark", 2),
        ("corruption", "dark", 3),
        ("attack", "fgsm", 0.1),
        ("attack", "pgd-5", 0.1),
        ("weight noise", "relative", 0.5),
        ("weight noise", "relative", 1.0),
    ]
    assert {row.over for row in card.rows[:5]} == {"images"}
    assert {row.over for row in card.rows[5:]} == {"draws"}
    lines = str(card).splitlines()
    assert lines[0] == "30 images of squares" and len(lines) == 3 + len(card.rows)
    assert lines[3].split()[:2] == ["clean", "100.0"] and "fgsm" in lines[6]


def test_a_radius_in_levels_is_found_before_anything_runs(view, labels):
    def corrupted():
        raise AssertionError("ran")
        yield

    with pytest.raises(UsageError, match="write 8 / 255"):
        robustness_card(view, IMAGES, labels, key=KEY, eps=[8], corrupted=corrupted())


def test_corrupted_images_of_another_number_are_refused(view, labels):
    with pytest.raises(UsageError, match=r"labels of shape \(30,\) for images of shape \(29, "):
        robustness_card(
            view, IMAGES, labels, key=KEY, corrupted=[("dark", 1, IMAGES[1:])], batch_size=30
        )
