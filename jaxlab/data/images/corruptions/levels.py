"""Conversions between levels from 0 to 255 and numbers in [0, 1]."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Function = Callable[..., jax.Array]
"""`(key, image_hwc, *constants) -> image_hwc`, with uint8 levels."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def as_levels(x: jax.Array) -> jax.Array:
    """Converts numbers to uint8 levels: clips to [0, 1], multiplies by 255 and truncates."""
    return truncated(jnp.clip(x, 0, 1) * 255)


def truncated(levels: jax.Array) -> jax.Array:
    """Clips levels to [0, 255] and truncates them to uint8."""
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def rounded(levels: jax.Array) -> jax.Array:
    """Clips levels to [0, 255] and rounds them to uint8, halves up."""
    return truncated(jnp.floor(levels + 0.5))


def on_unit_interval(function: Function) -> Function:
    """Turns a function of numbers in [0, 1] into one of levels; its result is clipped."""

    @functools.wraps(function)
    def on_levels(key: jax.Array, image_hwc: jax.Array, *constants: jax.Array) -> jax.Array:
        return as_levels(function(key, image_hwc.astype(jnp.float32) / 255, *constants))

    return on_levels


def grey(x_hwc: jax.Array) -> jax.Array:
    """Returns the luma of each pixel, [h, w]."""
    if x_hwc.shape[2] == 1:
        return x_hwc[..., 0]
    red, green, blue = (x_hwc[..., i] * share for i, share in enumerate(LUMA))
    return red + green + blue
