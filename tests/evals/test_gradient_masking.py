from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.evals import gradient_masking_checks, predict

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((40, 3, 3, 1)).astype(np.float32)
RISES, STEPS, RADIUS, ONE_STEP, UNBOUNDED, RANDOM, TRANSFER = range(7)


class Plain(nnx.Module):
    """Four classes by lines through grey."""

    def __init__(self, seed: int = 0):
        w = np.random.default_rng(seed).normal(size=(9, 4))
        self.kernel = nnx.Param(jnp.asarray(w, jnp.float32))

    def __call__(self, x_bhwc):
        return (x_bhwc.reshape(len(x_bhwc), 9) - 0.5) @ self.kernel[...]


class Reversed(Plain):
    """The same logits, with gradients that point the other way."""

    def __call__(self, x_bhwc):
        return super().__call__(2 * jax.lax.stop_gradient(x_bhwc) - x_bhwc)


class Rounded(Plain):
    """Images of few levels: no gradient at all."""

    def __call__(self, x_bhwc):
        return super().__call__(jnp.round(8 * x_bhwc) / 8)


class Constant(Plain):
    """Says class 0 of everything, more so of bright images."""

    def __call__(self, x_bhwc):
        score_b = 50 + x_bhwc.mean(axis=(1, 2, 3))
        return jnp.stack([score_b] + [0 * score_b] * 3, axis=1)


def checks(model, **kwargs):
    labels = predict(model, IMAGES, np.zeros(40, int), batch_size=40).logits.argmax(1)
    arguments = dict(eps=0.1, key=KEY, batch_size=40) | kwargs
    return gradient_masking_checks(model, IMAGES, labels, **arguments)


def held(claims) -> list[bool]:
    return [claim.holds for claim in claims]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_checks_hold_where_gradients_tell_the_truth(norm):
    claims = checks(Plain(), other=Plain(seed=1), norm=norm)
    assert held(claims) == [True] * 7
    assert claims[RISES].measured == "on 100.0%" and claims[UNBOUNDED].measured == "0.0%"
    assert len({claim.claim for claim in claims}) == 7


def test_reversed_gradients_are_found():
    found = held(checks(Reversed(), other=View.of(Plain())))
    assert not found[RISES] and not found[UNBOUNDED] and not found[RANDOM]
    assert not found[TRANSFER]
    assert found[STEPS]  # PGD leaves every image right, however many steps it takes


def test_absent_gradients_are_found():
    found = held(checks(Rounded(), other=View.of(Plain())))
    assert not found[RISES] and not found[UNBOUNDED] and not found[TRANSFER]


def test_a_model_that_no_image_moves_is_found_by_the_unbounded_attack_alone():
    found = held(checks(Constant()))
    assert found == [True, True, True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "eps=0; the checks take a radius above 0"),
        ({"eps": 8}, "eps=8 in linf .* looks like levels"),
        ({"steps": 3}, "steps=3; expected 4 or more"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        checks(Plain(), **arguments)
