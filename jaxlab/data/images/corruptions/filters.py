"""Linear filters of one image, as sums of products of a matrix a row and a matrix a column.

The matrices are made once on the host, with what lies behind the border folded in; applying them
is two matrix products on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Border = Literal["edge", "symmetric", "reflect"]
"""What lies behind the border, as `numpy.pad` names it."""
NEAREST: Border = "edge"
"""Behind the border the outermost pixel is repeated."""
SYMMETRIC: Border = "symmetric"
"""Behind the border the image is mirrored, the outermost pixel with it: `c b a | a b c`."""
MIRROR: Border = "reflect"
"""Behind the border the image is mirrored about the outermost pixel: `c b | a b c`."""


def correlation_matrix(size: int, taps: Sequence[float] | np.ndarray, border: Border) -> np.ndarray:
    """The matrix that correlates a line with an odd number of taps.

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
    """Weights of a Gaussian on whole pixels that ends `truncate` deviations away; they sum to 1."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def gaussian_matrices(
    size: tuple[int, int], sigma: float, truncate: float = 4.0, border: Border = NEAREST
) -> tuple[np.ndarray, np.ndarray]:
    """`rows` [1, h, h] and `columns` [1, w, w] of a Gaussian blur, for `separable`."""
    taps = gaussian_taps(sigma, truncate)
    rows, columns = (correlation_matrix(n, taps, border)[None] for n in size)
    return rows, columns


def kernel_matrices(
    size: tuple[int, int], kernel: np.ndarray, border: Border
) -> tuple[np.ndarray, np.ndarray]:
    """`rows` [k, h, h] and `columns` [k, w, w] that correlate with a square kernel [k, k]."""
    shifts = np.eye(len(kernel))
    return (
        np.stack([correlation_matrix(size[0], shift, border) for shift in shifts]),
        np.stack([correlation_matrix(size[1], row, border) for row in kernel]),
    )


def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """The matrix that zooms into the middle of a line, `factor` 1 or more, linearly.

    The middle `ceil(size / factor)` pixels are spread over `round` of that many times `factor`,
    first onto first and last onto last, of which the middle `size` are kept.
    """
    crop = math.ceil(size / factor)
    wide = round(crop * factor)
    kept = (wide - size) // 2 + np.arange(size)
    at = kept * (crop - 1) / max(wide - 1, 1)
    low = np.minimum(at.astype(int), max(crop - 2, 0))
    matrix, line = np.zeros((size, size)), np.arange(size)
    top = (size - crop) // 2
    np.add.at(matrix, (line, top + low), 1 - (at - low))
    np.add.at(matrix, (line, top + np.minimum(low + 1, crop - 1)), at - low)
    return matrix.astype(np.float32)


def separable(
    x_hwc: jax.Array, rows_kih: jax.Array | np.ndarray, columns_kjw: jax.Array | np.ndarray
) -> jax.Array:
    """`sum over k of rows[k] x columns[k]^T`, each channel by itself."""
    exact = jax.lax.Precision.HIGHEST
    x_kiwc = jnp.einsum("kih,hwc->kiwc", rows_kih, x_hwc, precision=exact)
    return jnp.einsum("kjw,kiwc->ijc", columns_kjw, x_kiwc, precision=exact)


def motion_taps(radius: float, sigma: float) -> np.ndarray:
    """Weights of the pixels 0, 1, ..., 2 radius along a motion, which fade and sum to 1."""
    weights = np.exp(-0.5 * (np.arange(2 * math.ceil(radius) + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def motion_blur(x_hwc: jax.Array, taps: jax.Array, degrees: jax.Array) -> jax.Array:
    """Each pixel as the sum of those behind it along a line, at whole pixels, edges repeated.

    Args:
      x_hwc: [h, w, c].
      taps: weights along the line (`motion_taps`).
      degrees: the angle of the line, from the right downwards.
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
