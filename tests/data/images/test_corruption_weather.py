from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from jaxlab.core import UsageError
from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions import weather


@pytest.fixture(scope="module")
def plasma():
    """`(key, decay) -> cloud [32, 32]`."""
    return jax.jit(lambda key, decay: weather.plasma(key, 32, decay))


def wobbles(cloud: np.ndarray, step: int) -> np.ndarray:
    """How far the points that a halving from `step` adds lie from their neighbours' mean."""
    half = step // 2

    def around(*steps: tuple[int, int]) -> np.ndarray:
        return np.mean([np.roll(cloud, (-y, -x), (0, 1)) for y, x in steps], axis=0)

    corners = around((half, half), (half, -half), (-half, half), (-half, -half))
    sides = around((half, 0), (-half, 0), (0, half), (0, -half))
    return np.concatenate(
        [
            (cloud - corners)[half::step, half::step].reshape(-1),
            (cloud - sides)[::step, half::step].reshape(-1),
            (cloud - sides)[half::step, ::step].reshape(-1),
        ]
    )


def test_without_noise_points_of_plasma_are_the_mean_of_their_four_neighbours(plasma):
    cloud = np.asarray(plasma(jax.random.key(0), 1e4))
    for step in (16, 8, 4, 2):
        np.testing.assert_allclose(wobbles(cloud, step), 0, atol=1e-6)
    assert np.abs(wobbles(cloud, 32)).max() > 0.1


@pytest.mark.parametrize("decay", [1.5, 3.0])
def test_noise_of_plasma_falls_by_the_square_of_its_decay(plasma, decay):
    ratios = []
    for key in jax.random.split(jax.random.key(1), 32):
        cloud = np.asarray(plasma(key, decay))
        assert cloud.min() == 0 and cloud.max() == pytest.approx(1)
        fine, coarse = wobbles(cloud, 2), wobbles(cloud, 4)
        # Uniform: the farthest of many is close to the end.
        assert np.abs(fine).max() < 2.2 * fine.std()
        ratios.append(coarse.std() / fine.std())
    assert np.mean(ratios) == pytest.approx(decay**2, rel=0.03)


def test_fog_hides_a_flat_image_and_leaves_its_brightest_level():
    out = corruptions.corrupt(np.full((8, 32, 32, 3), 200, np.uint8), "fog", 5)
    # (x + 1.5 p) m / (m + 1.5) with m = x = 200 / 255, from p = 0 to p = 1.
    m = 200 / 255
    np.testing.assert_array_equal(out.min(axis=(1, 2, 3)), int(255 * m * m / (m + 1.5)))
    np.testing.assert_allclose(out.max(axis=(1, 2, 3)), 200, atol=1)
    assert (out[..., 0] == out[..., 2]).all() and out.std() > 5


def test_snow_falls_twice_in_the_same_shape_and_only_brightens():
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    x = images / 255
    grey = x @ [0.299, 0.587, 0.114]
    pale = 0.8 * x + 0.2 * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    out = corruptions.corrupt(images, "snow", 5)
    least = np.floor(np.minimum(pale, 1) * 255 - 1e-3).astype(int)
    assert (out >= least).all() and (out > least + 20).any()
    flat = corruptions.corrupt(np.full((8, 32, 32, 3), 60, np.uint8), "snow", 5)
    np.testing.assert_array_equal(flat, flat[:, ::-1, ::-1])


def test_snow_falls_rather_than_drifts():
    flat = corruptions.corrupt(np.full((64, 32, 32, 3), 60, np.uint8), "snow", 3).astype(float)
    down, across = (np.abs(np.diff(flat, axis=axis)).mean() for axis in (1, 2))
    assert down < 0.8 * across


def test_procedural_frost_is_blue_white_and_of_middling_brightness():
    black = np.zeros((64, 32, 32, 3), np.uint8)
    pattern = (corruptions.corrupt(black, "frost_procedural", 5) + 0.5) / 0.45 / 255
    assert pattern.mean() == pytest.approx(0.55, abs=0.03)
    red, green, blue = pattern.reshape(-1, 3).mean(axis=0)
    assert red < green < blue
    assert pattern.std(axis=(1, 2)).mean() > 0.1 and pattern.max() > 0.8
    # 0.75 of a white image stays beneath it.
    white = corruptions.corrupt(black + 255, "frost_procedural", 5)
    assert white.min() >= 191


def save(path, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    Image.new("RGB", size, colour).save(path)


def test_frost_adds_a_part_of_one_of_the_photographs(tmp_path):
    save(tmp_path / "a.png", (200, 100, 50), (160, 300))
    save(tmp_path / "b.PNG", (20, 100, 250), (250, 160))
    images = np.full((64, 32, 32, 3), 100, np.uint8)
    out = corruptions.corrupt(images, "frost", 3, frost_folder=tmp_path)
    # 0.9 * 100 + 0.4 * photograph, over the whole image.
    colours, counts = np.unique(out.reshape(64, -1, 3), axis=0, return_counts=True)
    assert colours[:, 0].tolist() == [[98, 130, 190], [170, 130, 110]]
    assert (colours == colours[:, :1]).all() and counts.min() > 16


def test_frost_takes_every_fifth_pixel_of_anywhere_in_the_photograph(tmp_path):
    y, x = np.mgrid[:60, :40]
    small = np.stack([4 * y, 6 * x, 0 * x], axis=2).astype(np.uint8)
    Image.fromarray(small.repeat(5, axis=0).repeat(5, axis=1)).save(tmp_path / "a.png")
    black = np.zeros((64, 32, 32, 3), np.uint8)
    out = corruptions.corrupt(black, "frost", 1, frost_folder=tmp_path) / 0.2
    np.testing.assert_allclose(out[:, 31, 0, 0] - out[:, 0, 0, 0], 4 * 31, atol=5)
    np.testing.assert_allclose(out[:, 0, 31, 1] - out[:, 0, 0, 1], 6 * 31, atol=5)
    top, left = out[:, 0, 0, 0] / 4, out[:, 0, 0, 1] / 6
    assert top.min() < 5 and top.max() > 20 and left.min() < 2 and left.max() > 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "has no photographs; expected a folder with files that end in"),
        (lambda folder: (folder / "a.png").write_bytes(b"none"), "a.png' cannot be read"),
        (
            lambda folder: save(folder / "a.png", (0, 0, 0), (500, 100)),
            "is 20x100 after subsampling",
        ),
    ],
)
def test_photographs_that_do_not_serve_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        corruptions.corrupt(np.zeros((1, 32, 32, 3), np.uint8), "frost", 1, frost_folder=tmp_path)
