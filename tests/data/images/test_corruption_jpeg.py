from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.fft
from PIL import Image, features

from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions import jpeg


def images(shape: tuple[int, ...]) -> np.ndarray:
    """Noise, black and white squares, and a ramp, uint8."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    squares = (rng.random(shape) < 0.5).astype(np.uint8) * 255
    ramp = np.broadcast_to(np.linspace(0, 255, shape[2])[:, None], shape).astype(np.uint8)
    return np.concatenate([noise, squares, ramp])


@pytest.mark.skipif(
    not features.check_feature("libjpeg_turbo"), reason="Pillow is built on another libjpeg"
)
@pytest.mark.parametrize("shape", [(8, 32, 32, 3), (4, 27, 21, 3), (4, 28, 28, 1)])
def test_on_the_device_every_level_is_that_of_pillow(shape):
    given = images(shape)
    for severity in (1, 3, 5):
        host, device = (
            corruptions.corrupt(given, name, severity, any_size=True)
            for name in ("jpeg_compression", "jpeg_on_device")
        )
        assert (host != given).any()
        np.testing.assert_array_equal(device, host)


def test_cosines_are_those_of_the_transform():
    cosines = np.sqrt(8) * 2**13 * scipy.fft.dct(np.eye(8), axis=0, norm="ortho")
    np.testing.assert_allclose(jpeg.COSINES, cosines, atol=1.5)


@pytest.mark.parametrize("quality", [1, 10, 40, 50, 58, 80, 95, 100])
def test_quantisation_is_that_of_pillow(quality, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as image:
        theirs = image.quantization
    for ours, number in zip(jpeg.quantisation(quality), (0, 1), strict=True):
        np.testing.assert_array_equal(ours.reshape(-1), theirs[number])


def test_a_flat_image_of_a_representable_level_comes_back():
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    for name in ("jpeg_compression", "jpeg_on_device"):
        np.testing.assert_array_equal(corruptions.corrupt(grey, name, 5), grey)


def test_the_key_does_not_matter():
    given = images((2, 32, 32, 3))
    one, other = (
        corruptions.make("jpeg_on_device", 2)(jax.random.key(seed), given) for seed in (0, 1)
    )
    np.testing.assert_array_equal(one, other)
