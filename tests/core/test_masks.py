from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View, apply_masks


class Net(nnx.Module):
    """Two layers and a norm with running statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(3, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.down = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x_bd: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.norm(self.up(x_bd))))


X = jax.random.normal(jax.random.key(1), (4, 3))
MASK = np.random.default_rng(0).random((3, 5)) < 0.5


@pytest.fixture(scope="module")
def view() -> View:
    return View.of(Net(nnx.Rngs(0))).evaluating()


def zeroed(params):
    kernel = np.asarray(params["up/kernel"]).copy()
    kernel[~MASK] = 0
    return {**params, "up/kernel": jnp.asarray(kernel)}


def test_masked_weights_are_zero_and_the_others_untouched(view):
    masked = apply_masks(view.params, {"up/kernel": MASK})
    for path, p in zeroed(view.params).items():
        np.testing.assert_array_equal(masked[path], p)
    infinite = {**view.params, "up/kernel": jnp.full((3, 5), jnp.nan)}
    assert not np.isnan(apply_masks(infinite, {"up/kernel": MASK})["up/kernel"][~MASK]).any()


def test_a_masked_view_masks_whatever_parameters_it_is_called_with(view):
    masked = view.masked({"up/kernel": MASK})
    np.testing.assert_array_equal(masked.params["up/kernel"], zeroed(view.params)["up/kernel"])
    other = View.of(Net(nnx.Rngs(1))).params
    wanted = view.apply(zeroed(other), X)
    np.testing.assert_array_equal(masked.apply(other, X), wanted)
    np.testing.assert_array_equal(masked.at(other)(X), wanted)
    np.testing.assert_array_equal(masked.bind(other)(X), wanted)
    np.testing.assert_array_equal(masked.apply_with_state(other, view.state, X)[0], wanted)
    np.testing.assert_array_equal(masked.taps(X, "", params=other)[""], wanted)
    assert not np.array_equal(view.apply(other, X), wanted)


def test_gradients_through_a_masked_view_are_masked(view):
    masked = view.masked({"up/kernel": MASK})
    grads = jax.grad(lambda p: masked.apply(p, X).sum())(view.params)
    assert (grads["up/kernel"][~MASK] == 0).all() and (grads["up/kernel"][MASK] != 0).all()
    dense = jax.grad(lambda p: view.apply(p, X).sum())(zeroed(view.params))
    np.testing.assert_allclose(grads["up/kernel"][MASK], dense["up/kernel"][MASK], rtol=1e-5)
    assert (dense["up/kernel"][~MASK] != 0).any()


def test_a_mask_of_all_weights_changes_no_bit(view):
    full = view.masked({path: jnp.ones(p.shape, bool) for path, p in view.params.items()})
    np.testing.assert_array_equal(full(X), view(X))


def test_masks_join_and_survive_modes(view):
    left, right = np.zeros((2, 3, 5), bool)
    left[:2], right[1:] = True, True
    both = view.masked({"up/kernel": left}).training().masked({"up/kernel": right}).evaluating()
    np.testing.assert_array_equal(both.masks["up/kernel"], left & right)
    assert (both.params["up/kernel"][1] != 0).all() and not both.params["up/kernel"][::2].any()
    assert view.masks == {}


def test_an_abstract_view_is_masked_when_it_gets_parameters(view):
    masked = View.abstract(lambda: Net(nnx.Rngs(0))).masked({"up/kernel": MASK}).evaluating()
    assert isinstance(masked.params["up/kernel"], jax.ShapeDtypeStruct)
    out, _ = masked.apply_with_state(view.params, view.state, X)
    np.testing.assert_array_equal(out, view.apply(zeroed(view.params), X))


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"up/kernl": MASK}, "the mask 'up/kernl' fits no parameter; did you mean 'up/kernel'"),
        ({"up/kernel": MASK.T}, r"the mask of 'up/kernel' is bool\[5, 3\]; it takes bool\[3, 5\]"),
        ({"up/kernel": MASK * 1.0}, r"is float64\[3, 5\]; it takes bool"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(view, masks, words):
    with pytest.raises(UsageError, match=words):
        view.masked(masks)
    with pytest.raises(UsageError, match=words):
        apply_masks(view.params, masks)
