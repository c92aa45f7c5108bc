from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions import spatter

find_edges = jax.jit(spatter.canny, static_argnums=(1, 2))
find_distance = jax.jit(spatter.distance)
equalised = jax.jit(spatter.equalise, static_argnums=1)


def blobs(seed: int) -> np.ndarray:
    """Levels of drops, int32 [32, 32]."""
    x = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0.65, 0.3, (32, 32)), 1)
    return np.where(x < 0.69, 0, np.clip(x, 0, 1) * 255).astype(np.int32)


def canny(levels: np.ndarray, low: int, high: int) -> np.ndarray:
    """Canny's algorithm pixel by pixel, after OpenCV's documentation, gradients by SciPy."""
    dx, dy = (ndimage.sobel(levels, axis=axis, mode="nearest") for axis in (1, 0))
    size = np.pad(np.abs(dx) + np.abs(dy), 1)
    weak = np.zeros(levels.shape, bool)
    for y, x in np.ndindex(levels.shape):
        m, gx, gy = size[y + 1, x + 1], dx[y, x], dy[y, x]
        if m <= low:
            continue
        angle = np.degrees(np.arctan2(abs(gy), abs(gx)))
        if angle < 22.5:
            keep = m > size[y + 1, x] and m >= size[y + 1, x + 2]
        elif angle > 67.5:
            keep = m > size[y, x + 1] and m >= size[y + 2, x + 1]
        elif (gx < 0) == (gy < 0):
            keep = m > size[y, x] and m > size[y + 2, x + 2]
        else:
            keep = m > size[y, x + 2] and m > size[y + 2, x]
        weak[y, x] = keep
    parts, _ = ndimage.label(weak, np.ones((3, 3)))
    strong = np.unique(parts[weak & (size[1:-1, 1:-1] > high)])
    return np.isin(parts, strong[strong > 0])


def test_canny_equals_the_algorithm_pixel_by_pixel():
    images = [blobs(seed) for seed in range(8)]
    # Noise, in which edges hang together in long chains and all directions occur.
    images += list(np.random.default_rng(0).integers(0, 90, (4, 32, 32), dtype=np.int32))
    edges = [np.asarray(find_edges(image, 50, 150)) for image in images]
    for image, found in zip(images, edges, strict=True):
        np.testing.assert_array_equal(found, canny(image, 50, 150))
    assert np.mean(edges) > 0.05


def test_canny_follows_a_weak_edge_from_a_strong_one_and_finds_none_alone():
    step = np.zeros((32, 32), np.int32)
    step[:, 16:] = 30  # a gradient of 4 * 30, between the two thresholds
    assert not find_edges(step, 50, 150).any()
    step[:4, 16:] = 60
    found = np.asarray(find_edges(step, 50, 150))
    assert found[:, 15:17].any(axis=1)[8:].all() and not found[8:, 20:].any()


@pytest.mark.parametrize("share", [0.002, 0.05])
def test_distance_is_euclidean(share):
    marked = np.random.default_rng(3).random((32, 20)) < share
    assert marked.any()
    expected = ndimage.distance_transform_edt(~marked)
    np.testing.assert_allclose(find_distance(marked), expected, rtol=1e-6)


def test_distance_is_infinite_without_a_mark():
    assert np.isinf(find_distance(np.zeros((32, 20), bool))).all()


def test_equalise_spreads_the_histogram():
    levels = np.random.default_rng(4).poisson(6, (32, 32)).clip(2, 20)
    table, seen = {}, 0
    lowest = (levels == levels.min()).sum()
    for level in range(levels.min() + 1, 21):
        seen += (levels == level).sum()
        table[level] = round(255 * seen / (1024 - lowest))
    table[levels.min()] = 0
    expected = np.vectorize(table.get)(levels)
    for num_levels in (21, 256):
        np.testing.assert_array_equal(equalised(levels, num_levels), expected)
    assert expected.max() == 255


def test_equalise_leaves_one_level_alone():
    np.testing.assert_array_equal(equalised(np.full((4, 4), 20), 21), np.full((4, 4), 20))


def test_water_lies_where_the_drops_are_and_its_brightest_is_1():
    find = jax.jit(spatter.water)
    for seed in range(4):
        drops = blobs(seed)
        light = np.asarray(find(drops / 255 + 1e-4))
        assert light.max() == pytest.approx(1) and light.min() >= 0
        assert (light[drops == 0] == 0).all() and (light[drops > 0] > 0).mean() > 0.2
    assert (np.asarray(find(np.zeros((32, 32)))) == 0).all()


def test_water_adds_turquoise():
    black = np.zeros((16, 32, 32, 3), np.uint8)
    out = corruptions.corrupt(black, "spatter", 3).astype(float)
    red, green, blue = out[..., 0], out[..., 1], out[..., 2]
    np.testing.assert_array_equal(green, blue)
    np.testing.assert_allclose(red, green * 175 / 238, atol=1.5)
    # The brightest of each image: half of the colour.
    np.testing.assert_allclose(green.max(axis=(1, 2)), 119, atol=1)
    assert 0.02 < (green > 0).mean() < 0.5


def test_mud_covers_at_least_four_fifths_where_it_lies():
    white = np.full((16, 32, 32, 3), 255, np.uint8)
    out = corruptions.corrupt(white, "spatter", 5).astype(float)
    colour = np.array([63, 42, 20])
    covered = (255 - out) / (255 - colour)
    np.testing.assert_allclose(covered[..., 0], covered[..., 2], atol=0.008)
    share = covered.mean(axis=-1)
    assert ((share == 0) | (share >= 0.8)).all()
    assert 0.01 < (share > 0).mean() < 0.5 and share.max() > 0.99
