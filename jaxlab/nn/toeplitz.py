"""A bias by distance, laid out for every pair of a query and a key."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import platform


def by_distance(bias_hm: jax.Array, num_keys: int) -> jax.Array:
    """Lays out a bias for each distance as [h, s, t], with a row for each of s keys.

    Args:
      bias_hm: [h, s + t - 1], from the smallest distance (the first query, the last key) to the
        largest (the last query, the first key), in steps of one.
      num_keys: s.

    Each row is the one before, shifted by one. On a CPU, tiling and reshaping write it without a
    gather. The compiler for TPUs is slow at such reshapes, so elsewhere each square is a product
    with a matrix of zeros and ones.

    >>> by_distance(jnp.arange(4.0)[None], 2)[0].tolist()
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]
    """
    h, length = bias_hm.shape
    if platform() != "cpu":
        return _in_squares(bias_hm, num_keys, length - num_keys + 1)
    flat = jnp.broadcast_to(bias_hm[:, None], (h, num_keys, length)).reshape(h, -1)
    end = num_keys - 1 + num_keys * (length - 1)
    rows = flat[:, num_keys - 1 : end].reshape(h, num_keys, length - 1)
    return rows[:, :, : length - num_keys + 1]


def _in_squares(bias_hm: jax.Array, num_keys: int, num_queries: int) -> jax.Array:
    """`by_distance`, with each square of keys and queries made from its own range of distances."""
    h, size = bias_hm.shape[0], math.gcd(num_keys, num_queries)
    keys, queries = num_keys // size, num_queries // size
    first = [(keys - 1 - i + j) * size for i in range(keys) for j in range(queries)]
    ranges_hnm = jnp.stack([bias_hm[:, at : at + 2 * size - 1] for at in first], axis=1)
    distance_st = np.arange(size) - np.arange(size)[:, None] + size - 1
    one_mst = jnp.arange(2 * size - 1)[:, None, None] == distance_st[None]
    squares = jnp.einsum(
        "hnm,mst->hnst", ranges_hnm, one_mst.astype(bias_hm.dtype), precision="highest"
    )
    squares = squares.reshape(h, keys, queries, size, size).swapaxes(2, 3)
    return squares.reshape(h, num_keys, num_queries)
