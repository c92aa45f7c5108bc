"""Blurs: defocus, Gaussian, glass, motion and zoom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.images.corruptions.filters import (
    MIRROR,
    gaussian_matrices,
    kernel_matrices,
    motion_blur,
    motion_taps,
    separable,
    zoom_matrix,
)
from jaxlab.data.images.corruptions.levels import as_levels, on_unit_interval, rounded

GLASS_MARGIN = 2
"""Rows and columns at the top and left that glass blur does not move."""


@on_unit_interval
def filtered(
    key: jax.Array, x_hwc: jax.Array, rows_kih: jax.Array, columns_kjw: jax.Array
) -> jax.Array:
    """Applies the filter of these matrices; deterministic."""
    return separable(x_hwc, rows_kih, columns_kjw)


def gaussian_constants(size: tuple[int, int], sigma: float) -> tuple[np.ndarray, ...]:
    """Matrices of a Gaussian, truncated at 4 standard deviations."""
    return gaussian_matrices(size, sigma)


def defocus_kernel(radius: float, sigma: float) -> np.ndarray:
    """A disk of whole pixels, blurred by a 3x3 Gaussian; [17, 17], sums to 1."""
    x = np.arange(-8, 9)
    disk = (x[:, None] ** 2 + x[None, :] ** 2 <= radius**2).astype(np.float64)
    # The Gaussian has three taps whatever its width.
    taps = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    taps /= taps.sum()
    blur = sum(tap * np.eye(17, k=i) for i, tap in zip((-1, 0, 1), taps, strict=True))
    return blur @ (disk / disk.sum()) @ blur.T


def defocus_constants(size: tuple[int, int], radius: float, sigma: float) -> tuple[np.ndarray, ...]:
    """Matrices of the nonzero part of the disk."""
    reach = int(radius) + 1
    kernel = defocus_kernel(radius, sigma)[8 - reach : 9 + reach, 8 - reach : 9 + reach]
    return kernel_matrices(size, kernel, MIRROR)


def zoom_constants(size: tuple[int, int], end: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of the zooms by 1, 1.01, 1.02, ... below `end`."""
    # As in the published sets: for some ends, rounding adds one more factor.
    factors = np.arange(1, end, 0.01)
    rows, columns = (np.stack([zoom_matrix(n, f)[None] for f in factors]) for n in size)
    return rows, columns


@on_unit_interval
def zoom(key: jax.Array, x_hwc: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Averages the image and its zooms; deterministic."""

    # Sequentially, so that equal values round as in the published sets and truncate to the same
    # level.
    def add(total_hwc: jax.Array, matrices: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total_hwc + separable(x_hwc, *matrices), None

    total_hwc, _ = jax.lax.scan(add, jnp.zeros_like(x_hwc), (rows, columns))
    return (x_hwc + total_hwc) / (len(rows) + 1)


def motion_constants(size: tuple[int, int], radius: float, sigma: float) -> tuple[np.ndarray]:
    """Weights along the motion."""
    return (motion_taps(radius, sigma),)


def motion(key: jax.Array, image_hwc: jax.Array, taps: jax.Array) -> jax.Array:
    """Blurs along a line within 45 degrees of horizontal; works on levels and rounds them."""
    degrees = jax.random.uniform(key, (), jnp.float32, -45, 45)
    return rounded(motion_blur(image_hwc.astype(jnp.float32), taps, degrees))


def glass_constants(
    size: tuple[int, int], sigma: float, reach: int, iterations: int
) -> tuple[np.ndarray | int, ...]:
    """Matrices of the blur, and the number of iterations; `reach` is 1 at every severity."""
    return *gaussian_matrices(size, sigma), iterations


@on_unit_interval
def glass(
    key: jax.Array, x_hwc: jax.Array, rows: jax.Array, columns: jax.Array, iterations: jax.Array
) -> jax.Array:
    """Blurs, replaces pixels by a neighbour, and blurs again.

    The published code intends to swap the two pixels, from the last to the first, but makes both of
    them the neighbour. The neighbour is above or to the left, where no pixel has changed yet, so
    all pixels can be replaced at once.
    """
    inside = _inside(x_hwc)

    def move(i: jax.Array, levels_hwc: jax.Array) -> jax.Array:
        up, left = _offsets(jax.random.fold_in(key, i), x_hwc)
        level = jnp.where(left, jnp.roll(levels_hwc, 1, axis=1), levels_hwc)
        above = jnp.roll(levels_hwc, 1, axis=0)
        above = jnp.where(left, jnp.roll(above, 1, axis=1), above)
        return jnp.where(inside, jnp.where(up, above, level), levels_hwc)

    levels_hwc = as_levels(separable(x_hwc, rows, columns))
    levels_hwc = jax.lax.fori_loop(0, iterations, move, levels_hwc)
    return separable(levels_hwc.astype(jnp.float32) / 255, rows, columns)


@on_unit_interval
def glass_swapped(
    key: jax.Array, x_hwc: jax.Array, rows: jax.Array, columns: jax.Array, iterations: jax.Array
) -> jax.Array:
    """Blurs, swaps pixels with a neighbour, from the last to the first, and blurs again."""
    h, w, _ = x_hwc.shape
    inside = np.flatnonzero(np.asarray(_inside(x_hwc))[..., 0])[::-1]

    def move(i: jax.Array, order: jax.Array) -> jax.Array:
        up, left = _offsets(jax.random.fold_in(key, i), x_hwc)
        away = (up * w + left).reshape(-1)

        def swap(order: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
            pair = jnp.stack([at, at - away[at]])
            return order.at[pair].set(order[pair[::-1]]), None

        return jax.lax.scan(swap, order, jnp.asarray(inside))[0]

    order = jax.lax.fori_loop(0, iterations, move, jnp.arange(h * w))
    levels = as_levels(separable(x_hwc, rows, columns)).reshape(h * w, -1)[order]
    return separable(levels.reshape(x_hwc.shape).astype(jnp.float32) / 255, rows, columns)


def _inside(x_hwc: jax.Array) -> np.ndarray:
    """Marks the pixels that may move, bool [h, w, 1]."""
    inside = np.zeros((*x_hwc.shape[:2], 1), bool)
    inside[GLASS_MARGIN:, GLASS_MARGIN:] = True
    return inside


def _offsets(key: jax.Array, x_hwc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws whether each pixel's neighbour is above, and whether it is to the left, [h, w, 1]."""
    bits = jax.random.bits(key, (*x_hwc.shape[:2], 1), jnp.uint8)
    return bits % 2 == 1, bits // 2 % 2 == 1
