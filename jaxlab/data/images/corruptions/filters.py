"""Linear filters of one image, as sums of separable ones: a matrix for rows and one for columns.

The matrices, which include the handling of borders, are made once on the host; applying them takes
two matrix products on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Border = Literal["edge", "symmetric", "reflect"]
"""The extension of an image beyond its border, as `numpy.pad` calls it."""
NEAREST: Border = "edge"
"""Beyond the border, the outermost pixel is repeated."""
SYMMETRIC: Border = "symmetric"
"""Beyond the border, the image is mirrored with its outermost pixel: `c b a | a b c`."""
MIRROR: Border = "reflect"
"""Beyond the border, the image is mirrored about its outermost pixel: `c b | a b c`."""


def correlation_matrix(size: int, taps: Sequence[float] | np.ndarray, border: Border) -> np.ndarray:
    """Returns the matrix that correlates a line with an odd number of taps.

    >>> correlation_matrix(3, [1, 0, 0], NEAREST).tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    reach = len(taps) // 2
    source = np.pad(np.arange(size), reach, mode=border)
    matrix = np.zeros((size, size))
    for i, tap in enumerate(taps):
        np.add.at(matrix, (np.arange(size), source[i : i + size]), tap)
    return matrix.astype(np.float32)


def gaussian_taps(sigma: float, truncate: float) -> np.ndarray:
    """Returns Gaussian weights, summing to 1, truncated at `truncate` deviations."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def gaussian_matrices(
    size: tuple[int, int], sigma: float, truncate: float = 4.0, border: Border = NEAREST
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `rows` [1, h, h] and `columns` [1, w, w] of a Gaussian blur, for `separable`."""
    taps = gaussian_taps(sigma, truncate)
    rows, columns = (correlation_matrix(n, taps, border)[None] for n in size)
    return rows, columns


def kernel_matrices(
    size: tuple[int, int], kernel: np.ndarray, border: Border
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `rows` [k, h, h], `columns` [k, w, w] that correlate with a square kernel [k, k]."""
    shifts = np.eye(len(kernel))
    return (
        np.stack([correlation_matrix(size[0], shift, border) for shift in shifts]),
        np.stack([correlation_matrix(size[1], row, border) for row in kernel]),
    )


def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Returns the matrix that zooms into the middle of a line by `factor` >= 1, linearly.

    The middle `crop = ceil(size / factor)` pixels are resized to `round(crop * factor)`, mapping
    first to first and last to last, and the middle `size` of these are the result.
    """
    crop = math.ceil(size / factor)
    wide = round(crop * factor)
    middle = (wide - size) // 2 + np.arange(size)
    at = middle * (crop - 1) / max(wide - 1, 1)
    low = np.minimum(at.astype(int), max(crop - 2, 0))
    matrix, line = np.zeros((size, size)), np.arange(size)
    top = (size - crop) // 2
    np.add.at(matrix, (line, top + low), 1 - (at - low))
    np.add.at(matrix, (line, top + np.minimum(low + 1, crop - 1)), at - low)
    return matrix.astype(np.float32)


def separable(
    x_hwc: jax.Array, rows_kih: jax.Array | np.ndarray, columns_kjw: jax.Array | np.ndarray
) -> jax.Array:
    """Computes `sum over k of rows[k] x columns[k]^T` for each channel."""
    exact = jax.lax.Precision.HIGHEST
    x_kiwc = jnp.einsum("kih,hwc->kiwc", rows_kih, x_hwc, precision=exact)
    return jnp.einsum("kjw,kiwc->ijc", columns_kjw, x_kiwc, precision=exact)


def motion_taps(radius: float, sigma: float) -> np.ndarray:
    """Returns decaying weights, summing to 1, of the pixels 0, 1, ..., 2 radius along a motion."""
    weights = np.exp(-0.5 * (np.arange(2 * math.ceil(radius) + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def motion_blur(x_hwc: jax.Array, taps: jax.Array, degrees: jax.Array) -> jax.Array:
    """Sums pixels along a line from each pixel, at whole pixels, with repeated edges.

    Args:
      x_hwc: [h, w, c].
      taps: weights along the line (`motion_taps`).
      degrees: the angle of the line, clockwise from the right.
    """
    h, w, _ = x_hwc.shape
    i = jnp.arange(len(taps))
    angle = jnp.deg2rad(degrees)
    down = jnp.ceil(i * jnp.sin(angle) - 0.5).astype(jnp.int32)
    right = jnp.ceil(i * jnp.cos(angle) - 0.5).astype(jnp.int32)

    def add(total_hwc: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        tap, down, right = step
        y = jnp.clip(jnp.arange(h) + down, 0, h - 1)
        x = jnp.clip(jnp.arange(w) + right, 0, w - 1)
        return total_hwc + tap * x_hwc[y[:, None], x[None, :]], None

    return jax.lax.scan(add, jnp.zeros_like(x_hwc), (taps, down, right))[0]
