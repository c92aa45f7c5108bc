"""Normalisation: of features (RMS) and of the vectors of a head (L2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def rms_norm(width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """`x * rsqrt(mean(x^2) + 1e-6) * scale` over the last axis, statistics in float32."""
    return nnx.RMSNorm(
        width, epsilon=1e-6, dtype=dtype, scale_metadata={"axes": ("embed",)}, rngs=rngs
    )


def l2_normalise(x: jax.Array) -> jax.Array:
    """`x * rsqrt(sum(x^2) + 1e-6)` over the last axis, computed in float32, dtype kept."""
    x32 = x.astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.square(x32).sum(axis=-1, keepdims=True) + 1e-6)
    return (x32 * norm).astype(x.dtype)
