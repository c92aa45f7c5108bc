"""Broadcasting that says so: tests run with JAX's implicit rank promotion switched off."""

from __future__ import annotations

import jax


def lift(x: jax.Array, ndim: int) -> jax.Array:
    """`x` with leading axes of size 1, up to rank `ndim`.

    >>> import jax.numpy as jnp
    >>> lift(jnp.ones((3, 1)), 4).shape
    (1, 1, 3, 1)
    """
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)
