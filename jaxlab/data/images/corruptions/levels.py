"""Levels from 0 to 255 and numbers in [0, 1], one image at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Function = Callable[..., jax.Array]
"""`(key, image_hwc in levels, *constants) -> image_hwc in levels`, all uint8."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def as_levels(x: jax.Array) -> jax.Array:
    """Levels of numbers in [0, 1]: clipped, times 255 and cut off, not rounded, to uint8."""
    return cut_off(jnp.clip(x, 0, 1) * 255)


def cut_off(levels: jax.Array) -> jax.Array:
    """Levels as uint8: clipped to [0, 255] and cut off to the whole number below."""
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def rounded(levels: jax.Array) -> jax.Array:
    """Levels as uint8: clipped to [0, 255] and rounded, halves up."""
    return cut_off(jnp.floor(levels + 0.5))


def on_unit_interval(function: Function) -> Function:
    """Makes a function of levels out of one of numbers in [0, 1], whose result may lie outside."""

    @functools.wraps(function)
    def on_levels(key: jax.Array, image_hwc: jax.Array, *constants: jax.Array) -> jax.Array:
        return as_levels(function(key, image_hwc.astype(jnp.float32) / 255, *constants))

    return on_levels


def grey(x_hwc: jax.Array) -> jax.Array:
    """Brightness of each pixel, [h, w]."""
    if x_hwc.shape[2] == 1:
        return x_hwc[..., 0]
    red, green, blue = (x_hwc[..., i] * share for i, share in enumerate(LUMA))
    return red + green + blue
