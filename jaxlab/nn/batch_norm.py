"""Batch normalisation in the form with the cheapest derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.broadcast import lift


class BatchNorm(nnx.Module):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` over all axes but the last.

    In training mode, mean and variance are those of the batch, and the running ones move towards
    them; in evaluation mode they are the running ones (arXiv 1502.03167). Variables, modes and
    numbers are those of `nnx.BatchNorm`. It is computed as `x * a + b`, with one a and one b for
    each channel, so that its derivative takes two sums over the batch, of `dy` and `dy * x`, and
    one pass.

    Args:
      width: channels c.
      momentum: share of the running statistics that each batch keeps.
      epsilon: added to the variance.
      dtype: of the output; statistics and parameters are float32.

    Attributes:
      use_running_average: the mode, as `train()` and `eval()` of the model set it.
    """

    def __init__(
        self,
        width: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), axes=("embed",))
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32))
        self.momentum, self.epsilon = momentum, epsilon
        self.dtype = dtype
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., c] to [..., c]."""
        mean, var = self.mean[...], self.var[...]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not self.use_running_average:
            old, axes = (mean, var), tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
            self.mean[...] = self._moved(old[0], mean)
            self.var[...] = self._moved(old[1], var)
        a = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        b = self.bias[...] - mean * a
        return (x * lift(a, x.ndim) + lift(b, x.ndim)).astype(self.dtype)

    def _moved(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        batch = jax.lax.stop_gradient(batch).astype(running.dtype)
        return self.momentum * running + (1 - self.momentum) * batch

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls it."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
