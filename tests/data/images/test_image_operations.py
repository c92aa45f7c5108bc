"""Each operation against Pillow, which has it for levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxlab.data.images import image_operations as ops


def smooth_image(height=20, width=24):
    """RGB levels that differ by channel, use many but not all levels, and have edges."""
    y, x = np.mgrid[:height, :width]
    red = 30 + 7 * y
    green = 200 - 5 * x + 20 * (x > 10)
    blue = 60 + 3 * x + 2 * y + 40 * ((x + y) % 5 == 0)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
DARK = (NOISE // 4 + 20).astype(np.uint8)
IMAGES = {"smooth": smooth_image(), "noise": NOISE, "dark": DARK}


def levels_of(operation, image, *arguments):
    """Applies an operation to levels, jitted, its arguments traced; returns levels, unrounded."""
    unit = jnp.asarray(image, jnp.float32) / 255
    return np.asarray(jax.jit(operation)(unit, *arguments)) * 255


def pillow(image):
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def as_levels(image):
    levels = np.asarray(image).astype(float)
    return levels if levels.ndim == 3 else levels[..., None]


ENHANCERS = {
    "color": (ops.color, ImageEnhance.Color),
    "contrast": (ops.contrast, ImageEnhance.Contrast),
    "brightness": (ops.brightness, ImageEnhance.Brightness),
    "sharpness": (ops.sharpness, ImageEnhance.Sharpness),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancing_is_that_of_pillow(name, image):
    ours, theirs = ENHANCERS[name]
    for factor in (0.0, 0.1, 0.7, 1.0, 1.9):
        expected = as_levels(theirs(pillow(image)).enhance(factor))
        # Pillow rounds what it blends with, and cuts off what it makes.
        off = abs(levels_of(ours, image, factor) - expected).max()
        assert off <= 1 + 0.5 * abs(1 - factor) + 1e-3, factor


@pytest.mark.parametrize("name", ["contrast", "brightness", "sharpness"])
def test_enhancing_of_grey_images_is_that_of_pillow(name):
    ours, theirs = ENHANCERS[name]
    grey = NOISE[..., :1]
    expected = as_levels(theirs(pillow(grey)).enhance(1.6))
    assert abs(levels_of(ours, grey, 1.6) - expected).max() <= 1.3
    np.testing.assert_allclose(levels_of(ops.color, grey, 1.6), grey, atol=1e-3)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_equalizing_is_that_of_pillow(image):
    expected = as_levels(ImageOps.equalize(pillow(image)))
    np.testing.assert_allclose(levels_of(ops.equalize, image), expected, atol=1e-3)


def test_equalizing_leaves_what_has_too_few_pixels_of_each_level():
    one_level = np.full((8, 8, 1), 40, np.uint8)
    np.testing.assert_allclose(levels_of(ops.equalize, one_level), one_level, atol=1e-3)
    np.testing.assert_allclose(levels_of(ops.equalize, NOISE[:8, :8]), NOISE[:8, :8], atol=1e-3)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_auto_contrast_is_that_of_pillow(image):
    expected = as_levels(ImageOps.autocontrast(pillow(image)))
    ours = levels_of(ops.auto_contrast, image)
    assert abs(ours - expected).max() < 1 + 1e-3  # Pillow cuts off, levels become whole
    assert ours.min() == 0 and abs(ours.max() - 255) < 1e-3


def test_auto_contrast_leaves_a_channel_of_one_level():
    one_level = np.full((8, 8, 1), 40, np.uint8)
    np.testing.assert_allclose(levels_of(ops.auto_contrast, one_level), one_level, atol=1e-3)


@pytest.mark.parametrize("threshold", [0, 100, 256])
def test_solarizing_is_that_of_pillow(threshold):
    expected = as_levels(ImageOps.solarize(pillow(NOISE), threshold))
    # Half a level below: between two levels, where floats do not decide.
    ours = levels_of(ops.solarize, NOISE, (threshold - 0.5) / 255)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_posterizing_is_that_of_pillow(bits):
    expected = as_levels(ImageOps.posterize(pillow(NOISE), bits))
    np.testing.assert_allclose(levels_of(ops.posterize, NOISE, bits), expected, atol=1e-3)


def moved_by_pillow(image, matrix, fill=128):
    size = image.shape[1], image.shape[0]
    moved = pillow(image).transform(
        size,
        Image.Transform.AFFINE,
        tuple(np.asarray(matrix, float).ravel()),
        Image.Resampling.NEAREST,
        fillcolor=(fill,) * 3,
    )
    return as_levels(moved)


MATRICES = {
    "shear_x": (ops.shear_x(0.29), [[1, 0.29, 0], [0, 1, 0]]),
    "shear_y": (ops.shear_y(-0.21), [[1, 0, 0], [-0.21, 1, 0]]),
    "right": (ops.translation(3.0, 0.0), [[1, 0, -3], [0, 1, 0]]),
    "up": (ops.translation(0.0, -4.7), [[1, 0, 0], [0, 1, 4.7]]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_moving_pixels_is_that_of_pillow(name):
    matrix, theirs = MATRICES[name]
    for image in (IMAGES["smooth"], NOISE):
        ours = levels_of(lambda x, m: ops.affine(x, m, 128 / 255), image, matrix)
        np.testing.assert_allclose(ours, moved_by_pillow(image, theirs), atol=1e-3)


def test_translation_moves_to_the_right_and_down():
    dot = np.zeros((5, 6, 1), np.uint8)
    dot[1, 2] = 255
    moved = levels_of(lambda x, m: ops.affine(x, m, 0.0), dot, ops.translation(3.0, 2.0))
    assert np.argwhere(moved[..., 0]).tolist() == [[3, 5]]


@pytest.mark.parametrize("degrees", [27.0, -13.0, 90.0, 180.0])
def test_rotating_is_that_of_pillow(degrees):
    for image in (IMAGES["smooth"], NOISE):
        matrix = ops.rotation(degrees, *image.shape[:2])
        ours = levels_of(lambda x, m: ops.affine(x, m, 128 / 255), image, matrix)
        theirs = as_levels(pillow(image).rotate(degrees, fillcolor=(128,) * 3))
        differs = (abs(ours - theirs) > 1e-3).any(axis=-1)
        # On the border between two pixels single and double precision may part.
        assert differs.mean() < 0.01
