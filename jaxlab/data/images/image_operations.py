"""The operations of RandAugment, on single images of floats in [0, 1].

They compute what Pillow does with levels, without its rounding; angles, slopes and factors may be
traced. `x_hwc` is an image with 1 or 3 channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def auto_contrast(x_hwc: jax.Array) -> jax.Array:
    """Stretches each channel to the whole of [0, 1]; a constant channel is unchanged."""
    low = x_hwc.min(axis=(0, 1), keepdims=True)
    high = x_hwc.max(axis=(0, 1), keepdims=True)
    span = jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, (x_hwc - low) / span, x_hwc)


def equalize(x_hwc: jax.Array) -> jax.Array:
    """Equalises the histogram of the 256 levels of each channel."""
    height, width, channels = x_hwc.shape
    levels_hwc = _levels(x_hwc)
    bins_hwc = levels_hwc + 256 * jnp.arange(channels)[None, None]
    counts = jnp.zeros(256 * channels, jnp.int32).at[bins_hwc.reshape(-1)].add(1)
    counts_ck = counts.reshape(channels, 256)
    highest_c1 = levels_hwc.max(axis=(0, 1))[:, None]
    rest_c1 = height * width - jnp.take_along_axis(counts_ck, highest_c1, axis=1)
    step_c1 = rest_c1 // 255
    below_ck = counts_ck.cumsum(axis=1) - counts_ck
    table_ck = jnp.minimum((below_ck + step_c1 // 2) // jnp.maximum(step_c1, 1), 255)
    table_ck = jnp.where(step_c1 > 0, table_ck, jnp.arange(256)[None])
    return table_ck.reshape(-1)[bins_hwc].astype(x_hwc.dtype) / 255


def solarize(x_hwc: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Inverts values at or above `threshold`, in [0, 1]."""
    return jnp.where(x_hwc < threshold, x_hwc, 1 - x_hwc)


def posterize(x_hwc: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Keeps the first `bits` of the 8 bits of each level."""
    width = 2 ** (8 - jnp.asarray(bits))
    return (_levels(x_hwc) // width * width / 255).astype(x_hwc.dtype)


def color(x_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Scales the distance from grey by `factor` (0 is grey); a grey image is unchanged."""
    if x_hwc.shape[2] == 1:
        return x_hwc
    return _blend(_grey(x_hwc), x_hwc, factor)


def contrast(x_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Scales the distance from the image's mean grey by `factor`."""
    return _blend(_grey(x_hwc).mean(), x_hwc, factor)


def brightness(x_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Scales the distance from black by `factor`."""
    return _blend(jnp.zeros((), x_hwc.dtype), x_hwc, factor)


def sharpness(x_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Scales the distance from a smoothed image by `factor`, except at the outermost pixels."""
    height, width, _ = x_hwc.shape
    rows = x_hwc[:-2] + x_hwc[1:-1] + x_hwc[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = x_hwc[1 : height - 1, 1 : width - 1]
    # The 3 x 3 kernel has 5 in its middle and 1 around it.
    smooth_hwc = x_hwc.at[1 : height - 1, 1 : width - 1].set((sums + 4 * inner) / 13)
    return _blend(smooth_hwc, x_hwc, factor)


def affine(x_hwc: jax.Array, matrix: jax.Array, fill: float = 0.5) -> jax.Array:
    """Samples the pixel centred at (x, y) from `matrix @ (x, y, 1)`, with nearest neighbour.

    Args:
      x_hwc: the image; (0, 0) is its upper left corner, x goes right and y down, in pixels.
      matrix: float [2, 3].
      fill: the value of pixels from outside the image.
    """
    height, width, channels = x_hwc.shape
    y, x = jnp.mgrid[:height, :width] + 0.5
    column, row = (
        jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in (matrix[0], matrix[1])
    )
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = row.clip(0, height - 1) * width + column.clip(0, width - 1)
    moved = x_hwc.reshape(-1, channels)[source]
    return jnp.where(inside[..., None], moved, jnp.asarray(fill, x_hwc.dtype))


def rotation(degrees: jax.Array | float, height: int, width: int) -> jax.Array:
    """Returns the matrix for `affine` that rotates an image counter-clockwise about its centre."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def shear_x(slope: jax.Array | float) -> jax.Array:
    """Returns the matrix for `affine` that moves the row at y by `-slope * y` pixels."""
    return jnp.array([[1.0, slope, 0.0], [0.0, 1.0, 0.0]])


def shear_y(slope: jax.Array | float) -> jax.Array:
    """Returns the matrix for `affine` that moves the column at x by `-slope * x` pixels."""
    return jnp.array([[1.0, 0.0, 0.0], [slope, 1.0, 0.0]])


def translation(right: jax.Array | float, down: jax.Array | float) -> jax.Array:
    """Returns the matrix for `affine` that moves an image; fractions of pixels are allowed."""
    return jnp.array([[1.0, 0.0, -right], [0.0, 1.0, -down]])


def _levels(x_hwc: jax.Array) -> jax.Array:
    return jnp.round(x_hwc * 255).astype(jnp.int32)


def _grey(x_hwc: jax.Array) -> jax.Array:
    """Returns the luma [h, w, 1] with the weights of ITU-R 601, like Pillow."""
    if x_hwc.shape[2] == 1:
        return x_hwc
    # A product with the weights would take XLA on CPU ten times as long.
    red, green, blue = (x_hwc[..., channel : channel + 1] for channel in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(base: jax.Array, x_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    return (base + factor * (x_hwc - base)).clip(0, 1)
