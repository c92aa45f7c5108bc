from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab import nn
from jaxlab.core import View


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_values_derivatives_and_statistics_are_those_of_nnx_in_both_modes():
    x, weights = 3 * numbers(4, 3, 3, 5) + 1, numbers(4, 3, 3, 5, seed=1)
    ours = nn.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))
    theirs = nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))

    def all_of(model):
        model.scale[...], model.bias[...] = jnp.arange(1.0, 6.0), jnp.arange(5.0)
        view = View.of(model).training()

        def run(params, x):
            y, state = view.apply_with_state(params, view.state, x)
            return (jnp.sin(y) * weights).sum(), state

        gradient = jax.grad(run, argnums=(0, 1), has_aux=True)
        (grads, state), (more, _) = jax.jvp(lambda x: gradient(view.params, x), (x,), (weights,))
        evaluated = View.of(model).evaluating()
        y, same = evaluated.apply_with_state(view.params, state, x)
        return run(view.params, x)[0], grads, more, state, y, same

    got, want = map(jax.tree.leaves, (all_of(ours), all_of(theirs)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_the_statistics_that_remain_are_those_of_the_batch():
    x = 3 * numbers(4, 3, 3, 5) + 1
    layer = nn.BatchNorm(5, momentum=0.75, rngs=nnx.Rngs(0))
    y = layer(x)
    rows = np.asarray(x).reshape(-1, 5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 5).mean(0), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 5).std(0), np.ones(5), rtol=1e-4)
    np.testing.assert_allclose(layer.mean[...], rows.mean(0) / 4, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.75 + rows.var(0) / 4, rtol=1e-5)


def test_a_view_of_nnx_sets_the_mode():
    layer = nn.BatchNorm(2, rngs=nnx.Rngs(0))
    still = nnx.view(layer, use_running_average=True)
    x = numbers(3, 2)
    np.testing.assert_allclose(still(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_the_output_is_of_the_dtype_asked_for():
    layer = nn.BatchNorm(2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(numbers(3, 2).astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer.mean[...].dtype == jnp.float32
