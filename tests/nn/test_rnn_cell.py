from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.nn import BlockRecurrentRNNCell

B, J, W, D = 2, 3, 4, 8


def test_a_flax_rnn_over_blocks_is_the_layer_over_the_whole_text(backend):
    cell = BlockRecurrentRNNCell(D, W, 2, 3, backend=backend, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (B, J, W, D))
    carry, outputs = nnx.RNN(cell, return_carry=True)(x)
    want, after = cell.layer(x.reshape(B, J * W, D))
    np.testing.assert_allclose(outputs.reshape(B, J * W, D), want, atol=1e-5)
    np.testing.assert_allclose(carry["layer"]["state"], after["state"], atol=1e-5)
    assert carry["length"].tolist() == [J * W] * B


def test_the_loop_of_a_notebook_trains_the_state_through_blocks():
    cell = BlockRecurrentRNNCell(D, W, 2, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (B, 4, W, D))

    def last(x):
        carry = cell.initialize_carry((B, W, D))
        for j in range(4):
            carry, y = cell(carry, x[:, j])
        return jnp.square(y).sum()

    assert np.abs(jax.grad(last)(x)[:, 0]).max() > 0  # three blocks back: by the state alone
