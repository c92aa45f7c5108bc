"""Relative positions of queries and keys: T5 bias and rotary embedding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.nn.broadcast import lift


def t5_buckets(distances: np.ndarray, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Buckets of causal distances: half of them for one distance each, the others logarithmic.

    Args:
      distances: integers, position of the query minus position of the key; negative counts as 0.

    Returns:
      Integers in [0, num_buckets). Source: arXiv 1910.10683, the unidirectional case.

    >>> t5_buckets(np.array([0, 1, 15, 16, 127, 128, 5000])).tolist()
    [0, 1, 15, 16, 31, 31, 31]
    """
    n = np.maximum(np.asarray(distances), 0)
    exact = num_buckets // 2
    scale = (num_buckets - exact) / math.log(max_distance / exact)
    # In float32 like the reference implementations: the borders between buckets depend on it.
    log = np.log(np.maximum(n, 1).astype(np.float32) / exact) * np.float32(scale)
    far = exact + np.floor(log).astype(np.int64)
    return np.where(n < exact, n, np.minimum(far, num_buckets - 1))


class T5Bias(nnx.Module):
    """A learned bias for each head and bucket of distances (arXiv 1910.10683), causal."""

    def __init__(
        self, num_heads: int, num_buckets: int = 32, max_distance: int = 128, *, rngs: nnx.Rngs
    ):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.bias = nnx.Param(init(rngs.params(), (num_heads, num_buckets)), axes=("heads", None))
        self.num_buckets, self.max_distance = num_buckets, max_distance

    def __call__(self, distances: np.ndarray) -> jax.Array:
        """Bias [h, ...] for an integer array of distances known at trace time.

        The table is read by a product with a constant, whose derivative is a product too; that of a
        gather would be a scatter.
        """
        buckets = t5_buckets(distances, self.num_buckets, self.max_distance)
        onehot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.einsum("hn,...n->h...", self.bias[...], onehot)


class Rotary(nnx.Module):
    """Rotary position embedding (arXiv 2104.09864): rotates pairs of features by the position."""

    def __init__(self, head_dim: int, base: float = 10000.0):
        self.head_dim, self.base = head_dim, base

    def __call__(self, x_bthk: jax.Array, positions_t: jax.Array | np.ndarray) -> jax.Array:
        """Rotates [b, t, h, k] by positions [t] or [b, t]; products depend on differences alone."""
        half = self.head_dim // 2
        rates = self.base ** (-np.arange(half, dtype=np.float32) / half)
        angles = lift(jnp.asarray(positions_t, jnp.float32)[..., None, None], 4) * lift(rates, 4)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate(turned, axis=-1).astype(x_bthk.dtype)
