"""JPEG compression: by Pillow on the host, and by libjpeg's arithmetic on the device."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np

LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Luminance quantisation at quality 50 (ITU-T T.81, table K.1)."""
CHROMINANCE = np.full((8, 8), 99)
"""Chrominance quantisation at quality 50 (ITU-T T.81, table K.2)."""
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_HALF = np.array(
    [
        [8192, 8192, 8192, 8192],
        [11363, 9633, 6437, 2260],
        [10703, 4433, -4433, -10703],
        [9633, -2259, -11362, -6436],
        [8192, -8192, -8192, 8192],
        [6437, -11362, 2261, 9633],
        [4433, -10704, 10704, -4433],
        [2260, -6436, 9633, -11363],
    ]
)
_SIGNS = np.array([1, -1] * 4)[:, None]
COSINES = np.hstack([_HALF, _SIGNS * _HALF[:, ::-1]]).astype(np.int32)
"""The cosine transform of 8 values, times 2^13 sqrt(8), with the integers of libjpeg's accurate
transform; [frequency, position]."""


def through_pillow(images_bhwc: np.ndarray, quality: int) -> np.ndarray:
    """Writes each image as JPEG and reads it back with Pillow; chroma has half the resolution."""
    from PIL import Image

    shape = images_bhwc.shape
    out_bhwc = np.empty_like(images_bhwc)
    for i, image_hwc in enumerate(images_bhwc):
        file = io.BytesIO()
        Image.fromarray(image_hwc[..., 0] if shape[3] == 1 else image_hwc).save(
            file, "JPEG", quality=quality
        )
        out_bhwc[i] = np.asarray(Image.open(file)).reshape(shape[1:])
    return out_bhwc


def quantisation(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns luminance and chrominance steps, int32 [8, 8] each, at a quality from 1 to 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luminance, chrominance = (
        np.clip((table * percent + 50) // 100, 1, 255).astype(np.int32)
        for table in (LUMINANCE, CHROMINANCE)
    )
    return luminance, chrominance


def jpeg_constants(size: tuple[int, int], quality: int) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and chrominance steps."""
    return quantisation(quality)


def jpeg(
    key: jax.Array, image_hwc: jax.Array, luminance: jax.Array, chrominance: jax.Array
) -> jax.Array:
    """Compresses and decompresses as JPEG, in libjpeg's integer arithmetic; deterministic."""
    h, w, c = image_hwc.shape
    if c == 1:
        return _clip(_through_blocks(image_hwc[..., 0].astype(jnp.int32), luminance)[..., None])
    # Chroma has half the resolution, so blocks are 16 pixels wide.
    pad = ((0, -h % 16), (0, -w % 16), (0, 0))
    red, green, blue = jnp.moveaxis(jnp.pad(image_hwc, pad, mode="edge").astype(jnp.int32), 2, 0)
    y = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
    to_blue = ((-11059 * red - 21709 * green + (blue << 15) + (1 << 15) - 1) >> 16) + 128
    to_red = (((red << 15) - 27439 * green - 5329 * blue + (1 << 15) - 1) >> 16) + 128
    y = _clip(_through_blocks(y, luminance)).astype(jnp.int32)
    halves = ((h + 1) // 2, (w + 1) // 2)
    to_blue, to_red = (
        _doubled(_clip(_through_blocks(_halved(x), chrominance)).astype(jnp.int32), halves)
        for x in (to_blue, to_red)
    )
    y, to_blue, to_red = (x[:h, :w] for x in (y, to_blue - 128, to_red - 128))
    red = y + ((91881 * to_red + (1 << 15)) >> 16)
    green = y + ((-22554 * to_blue - 46802 * to_red + (1 << 15)) >> 16)
    blue = y + ((116130 * to_blue + (1 << 15)) >> 16)
    return _clip(jnp.stack([red, green, blue], axis=2))


def _clip(levels: jax.Array) -> jax.Array:
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def _halved(x_hw: jax.Array) -> jax.Array:
    """Averages 2x2 pixels; halves are rounded down and up alternately along a row."""
    total = x_hw[::2, ::2] + x_hw[::2, 1::2] + x_hw[1::2, ::2] + x_hw[1::2, 1::2]
    return (total + 1 + jnp.arange(total.shape[1])[None] % 2) >> 2


def _doubled(x_hw: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Doubles the resolution: 3/4 of the nearest and 1/4 of the next pixel, in both directions.

    Args:
      x_hw: [h, w]; the image is the first `size` of it, and its last pixels are repeated.
    """
    x_hw = x_hw[: size[0], : size[1]]
    padded = jnp.pad(x_hw, 1, mode="edge")
    above, here, below = padded[:-2], padded[1:-1], padded[2:]
    rows = jnp.stack([3 * here + above, 3 * here + below], axis=1).reshape(-1, size[1] + 2)
    left, here, right = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    pairs = jnp.stack([(3 * here + left + 8) >> 4, (3 * here + right + 7) >> 4], axis=2)
    return pairs.reshape(2 * size[0], 2 * size[1])


def _through_blocks(x_hw: jax.Array, steps: jax.Array) -> jax.Array:
    """Quantises the frequencies of 8x8 blocks; returns levels, not clipped, int32 [h, w]."""
    h, w = x_hw.shape
    padded = jnp.pad(x_hw, ((0, -h % 8), (0, -w % 8)), mode="edge") - 128
    tall, wide = padded.shape
    blocks = padded.reshape(tall // 8, 8, wide // 8, 8).transpose(0, 2, 1, 3)
    # The transform is eight times the orthonormal one.
    waves = _rounded_shift(jnp.einsum("vx,ijyx->ijyv", COSINES, blocks), 11)
    waves = _rounded_shift(jnp.einsum("uy,ijyv->ijuv", COSINES, waves), 15)
    steps = steps[None, None]
    wide_steps = 8 * steps
    whole = jnp.sign(waves) * ((jnp.abs(waves) + wide_steps // 2) // wide_steps) * steps
    back = _rounded_shift(jnp.einsum("uy,ijuv->ijyv", COSINES, whole), 11)
    back = _rounded_shift(jnp.einsum("vx,ijyv->ijyx", COSINES, back), 18) + 128
    return back.transpose(0, 2, 1, 3).reshape(tall, wide)[:h, :w]


def _rounded_shift(x: jax.Array, bits: int) -> jax.Array:
    return (x + (1 << (bits - 1))) >> bits
