"""Conversion of images from uint8 levels to floats in [0, 1]; it happens nowhere else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError


def unit_images(images_bhwc: Any) -> jax.Array:
    """Converts images to floats in [0, 1].

    Args:
      images_bhwc: uint8 levels from 0 to 255, which are divided by 255; or floats in [0, 1], which
        are unchanged.

    Returns:
      float32 [b, h, w, c] (float64 and bfloat16 keep their dtype).

    Raises:
      UsageError: another dtype or rank; floats outside [0, 1] (not checked under `jax.jit`, where
        values are unknown).

    >>> unit_images(np.full((1, 1, 1, 1), 51, np.uint8)).tolist()
    [[[[0.20000000298023224]]]]
    """
    dtype = images_bhwc.dtype
    if images_bhwc.ndim != 4:
        raise UsageError(f"images of shape {images_bhwc.shape}; expected [b, h, w, c]")
    if dtype == np.uint8:
        return jnp.asarray(images_bhwc).astype(jnp.float32) / 255
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UsageError(
            f"images of dtype {dtype}; expected uint8 levels from 0 to 255, or floats in [0, 1]"
        )
    if not isinstance(images_bhwc, jax.core.Tracer) and images_bhwc.size:
        low, high = float(images_bhwc.min()), float(images_bhwc.max())
        if not (low >= 0 and high <= 1):
            raise UsageError(
                f"float images from {low:g} to {high:g}; expected [0, 1]: give levels as uint8, "
                "and leave normalisation to the model"
            )
    return jnp.asarray(images_bhwc)
