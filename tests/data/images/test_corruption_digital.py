from __future__ import annotations

import colorsys
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image

from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions import digital

RANDOM = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def by_hsv(change: Callable[..., tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Images, and with `change(h, s, v)` of every pixel, levels with fractions."""
    images = RANDOM.copy()
    images[0, :4] = images[0, :4, :, :1]  # grey
    images[0, 0, :8] = 0
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in images.reshape(-1, 3) / 255
    ]
    return images, 255 * np.reshape(pixels, images.shape)


@pytest.mark.parametrize(("severity", "more"), [(1, 0.05), (4, 0.2), (5, 0.3)])
def test_brightness_adds_to_the_value(severity, more):
    images, expected = by_hsv(lambda h, s, v: (h, s, min(v + more, 1)))
    out = corruptions.corrupt(images, "brightness", severity)
    away = expected - out
    assert away.min() > -1e-3 and away.max() < 1 + 1e-3


@pytest.mark.parametrize(("severity", "factor", "more"), [(1, 0.3, 0), (3, 1.5, 0), (5, 2.5, 0.2)])
def test_saturate_scales_the_saturation(severity, factor, more):
    images, expected = by_hsv(lambda h, s, v: (h, min(s * factor + more, 1), v))
    out = corruptions.corrupt(images, "saturate", severity)
    away = expected - out
    assert away.min() > -1e-3 and away.max() < 1 + 1e-3


def test_contrast_pulls_each_channel_to_its_mean():
    mean = RANDOM.mean(axis=(1, 2), keepdims=True)
    expected = np.floor((RANDOM - mean) * 0.15 + mean)
    np.testing.assert_array_equal(corruptions.corrupt(RANDOM, "contrast", 5), expected)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 40), (8, 8)])
def test_pixelate_is_pillows_box_there_and_back(size):
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    out = corruptions.corrupt(images, "pixelate", 5, any_size=True)
    small = (int(size[1] * 0.65), int(size[0] * 0.65))
    for image, found in zip(images, out, strict=True):
        there = Image.fromarray(image).resize(small, Image.BOX)
        np.testing.assert_array_equal(found, there.resize(size[::-1], Image.BOX))


@pytest.mark.parametrize("sizes", [(10, 3), (3, 10), (32, 9)])
def test_box_matrix_is_pillows_box_for_other_sizes(sizes):
    num_in, num_out = sizes
    line = np.random.default_rng(2).integers(0, 256, (1, num_in), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(line).resize((num_out, 1), Image.BOX))
    ours = digital.box_matrix(num_in, num_out) @ line[0]
    np.testing.assert_array_equal(np.floor(ours + 0.5), theirs[0])


@pytest.fixture(scope="module")
def elastic():
    """`(keys, image, constants) -> images`, in levels."""
    return jax.jit(
        jax.vmap(
            lambda key, image, constants: digital.elastic_transform(key, image, *constants),
            (0, None, None),
        )
    )


def ramps() -> np.ndarray:
    """Levels that say where they stand: 7 x, 7 y + 3, and a flat channel."""
    y, x = np.mgrid[:32, :32]
    return np.stack([7 * x, 7 * y + 3, 0 * x + 99], axis=2).astype(np.uint8)


def sources(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of elastic ramps comes from, `x` and `y`."""
    return (images[..., 0] + 0.5) / 7, (images[..., 1] + 0.5 - 3) / 7


def test_elastic_without_movement_is_the_identity(elastic):
    keys = jax.random.split(jax.random.key(0), 64)
    constants = digital.elastic_constants((32, 32), 0, 0.2, 0)
    found = np.asarray(elastic(keys, ramps(), constants)).astype(int)
    assert (ramps() - found).min() >= 0 and (ramps() - found).max() <= 1


def test_elastic_moves_three_points_of_the_plane_as_far_as_it_may(elastic):
    keys = jax.random.split(jax.random.key(1), 64)
    constants = digital.elastic_constants((32, 32), 0, 0, 0.08)
    images = np.asarray(elastic(keys, ramps(), constants)).astype(float)
    assert (images[..., 2] >= 98).all()
    inside = slice(8, 24)
    y, x = np.mgrid[inside, inside]
    plane = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    points = np.array([[26.0, 26], [26, 6], [6, 6]])
    moved = []
    for from_x, from_y in zip(
        *(source[:, inside, inside] for source in sources(images)), strict=True
    ):
        fits = [np.linalg.lstsq(plane, of.reshape(-1), rcond=None) for of in (from_x, from_y)]
        for coefficients, of in zip((f[0] for f in fits), (from_x, from_y), strict=True):
            np.testing.assert_allclose(plane @ coefficients, of.reshape(-1), atol=0.2)
        (a, b, c), (d, e, f) = (fit[0] for fit in fits)
        moved.append(np.linalg.solve([[a, b], [d, e]], (points - [c, f]).T).T - points)
    moved = np.array(moved)
    assert np.abs(moved).max() < 0.08 * 32 + 0.2
    # Uniform on +-2.56 for each point and direction.
    np.testing.assert_allclose(moved.std(axis=0), 2.56 / np.sqrt(3), rtol=0.25)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.75)


def test_elastic_displaces_by_blurred_noise(elastic):
    keys = jax.random.split(jax.random.key(2), 64)
    amplitude, sigma = 0.1, 0.06
    constants = digital.elastic_constants((32, 32), amplitude, sigma, 0)
    x, y = sources(np.asarray(elastic(keys, ramps(), constants)).astype(float))
    taps = np.exp(-0.5 * (np.arange(-6, 7) / (sigma * 32)) ** 2)
    taps /= taps.sum()
    expected = amplitude * 32 * np.sqrt(1 / 3) * (taps**2).sum()
    inside = slice(8, 24)
    there = np.mgrid[:32, :32]
    for source, at in ((x, there[1]), (y, there[0])):
        away = (source - at)[:, inside, inside]
        assert away.std() == pytest.approx(expected, rel=0.1)
        assert away.mean() == pytest.approx(0, abs=0.05)
