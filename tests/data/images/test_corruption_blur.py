from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions import blur, filters

KEY = jax.random.key(0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.mark.parametrize("size", [(32, 32), (9, 20)])
@pytest.mark.parametrize(
    ("sigma", "truncate", "border", "theirs"),
    [
        (0.05, 4, filters.NEAREST, "nearest"),
        (1.0, 4, filters.NEAREST, "nearest"),
        (6.4, 3, filters.SYMMETRIC, "reflect"),
    ],
)
def test_gaussian_matrices_blur_as_scipy_does(size, sigma, truncate, border, theirs):
    x = noise(*size, 3)
    matrices = filters.gaussian_matrices(size, sigma, truncate, border)
    expected = ndimage.gaussian_filter(x, (sigma, sigma, 0), truncate=truncate, mode=theirs)
    np.testing.assert_allclose(filters.separable(x, *matrices), expected, atol=2e-6)


def test_kernel_matrices_correlate_as_scipy_does():
    x, kernel = noise(32, 20, 3), noise(5, 5)
    matrices = filters.kernel_matrices((32, 20), kernel, filters.MIRROR)
    expected = ndimage.correlate(x, kernel[..., None], mode="mirror")
    np.testing.assert_allclose(filters.separable(x, *matrices), expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [1, 1.01, 1.06, 1.25, 1.75, 2.25])
@pytest.mark.parametrize("size", [32, 28])
def test_zoom_matrix_zooms_as_scipy_does(size, factor):
    x = noise(size, size)
    crop = math.ceil(size / factor)
    top = (size - crop) // 2
    wide = ndimage.zoom(x[top : top + crop, top : top + crop], factor, order=1)
    trim = (len(wide) - size) // 2
    matrix = filters.zoom_matrix(size, factor)
    np.testing.assert_allclose(
        matrix @ x @ matrix.T, wide[trim : trim + size, trim : trim + size], atol=2e-6
    )


def test_zoom_blur_is_the_mean_of_the_image_and_its_zooms():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    # By rounding, this goes up to 1.26 itself.
    zooms = np.arange(1, 1.26, 0.01)
    total = image.astype(float)
    for factor in zooms:
        crop = math.ceil(32 / factor)
        top = (32 - crop) // 2
        middle = image[top : top + crop, top : top + crop].astype(float)
        wide = ndimage.zoom(middle, (factor, factor, 1), order=1)
        trim = (len(wide) - 32) // 2
        total += wide[trim : trim + 32, trim : trim + 32]
    away = total / (len(zooms) + 1) - corruptions.corrupt(image[None], "zoom_blur", 5)[0]
    assert away.min() > -1e-3 and away.max() < 1 + 1e-3


@pytest.mark.parametrize("degrees", [-135, -100, -45, -20, 0, 12, 45])
def test_motion_blur_gathers_pixels_along_a_line(degrees):
    x, taps = noise(12, 15, 2), filters.motion_taps(3, 1.5)
    assert len(taps) == 7 and taps.sum() == pytest.approx(1) and (np.diff(taps) < 0).all()
    np.testing.assert_allclose(taps[2] / taps[0], math.exp(-(2**2) / (2 * 1.5**2)), rtol=1e-5)
    expected = np.zeros_like(x)
    for y in range(12):
        for z in range(15):
            for i, tap in enumerate(taps):
                down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
                right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
                at = min(max(y + down, 0), 11), min(max(z + right, 0), 14)
                expected[y, z] += tap * x[at]
    found = filters.motion_blur(jnp.asarray(x), jnp.asarray(taps), degrees)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_motion_blur_is_more_level_than_upright_and_keeps_flat_images():
    flat = np.full((16, 32, 32, 3), 77, np.uint8)
    assert (corruptions.corrupt(flat, "motion_blur", 5) == 77).all()
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    out = corruptions.corrupt(images, "motion_blur", 5).astype(float)
    across, down = (np.abs(np.diff(out, axis=axis)).mean() for axis in (2, 1))
    assert across < 0.8 * down


def places(size: int) -> np.ndarray:
    """An image whose values say where they stand, uint8 [size, size, 2]."""
    y, x = np.mgrid[:size, :size]
    return np.stack([y, x], axis=2).astype(np.uint8)


def identity(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(size, dtype=np.float32)[None], np.eye(size, dtype=np.float32)[None]


@pytest.fixture(scope="module")
def through_glass():
    """`number of rounds -> places after them`, uint8 [64, 32, 32, 2]."""
    glass = jax.jit(
        jax.vmap(lambda key, rounds: blur.glass(key, places(32), *identity(32), rounds), (0, None))
    )
    return lambda rounds: np.asarray(glass(jax.random.split(KEY, 64), rounds))


@pytest.fixture(scope="module")
def moves(through_glass) -> np.ndarray:
    """How far each pixel's source lies to the top and left after one round, [64, 32, 32, 2]."""
    return places(32) - through_glass(1).astype(int)


def test_glass_takes_the_pixel_itself_or_one_to_the_top_and_left(moves):
    assert (moves[:, :2] == 0).all() and (moves[:, :, :2] == 0).all()
    inside = moves[:, 2:, 2:]
    pairs = np.bincount((2 * inside[..., 0] + inside[..., 1]).reshape(-1))
    assert len(pairs) == 4
    np.testing.assert_allclose(pairs / pairs.sum(), 0.25, atol=0.01)


def sequential(image: np.ndarray, moves: np.ndarray, swap: bool) -> np.ndarray:
    """Glass as the published sets make it, pixel by pixel from the last to the first."""
    x = image.copy()
    for h in range(31, 1, -1):
        for w in range(31, 1, -1):
            dy, dx = -moves[h, w]
            if swap:
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx].copy(), x[h, w].copy()
            else:  # NumPy's views: the first assignment changes what the second one reads
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return x


def test_glass_at_once_equals_glass_pixel_by_pixel(through_glass, moves):
    for found, move in zip(through_glass(1)[:2], moves, strict=False):
        np.testing.assert_array_equal(found, sequential(places(32), move, swap=False))


def test_true_swaps_are_those_pixel_by_pixel_and_lose_no_pixel(moves):
    keys = jax.random.split(KEY, 64)[:2]
    glass = jax.jit(blur.glass_swapped)
    for key, move in zip(keys, moves, strict=False):
        found = np.asarray(glass(key, places(32), *identity(32), 1))
        np.testing.assert_array_equal(found, sequential(places(32), move, swap=True))
        assert len(np.unique(found.reshape(-1, 2), axis=0)) == 1024


def test_two_rounds_of_glass_move_twice_as_far_in_square(through_glass):
    moves = places(32) - through_glass(2).astype(int)
    counts = np.bincount(moves[:, 4:, 4:].reshape(-1))
    np.testing.assert_allclose(counts / counts.sum(), [0.25, 0.5, 0.25], atol=0.01)


def test_swap_is_an_argument():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    copied, swapped = (corruptions.corrupt(image, "glass_blur", 1, swap=s) for s in (False, True))
    ends = [np.sort(x.reshape(-1, 3), axis=0) for x in (image, swapped, copied)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert (ends[0] != ends[2]).any()


def test_defocus_spreads_a_point_over_the_disk():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, 16, 16] = 255
    out = corruptions.corrupt(image, "defocus_blur", 5)[0, ..., 0]
    # The disk of radius 1.5 has 9 pixels; a Gaussian of 0.1 pixels leaves it as it is.
    assert (out[15:18, 15:18] == 28).all() and jnp.count_nonzero(out) == 9
