"""Weather: snow, frost and fog."""

from __future__ import annotations

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError
from jaxlab.data.images.corruptions.filters import motion_blur, motion_taps, separable, zoom_matrix
from jaxlab.data.images.corruptions.levels import grey, on_unit_interval, rounded, truncated

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of the frost photographs in a folder."""
PHOTO_STEP = 5
"""Frost photographs are subsampled: every fifth pixel is used, without smoothing."""


def plasma(key: jax.Array, size: int, decay: jax.Array | float) -> jax.Array:
    """Generates a cloud in [0, 1] with the diamond-square algorithm on a torus, [size, size].

    The grid starts as one point at 0 and is refined repeatedly: each new point, first at the
    centres of squares and then of diamonds, is the mean of its four neighbours plus uniform noise,
    whose amplitude shrinks by `decay^2` at each refinement. The result is scaled to [0, 1].

    Args:
      key: randomness.
      size: a power of two.
      decay: above 1; larger is smoother.
    """
    noise = jax.random.uniform(key, (size, size), jnp.float32, -1, 1)
    grid = jnp.zeros((1, 1), jnp.float32)
    for level in range(size.bit_length() - 1):
        step = size >> level
        half = step // 2
        wobble = decay ** (-2.0 * level) * noise
        across = grid + jnp.roll(grid, -1, axis=1)
        down = grid + jnp.roll(grid, -1, axis=0)
        square = (across + jnp.roll(across, -1, axis=0)) / 4 + wobble[half::step, half::step]
        top = (across + square + jnp.roll(square, 1, axis=0)) / 4 + wobble[::step, half::step]
        left = (down + square + jnp.roll(square, 1, axis=1)) / 4 + wobble[half::step, ::step]
        even, odd = (jnp.stack(pair, axis=2) for pair in ((grid, top), (left, square)))
        grid = jnp.stack([even, odd], axis=1).reshape(2 * len(grid), 2 * len(grid))
    low, high = grid.min(), grid.max()
    return (grid - low) / (high - low)


def plasma_like(key: jax.Array, image_hwc: jax.Array, decay: jax.Array | float) -> jax.Array:
    """Returns the upper left part of a `plasma` that covers the image, [h, w, 1]."""
    h, w, _ = image_hwc.shape
    size = 1 << (max(h, w) - 1).bit_length()
    return plasma(key, size, decay)[:h, :w, None]


@on_unit_interval
def fog(key: jax.Array, x_hwc: jax.Array, amount: jax.Array, decay: jax.Array) -> jax.Array:
    """`(x + amount plasma) m / (m + amount)`, with `m` the brightest value of the image."""
    brightest = x_hwc.max()
    hazy_hwc = x_hwc + amount * plasma_like(key, x_hwc, decay)
    return hazy_hwc * brightest / (brightest + amount)


def snow_constants(
    size: tuple[int, int],
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    scale: float,
) -> tuple[np.ndarray | float, ...]:
    """Replaces the parameters of the zoom by matrices and those of the motion by weights."""
    rows, columns = (zoom_matrix(n, zoom)[None] for n in size)
    return mean, std, rows, columns, threshold, motion_taps(radius, sigma), scale


@on_unit_interval
def snow(
    key: jax.Array,
    x_hwc: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    threshold: jax.Array,
    taps: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    """Makes the image paler and adds flakes that move within 45 degrees of vertical.

    Flakes are added as drawn and rotated by 180 degrees. They are levels: truncated before the
    motion blur, rounded after it.
    """
    of_flakes, of_angle = jax.random.split(key)
    flakes_hwc = mean + std * jax.random.normal(of_flakes, (*x_hwc.shape[:2], 1), jnp.float32)
    flakes_hwc = separable(flakes_hwc, rows, columns)
    flakes_hwc = truncated(jnp.where(flakes_hwc < threshold, 0, flakes_hwc) * 255)
    degrees = jax.random.uniform(of_angle, (), jnp.float32, -135, -45)
    moved_hwc = rounded(motion_blur(flakes_hwc.astype(jnp.float32), taps, degrees)) / 255
    pale_hwc = jnp.maximum(x_hwc, grey(x_hwc)[..., None] * 1.5 + 0.5)
    return scale * x_hwc + (1 - scale) * pale_hwc + moved_hwc + moved_hwc[::-1, ::-1]


def frost(
    key: jax.Array,
    image_hwc: jax.Array,
    scale: jax.Array,
    amount: jax.Array,
    photos: jax.Array,
    sizes: jax.Array,
) -> jax.Array:
    """`scale x + amount photo` with a random crop of a random photograph, truncated to levels.

    Args:
      photos: uint8 [p, H, W, 3], padded.
      sizes: int32 [p, 2], height and width of each.
    """
    of_photo, of_corner = jax.random.split(key)
    which = jax.random.randint(of_photo, (), 0, len(photos))
    room = sizes[which] - jnp.array(image_hwc.shape[:2])
    corner = jax.random.randint(of_corner, (2,), 0, jnp.maximum(room, 1))
    part_1hwc = jax.lax.dynamic_slice(
        photos, (which, *corner, 0), (1, *image_hwc.shape[:2], photos.shape[3])
    )
    return truncated(scale * image_hwc + amount * part_1hwc[0])


def frost_photos(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the photographs of a folder, subsampled: `photos` and `sizes` for `frost`.

    Raises:
      UsageError: the folder has no photographs, or one cannot be read.
    """
    from PIL import Image

    folder = pathlib.Path(folder)
    files = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in PHOTO_SUFFIXES]
    if not files:
        raise UsageError(
            f"frost_folder={str(folder)!r} has no photographs; expected a folder with files that "
            f"end in {', '.join(PHOTO_SUFFIXES)}, or use 'frost_procedural'"
        )
    photos = []
    for file in files:
        try:
            with Image.open(file) as image:
                whole = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise UsageError(f"frost photograph {str(file)!r} cannot be read ({error})") from error
        photos.append(whole[PHOTO_STEP // 2 :: PHOTO_STEP, PHOTO_STEP // 2 :: PHOTO_STEP])
    sizes = np.array([photo.shape[:2] for photo in photos], np.int32)
    padded = np.zeros((len(photos), *sizes.max(axis=0), 3), np.uint8)
    for into, photo in zip(padded, photos, strict=True):
        into[: photo.shape[0], : photo.shape[1]] = photo
    return padded, sizes


def require_photos_of_size(sizes: np.ndarray, size: tuple[int, int]) -> None:
    """Checks that subsampled photographs cover an image of height and width `size`.

    Raises:
      UsageError: one does not.
    """
    small = sizes[(sizes < size).any(axis=1)]
    if len(small):
        raise UsageError(
            f"a frost photograph is {small[0][0]}x{small[0][1]} after subsampling; images of "
            f"{size[0]}x{size[1]} need photographs at least {PHOTO_STEP} times as high and wide"
        )


def frost_procedural(
    key: jax.Array, image_hwc: jax.Array, scale: jax.Array, amount: jax.Array
) -> jax.Array:
    """`scale x + amount pattern` with a generated pattern instead of photographs.

    Its crystals are the ridges `(1 - |2 p - 1|)^3` of two clouds `p`, a smooth one and, with 0.6 of
    the weight, a rough one; they are white on blue, with a mean brightness of 55%. Its scores are
    not comparable to those with photographs.
    """
    smooth, rough = (
        (1 - jnp.abs(2 * plasma_like(k, image_hwc, decay) - 1)) ** 3
        for k, decay in zip(jax.random.split(key), (1.7, 1.4), strict=True)
    )
    blue, white = np.array([[35, 65, 100], [245, 250, 255]], np.float32)[:, None, None]
    pattern_hwc = blue + (white - blue) * (smooth + 0.6 * rough) / 1.6
    return truncated(scale * image_hwc + amount * pattern_hwc)
