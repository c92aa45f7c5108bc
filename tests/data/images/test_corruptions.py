from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from jaxlab.core import UsageError
from jaxlab.data.images import corruptions
from jaxlab.data.images.corruptions.blur import defocus_kernel

ALL_NAMES = corruptions.NAMES + corruptions.EXTRA_NAMES + corruptions.OWN_NAMES
COLOUR_ALONE = {"frost", "frost_procedural", "spatter", "saturate"}
# The others' parameters do not grow in every step: elastic's affine map shrinks, saturate begins
# below 1, spatter turns from water to mud, glass and frost trade one parameter for another.
RISING = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "gaussian_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "jpeg_on_device",
)
# Shares of values that may differ by one level: where the exact result is a whole level, cutting
# off goes by the last bit, which differs between processors. Measured for these names, with room.
GOLDEN_SHARES = {
    "contrast": 0,
    "pixelate": 0,
    "jpeg_compression": 0,
    "jpeg_on_device": 0,
    "gaussian_blur": 0.0004,
    "zoom_blur": 0.0004,
    "defocus_blur": 0.0135,
    "brightness": 0.034,
    "saturate": 0.111,
}


def photos(num_images: int, seed: int = 0) -> np.ndarray:
    """Smooth colourful images with some texture, uint8 [n, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    shape = (num_images, 32, 32, 3)
    smooth = gaussian_filter(rng.normal(size=shape), (0, 4, 4, 0))
    texture = gaussian_filter(rng.normal(size=shape), (0, 0.7, 0.7, 0))
    x = 110 + 60 * smooth / smooth.std() + 15 * texture
    return np.clip(x, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def frost_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frost")
    rng = np.random.default_rng(1)
    for name, size in (("a.png", (170, 200)), ("b.jpg", (220, 165))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no photograph")
    return folder


def test_names_are_fifteen_and_four_and_our_own():
    assert (len(corruptions.NAMES), len(corruptions.EXTRA_NAMES)) == (15, 4)
    assert len(set(ALL_NAMES)) == 21
    assert set(corruptions.EVALUATED_NAMES) ^ set(corruptions.NAMES) == {
        "frost",
        "frost_procedural",
    }


@pytest.mark.parametrize("name", ALL_NAMES)
def test_an_image_becomes_the_same_bytes_in_every_batch(name, frost_folder):
    images = photos(70)
    corruption = corruptions.make(name, 3, frost_folder=frost_folder)
    key = jax.random.key(7)
    together = corruption(key, images)
    assert together.dtype == np.uint8 and together.shape == images.shape
    assert (together != images).any()
    for index in ([5], [69, 5, 0], range(3, 69)):
        index = np.array(index)
        np.testing.assert_array_equal(corruption(key, images[index], index), together[index])


@pytest.mark.parametrize("name", ["gaussian_noise", "zoom_blur"])
def test_under_jit_the_bytes_are_the_same(name):
    images = photos(70)
    corruption = corruptions.make(name, 2)
    np.testing.assert_array_equal(
        jax.jit(corruption)(jax.random.key(0), images), corruption(jax.random.key(0), images)
    )


def test_randomness_is_of_the_image_the_severity_the_name_and_the_seed():
    images = np.full((2, 32, 32, 3), 128, np.uint8)
    index = np.array([4, 5])
    parts = [
        corruptions.corrupt(images, "gaussian_noise", 4, index=index),
        corruptions.corrupt(images, "gaussian_noise", 5, index=index),
        corruptions.corrupt(images, "speckle_noise", 5, index=index),
        corruptions.corrupt(images, "gaussian_noise", 4, index=index, seed=1),
        corruptions.corrupt(images, "gaussian_noise", 4, index=index + 2),
    ]
    draws = np.concatenate(parts).reshape(10, -1).astype(float)
    # Independent draws of 3,072 values: a correlation has a deviation of 0.018.
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(10), atol=0.09)


@pytest.mark.parametrize("name", RISING)
def test_change_grows_with_severity(name):
    images = photos(32)
    change = [
        np.abs(corruptions.corrupt(images, name, severity).astype(int) - images).mean()
        for severity in corruptions.SEVERITIES
    ]
    assert np.all(np.diff(change) > 0) and change[0] > 0, change


@pytest.mark.parametrize("name", GOLDEN_SHARES)
def test_golden_values(name, shared):
    golden = np.load(shared / "golden" / "golden_corruptions.npz")
    for severity, expected in enumerate(golden[name.replace("on_device", "compression")], 1):
        found = corruptions.corrupt(golden["images"], name, severity)
        away = np.abs(found.astype(int) - expected)
        assert away.max() <= (GOLDEN_SHARES[name] > 0)
        assert (away > 0).mean() <= GOLDEN_SHARES[name], severity


def test_golden_defocus_kernels(shared):
    golden = np.load(shared / "golden" / "golden_corruptions.npz")
    names = [name for name in golden if name.startswith("defocus_kernel_")]
    assert len(names) == 5
    for name in names:
        radius, sigma = map(float, name.split("_")[2:])
        np.testing.assert_allclose(defocus_kernel(radius, sigma), golden[name], atol=4e-8)


def test_levels_are_cut_off_not_rounded():
    images = np.full((1, 32, 32, 3), 100, np.uint8)
    # 100 + 0.05 * 255 = 112.75, and 100 + 0.15 * 255 = 138.25.
    assert (corruptions.corrupt(images, "brightness", 1) == 112).all()
    assert (corruptions.corrupt(images, "brightness", 3) == 138).all()


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (2, 20, 40, 3), (2, 8, 8, 1)])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_other_sizes_are_taken_where_asked_for(name, shape, frost_folder):
    corruption = corruptions.make(name, 4, any_size=True, frost_folder=frost_folder)
    images = jax.ShapeDtypeStruct(shape, np.uint8)

    def run(images):
        return corruption(jax.random.key(0), images)

    if name == "jpeg_compression":  # on the host
        assert run(np.zeros(shape, np.uint8)).shape == shape
    elif shape[3] == 1 and name in COLOUR_ALONE:
        with pytest.raises(UsageError, match="with 1 channels; expected 3"):
            jax.eval_shape(run, images)
    elif name == "frost" and shape[1:3] == (20, 40):
        with pytest.raises(UsageError, match="need photographs at least 5 times as high"):
            jax.eval_shape(run, images)
    else:
        assert jax.eval_shape(run, images) == images


def test_grey_digits_get_noise_and_contrast():
    images = np.full((3, 28, 28, 1), 100, np.uint8)
    images[:, 7:21] = 200
    flat = corruptions.corrupt(images, "contrast", 5, any_size=True)
    assert np.unique(flat).tolist() == [142, 157]  # 150 -+ 0.15 * 50
    noisy = corruptions.corrupt(images, "gaussian_noise", 5, any_size=True)
    assert (noisy.astype(int) - images).std() == pytest.approx(25.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": 6}, "severity=6 of fog; expected an integer from 1 to 5"),
        ({"severity": 0}, "severity=0"),
        ({"severity": True}, "severity=True"),
        ({"severity": 2.5}, "severity=2.5"),
        ({"name": "zoom_blurr"}, "no corruption 'zoom_blurr'; did you mean 'zoom_blur'"),
        ({"name": "frost"}, "frost needs photographs: pass frost_folder=.*'frost_procedural'"),
        ({"images": np.zeros((1, 32, 32, 3), np.float32)}, "dtype float32; expected uint8 levels"),
        ({"images": np.zeros((1, 32, 32, 3), np.int64)}, "dtype int64; expected uint8 levels"),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, r"expected \[b, h, w, c\]"),
        ({"images": np.zeros((1, 28, 28, 3), np.uint8)}, "28x28.*pass any_size=True"),
        ({"images": np.zeros((1, 32, 32, 1), np.uint8)}, "1 channels; expected 3; with any_size"),
        ({"images": np.zeros((1, 32, 32, 4), np.uint8)}, "4 channels; expected 3"),
        ({"images": np.zeros((1, 4, 4, 3), np.uint8), "any_size": True}, "at least 8x8"),
        ({"index": [0, 1]}, r"shape \(2,\) for 1 images"),
        ({"index": [-1]}, "expected a non-negative integer"),
        ({"index": [0.5]}, "an index of dtype float64"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {
        "images": np.zeros((1, 32, 32, 3), np.uint8),
        "name": "fog",
        "severity": 3,
        **change,
    }
    images, name, severity = (arguments.pop(key) for key in ("images", "name", "severity"))
    with pytest.raises(UsageError, match=message):
        corruptions.corrupt(images, name, severity, **arguments)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "a key of type int"),
        (np.zeros(2, np.uint32), "a key of type ndarray"),
        (jax.random.key(0, impl="rbg"), "kind rbg and shape"),
        (jax.random.split(jax.random.key(0)), "expected one key"),
    ],
)
def test_a_key_that_gives_other_bytes_by_batch_is_refused(key, message):
    with pytest.raises(UsageError, match=message):
        corruptions.make("fog", 1)(key, np.zeros((1, 32, 32, 3), np.uint8))


def test_what_runs_on_the_host_says_so_under_jit():
    corruption = corruptions.make("jpeg_compression", 1)
    with pytest.raises(UsageError, match="runs on the host.*'jpeg_on_device'"):
        jax.jit(corruption)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))


def test_no_images_give_none():
    assert corruptions.corrupt(np.zeros((0, 32, 32, 3), np.uint8), "fog", 1).shape[0] == 0
