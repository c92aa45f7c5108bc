"""Spatter: drops of water or mud on the lens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.images.corruptions.filters import (
    MIRROR,
    correlation_matrix,
    gaussian_matrices,
    kernel_matrices,
    separable,
)
from jaxlab.data.images.corruptions.levels import on_unit_interval, rounded, truncated

WATER = np.array([175 / 255, 238 / 255, 238 / 255], np.float32)
"""Colour of water: pale turquoise."""
MUD = np.array([63 / 255, 42 / 255, 20 / 255], np.float32)
"""Colour of mud: brown."""
EDGE_LEVELS = (50, 150)
"""Gradients, in levels, at which an edge continues and at which it begins."""
FARTHEST = 20
"""Distances from an edge are clipped at this many pixels."""
EMBOSS = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
"""The kernel that gives drops a bright and a dark side."""


def spatter_constants(
    size: tuple[int, int],
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: int,
) -> tuple:
    """Matrices of the blurs; `strength` is the weight of water or the blur of mud."""
    blur = gaussian_matrices(size, sigma)
    soft = gaussian_matrices(size, strength if mud else 0)
    return mean, std, blur, threshold, strength, soft, bool(mud)


@on_unit_interval
def spatter(
    key: jax.Array,
    x_hwc: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    blur: tuple[jax.Array, jax.Array],
    threshold: jax.Array,
    strength: jax.Array,
    soft: tuple[jax.Array, jax.Array],
    mud: jax.Array,
) -> jax.Array:
    """Adds water (bright on one side) or mud where blurred noise exceeds a threshold."""
    liquid_hwc = mean + std * jax.random.normal(key, (*x_hwc.shape[:2], 1), jnp.float32)
    liquid_hwc = separable(liquid_hwc, *blur)
    liquid_hwc = jnp.where(liquid_hwc < threshold, 0, liquid_hwc)

    def with_water() -> jax.Array:
        return x_hwc + strength * water(liquid_hwc[..., 0])[..., None] * WATER[None, None]

    def with_mud() -> jax.Array:
        mask_hwc = separable((liquid_hwc > threshold).astype(jnp.float32), *soft)
        mask_hwc = jnp.where(mask_hwc < 0.8, 0, mask_hwc)
        return x_hwc * (1 - mask_hwc) + mask_hwc * MUD[None, None]

    return jax.lax.cond(mud, with_mud, with_water)


def water(liquid_hw: jax.Array) -> jax.Array:
    """Returns the light of water drops, in [0, 1] with a maximum of 1 (all 0 without drops)."""
    h, w = liquid_hw.shape
    box_h, box_w = (correlation_matrix(n, [1 / 3] * 3, MIRROR)[None] for n in (h, w))
    levels_hw = truncated(liquid_hw * 255).astype(jnp.int32)
    distance_hw = jnp.minimum(distance(canny(levels_hw, *EDGE_LEVELS)), FARTHEST)
    far_hwc = truncated(separable(distance_hw[..., None], box_h, box_w)).astype(jnp.int32)
    even_hwc = equalise(far_hwc, FARTHEST + 1).astype(jnp.float32)
    relief_hwc = rounded(separable(even_hwc, *kernel_matrices((h, w), EMBOSS, MIRROR)))
    relief_hwc = rounded(separable(relief_hwc.astype(jnp.float32), box_h, box_w))
    light_hw = levels_hw * relief_hwc[..., 0].astype(jnp.float32)
    return light_hw / jnp.maximum(light_hw.max(), 1)


def canny(levels_hw: jax.Array, low: int, high: int) -> jax.Array:
    """Finds edges with Canny's algorithm, bool [h, w].

    The gradient is Sobel's, 3x3 with repeated borders, and its size the sum of the absolute values
    of its components. A pixel is a candidate if its gradient is a maximum along the gradient's
    direction, rounded to horizontal, vertical or diagonal (for the first two, a tie with the later
    neighbour counts). Candidates above `high` are edges, and so are those above `low` that touch an
    edge at a side or corner.

    Args:
      levels_hw: int32 levels from 0 to 255.
      low, high: thresholds of the gradient's size.
    """
    padded = jnp.pad(levels_hw, 1, mode="edge")
    smooth_w = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_h = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    dy, dx = smooth_w[2:] - smooth_w[:-2], smooth_h[:, 2:] - smooth_h[:, :-2]
    size = jnp.abs(dx) + jnp.abs(dy)
    around = _neighbours(size, 0)
    # 13573 / 2^15 is the tangent of 22.5 degrees, and that of 67.5 is 2 more.
    flat = jnp.abs(dx) * 13573
    level = (jnp.abs(dy) << 15) < flat
    upright = (jnp.abs(dy) << 15) > flat + (jnp.abs(dx) << 16)
    falling = (dx < 0) == (dy < 0)
    largest = jnp.select(
        [level, upright, falling],
        [
            (size > around[0, -1]) & (size >= around[0, 1]),
            (size > around[-1, 0]) & (size >= around[1, 0]),
            (size > around[-1, -1]) & (size > around[1, 1]),
        ],
        (size > around[-1, 1]) & (size > around[1, -1]),
    )
    weak = largest & (size > low)

    def grow(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        edges, _ = state
        touched = jnp.stack(list(_neighbours(edges, False).values())).any(axis=0)
        return edges | (touched & weak), edges

    first = (weak & (size > high), jnp.zeros_like(weak))
    return jax.lax.while_loop(lambda state: (state[0] != state[1]).any(), grow, first)[0]


def _neighbours(x_hw: jax.Array, outside: int | bool) -> dict[tuple[int, int], jax.Array]:
    """Returns `{(down, right): each pixel's neighbour there}`, `outside` beyond the border."""
    h, w = x_hw.shape
    padded = jnp.pad(x_hw, 1, constant_values=outside)
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    return {(d, r): padded[1 + d : 1 + d + h, 1 + r : 1 + r + w] for d, r in steps}


def distance(marked_hw: jax.Array) -> jax.Array:
    """Returns each pixel's Euclidean distance to the nearest marked one, float32, or infinity."""
    h, w = marked_hw.shape
    away_hh = jnp.abs(jnp.arange(h)[:, None] - jnp.arange(h)[None]).astype(jnp.float32)
    away_ww = jnp.abs(jnp.arange(w)[:, None] - jnp.arange(w)[None]).astype(jnp.float32)
    # First along each column, then across the columns.
    down_hw = jnp.where(marked_hw[None], away_hh[:, :, None], jnp.inf).min(axis=1)
    return jnp.sqrt((down_hw[:, None, :] ** 2 + away_ww[None] ** 2).min(axis=2))


def equalise(levels: jax.Array, num_levels: int = 256) -> jax.Array:
    """Equalises the histogram of levels to the range 0 to 255, int32.

    The lowest level becomes 0; a constant image is unchanged.

    Args:
      levels: int32, from 0 to `num_levels` - 1.
      num_levels: the number of possible levels.
    """
    at_most = (levels.reshape(1, -1) <= jnp.arange(num_levels)[:, None]).sum(axis=1)
    lowest = at_most[levels.min()]
    others = levels.size - lowest
    table = jnp.round(255 * (at_most - lowest) / jnp.maximum(others, 1)).astype(jnp.int32)
    return jnp.where(others > 0, table[levels], levels)
