"""The feed-forward layer, norms, dropout and the block around its parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.nn import (
    Block,
    FeedForward,
    RMSNorm,
    dropout,
    l2_normalise,
    make_backend,
    projection,
)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp_is_two_products_and_an_activation(gated):
    mlp = FeedForward(4, 6, activation="silu", gated=gated, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    up, down = (np.asarray(layer.kernel[...]) for layer in (mlp.up, mlp.down))

    def silu(y):
        return y / (1 + np.exp(-y))

    hidden = silu(x @ np.asarray(mlp.gate.kernel[...])) * (x @ up) if gated else silu(x @ up)
    np.testing.assert_allclose(mlp(x), hidden @ down, atol=1e-5)


def test_relu_and_its_derivatives_are_those_of_jax(backend):
    x, direction = jnp.array([-2.0, 0.0, 3.0, jnp.nan]), jnp.array([1.0, 2.0, 3.0, 4.0])

    def derivatives(relu):
        gradient = jax.grad(lambda x: (relu(x) ** 3).sum())
        rows = jax.vmap(lambda scale: relu(scale * x) + x)(jnp.arange(3.0))  # x lives on
        return relu(x), gradient(x), jax.jvp(gradient, (x,), (direction,))[1], rows

    jax.tree.map(np.testing.assert_array_equal, derivatives(backend.relu), derivatives(jax.nn.relu))


@pytest.mark.usefixtures("compiler")
def test_compiled_relu_leaves_nothing_of_its_input_to_the_derivative(optimised):
    mlp = FeedForward(16, 512, backend=make_backend("compiled"), rngs=nnx.Rngs(0))
    graph, state = nnx.split(mlp)
    x = jnp.ones((1024, 16))

    def total(state):
        return (nnx.merge(graph, state)(x) ** 2).sum()

    program = jax.jit(jax.grad(total)).lower(state).compile(optimised)
    hidden = 1024 * 512 * 4
    # The result and the derivative by it; XLA's own would be a third.
    assert 2 * hidden <= program.memory_analysis().temp_size_in_bytes < 2.5 * hidden


def test_norms_have_unit_size_and_keep_the_dtype():
    x = 7 * np.random.default_rng(0).normal(size=(3, 16))
    for dtype in (jnp.float32, jnp.bfloat16):
        rms = RMSNorm(16, dtype=dtype, rngs=nnx.Rngs(0))(jnp.asarray(x, dtype))
        l2 = l2_normalise(jnp.asarray(x, dtype))
        assert rms.dtype == l2.dtype == dtype
        np.testing.assert_allclose(np.square(rms.astype(np.float32)).mean(-1), 1, atol=0.02)
        np.testing.assert_allclose(np.square(l2.astype(np.float32)).sum(-1), 1, atol=0.02)
    assert (l2_normalise(jnp.zeros((2, 4))) == 0).all()


def test_projections_start_with_the_variance_of_one_over_fan_in():
    kernel = projection((4, 32), 256, (None, None, None), rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (4, 32, 256)
    np.testing.assert_allclose(kernel.std(), 128**-0.5, rtol=0.03)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((400, 50))
    dropped = dropout(x, 0.25, jax.random.key(0))
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
    np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.02)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


class Shift(nnx.Module):
    """A mixer that adds what came before."""

    def __call__(self, x_btd, segment, carry):
        return jnp.zeros_like(x_btd) + carry, carry + 1


def test_block_adds_its_parts_to_the_stream_and_hands_on_the_carry():
    block = Block(4, Shift(), FeedForward(4, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 2, 4)).astype(np.float32)
    y, carry = block(x, None, jnp.float32(3))
    mixed = x + 3
    np.testing.assert_allclose(y, mixed + block.mlp(block.mlp_norm(mixed)), rtol=1e-6)
    assert carry == 4
