"""The input of image classifiers: checks images and normalises them inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError
from jaxlab.nn.broadcast import lift


class ImageInput(nnx.Module):
    """`(x - mean) / std` of images in [0, 1], with a mean and a deviation for each channel.

    Normalisation is part of the model, so that corruptions and attacks work in units of images.

    Args:
      shape: (h, w, c).
      mean, std: of each channel, or one for all, in units of [0, 1].
      dtype: of the output.

    Raises:
      UsageError: a number of values other than that of channels, or a deviation that is not above
        0; when called, images of another shape or dtype.
    """

    def __init__(
        self,
        shape: Sequence[int],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        *,
        dtype: Any = jnp.float32,
    ):
        self.shape, self.mean, self.std = tuple(shape), tuple(mean), tuple(std)
        self.dtype = dtype
        if len(self.shape) != 3:
            raise UsageError(f"image_shape={self.shape}; expected (height, width, channels)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[-1]):
                raise UsageError(
                    f"{name} has {len(values)} values for {self.shape[-1]} channels; give one a "
                    "channel, or one for all"
                )
        if not all(value > 0 for value in self.std):
            raise UsageError(f"std={self.std}; expected values above 0")

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, c] floats in [0, 1] to [b, h, w, c]."""
        if not jnp.issubdtype(images_bhwc.dtype, jnp.floating):
            raise UsageError(
                f"images of dtype {images_bhwc.dtype}; expected floats in [0, 1]: "
                "data.unit_images(images) makes them of uint8 levels"
            )
        if images_bhwc.shape[1:] != self.shape:
            raise UsageError(
                f"images of shape {images_bhwc.shape}; the model takes [b, "
                f"{', '.join(map(str, self.shape))}]"
            )
        mean, std = (
            lift(np.asarray(values, np.float32), images_bhwc.ndim)
            for values in (self.mean, self.std)
        )
        return ((images_bhwc - mean) / std).astype(self.dtype)
