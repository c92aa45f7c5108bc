"""Explicit broadcasting between ranks: in tests, JAX refuses to do it implicitly."""

from __future__ import annotations

from typing import Any


def lift(x: Any, ndim: int) -> Any:
    """An array, of JAX or NumPy, with leading axes of size 1 up to rank `ndim`.

    >>> import jax.numpy as jnp
    >>> lift(jnp.ones((3, 1)), 4).shape
    (1, 1, 3, 1)
    """
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)
