"""Independent noise on every value: Gaussian, shot, impulse and speckle noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.images.corruptions.levels import as_levels, on_unit_interval


@on_unit_interval
def gaussian_noise(key: jax.Array, x_hwc: jax.Array, std: jax.Array) -> jax.Array:
    """`x + std N(0, 1)`."""
    return x_hwc + std * jax.random.normal(key, x_hwc.shape, jnp.float32)


def shot_constants(size: tuple[int, int], photons: float) -> tuple[np.ndarray, float]:
    """The cumulative probabilities of 0, 1, ... photons at each level, times 2^32, and `photons`.

    uint32 [256, k], with k a power of two beyond every possible count.
    """
    import scipy.special

    most = int(photons + 10 * np.sqrt(photons) + 10)
    counts = np.arange(1 << most.bit_length())
    below = scipy.special.pdtr(counts, photons * np.arange(256)[:, None] / 255)
    return np.minimum(below * 2.0**32, 2.0**32 - 1).astype(np.uint32), float(photons)


def shot_noise(
    key: jax.Array, image_hwc: jax.Array, below_256k: jax.Array, photons: jax.Array
) -> jax.Array:
    """`Poisson(photons x) / photons`, where white is `photons` photons on average.

    There are only 256 rates, so a table search with one 32-bit draw gives the count, in less than a
    tenth of the time of `jax.random.poisson` on a CPU.
    """
    # The largest draw would be beyond the end of every table.
    draw_hwc = jnp.minimum(jax.random.bits(key, image_hwc.shape, jnp.uint32), np.uint32(2**32 - 2))
    count_hwc = jnp.zeros(image_hwc.shape, jnp.int32)
    step = below_256k.shape[1]
    while step := step // 2:
        more = below_256k[image_hwc, count_hwc + step - 1] <= draw_hwc
        count_hwc += step * more
    return as_levels(count_hwc.astype(jnp.float32) / photons)


@on_unit_interval
def impulse_noise(key: jax.Array, x_hwc: jax.Array, share: jax.Array) -> jax.Array:
    """Sets a fraction `share` of the values to 0 or 1 with equal probability."""
    u = jax.random.uniform(key, x_hwc.shape, jnp.float32)
    return jnp.where(u < share, (u < share / 2).astype(x_hwc.dtype), x_hwc)


@on_unit_interval
def speckle_noise(key: jax.Array, x_hwc: jax.Array, std: jax.Array) -> jax.Array:
    """`x + x std N(0, 1)`."""
    return x_hwc + x_hwc * std * jax.random.normal(key, x_hwc.shape, jnp.float32)
