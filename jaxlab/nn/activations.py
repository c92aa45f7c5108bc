"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; its derivative, 0 at 0, keeps the result instead of the input."""
    return jnp.maximum(x, 0)


relu.defjvps(lambda tangent, result, _: jnp.where(result > 0, tangent, 0))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}
"""Activation functions by the name that configs have for them."""
