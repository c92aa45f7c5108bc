"""Normalisation of features (RMS, layer, group, batch) and of the vectors of a head (L2).

RMS and L2 save only their input for the backward pass; otherwise they would also save their factor,
broadcast to the size of the input.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.batch_norm import BatchNorm
from jaxlab.nn.broadcast import lift

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """`x * rsqrt(mean(x^2) + 1e-6) * scale` over the last axis, computed in float32.

    Args:
      width: d, the size of the last axis.
      dtype: of the output.
    """

    def __init__(self, width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=("embed",))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        return _rms(x, self.scale[...]).astype(self.dtype)


def layer_norm(width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation of the last axis (arXiv 1607.06450), with scale and bias."""
    return nnx.LayerNorm(width, dtype=dtype, **_AXES, rngs=rngs)


def group_norm(width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation (arXiv 1803.08494): 16 channels a group, or all if they do not divide."""
    groups = width // 16 if width % 16 == 0 else 1
    return nnx.GroupNorm(width, groups, dtype=dtype, **_AXES, rngs=rngs)


def batch_norm(width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> BatchNorm:
    """Batch normalisation (arXiv 1502.03167) whose running statistics decay by 0.9 a step.

    Statistics are over all rows of the batch, on however many devices they are.
    """
    return BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)


_AXES: dict[str, Any] = {
    "scale_metadata": {"axes": ("embed",)},
    "bias_metadata": {"axes": ("embed",)},
}

NORMS = {"batch": batch_norm, "layer": layer_norm, "group": group_norm}
"""Norms with scale and bias by name; each is called as `norm(width, dtype=dtype, rngs=rngs)`."""


@jax.checkpoint
def _rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean = jnp.square(x32).mean(axis=-1, keepdims=True)
    return x32 * jax.lax.rsqrt(mean + EPSILON) * lift(scale, x.ndim)


@jax.checkpoint
def l2_normalise(x: jax.Array, factor: jax.Array | float = 1.0) -> jax.Array:
    """`factor * x * rsqrt(sum(x^2) + 1e-6)` over the last axis, in float32; keeps the dtype of x.

    Args:
      x: [..., k].
      factor: a number, or an array that broadcasts against [..., 1] from the right.
    """
    x32 = x.astype(jnp.float32)
    total = jnp.square(x32).sum(axis=-1, keepdims=True)
    if isinstance(factor, jax.Array):
        factor = lift(factor, x.ndim)
    return (x32 * (jax.lax.rsqrt(total + EPSILON) * factor)).astype(x.dtype)


def scale_queries(q_bthk: jax.Array, scale: nnx.Param | jax.Array | None) -> jax.Array:
    """`|scale_h| * q / |q|` with learned scales [h], else `q / sqrt(k)`."""
    if scale is None:
        return q_bthk * q_bthk.shape[-1] ** -0.5
    return l2_normalise(q_bthk, jnp.abs(scale[...])[:, None])
