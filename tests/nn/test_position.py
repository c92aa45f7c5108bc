from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.nn import Rotary, T5Bias
from jaxlab.nn.position import t5_buckets


def test_buckets_are_exact_and_then_logarithmic():
    for n in range(300):
        far = 16 + math.floor(16 * math.log(max(n, 1) / 16) / math.log(8) + 1e-6)
        assert t5_buckets(np.array([n]))[0] == (n if n < 16 else min(far, 31)), n
    assert t5_buckets(np.array([-3])) == 0


def test_bias_is_the_table_at_the_bucket_of_the_distance():
    bias = T5Bias(3, rngs=nnx.Rngs(0))
    table = np.asarray(bias.bias[...])
    distances = np.array([[0, 5, 200], [17, 1, 90]])
    np.testing.assert_allclose(bias(distances), table[:, t5_buckets(distances)], rtol=1e-6)
    assert np.unique(table).size == table.size


def test_rotary_products_depend_on_differences_alone():
    rotary, rng = Rotary(6), np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 4, 2, 6)).astype(np.float32)
    positions = np.array([0, 3, 4, 9])

    def products(shift):
        turned = [rotary(x, positions + shift) for x in (q, k)]
        return jnp.einsum("bthk,bshk->bhts", *turned)

    np.testing.assert_allclose(products(0), products(1000), atol=2e-4)
    plain = jnp.einsum("bthk,bshk->bhts", q, k)
    assert np.abs(products(0) - plain).max() > 0.1
    np.testing.assert_allclose(
        np.diagonal(products(0), axis1=2, axis2=3), np.diagonal(plain, axis1=2, axis2=3), atol=1e-5
    )


def test_rotary_is_a_rotation_by_position_times_rate():
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 4)).astype(np.float32)
    got = Rotary(4)(x, np.array([0, 7]))
    np.testing.assert_allclose(got[:, 0], x[:, 0])
    for feature, rate in ((0, 1.0), (1, 10000.0**-0.5)):
        z = complex(x[0, 1, 0, feature], x[0, 1, 0, feature + 2]) * np.exp(7j * rate)
        np.testing.assert_allclose(got[0, 1, 0, feature::2], [z.real, z.imag], rtol=1e-5)


def test_rotary_takes_positions_of_each_row():
    x = np.random.default_rng(0).normal(size=(2, 3, 1, 4)).astype(np.float32)
    positions = np.array([[0, 1, 2], [5, 7, 6]])
    got = Rotary(4)(x, positions)
    for row in range(2):
        np.testing.assert_array_equal(got[row], Rotary(4)(x[row : row + 1], positions[row])[0])
