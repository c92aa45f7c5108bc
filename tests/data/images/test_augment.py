from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from jaxlab import objectives
from jaxlab.core import Loss, UsageError, named
from jaxlab.data import augment, augmented

KEY = jax.random.key(7)


def levels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def batch_of(images, num_classes=5):
    labels = np.arange(len(images), dtype=np.int32) % num_classes
    return {"inputs": images, "targets": labels, "index": np.arange(len(images), dtype=np.int32)}


def run(augmentation, images, key=KEY):
    """Augments levels, jitted; returns levels as floats, without rounding."""
    return np.asarray(jax.jit(augmentation)(key, batch_of(images))["inputs"]) * 255


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_crop_is_a_window_of_the_padded_image_anywhere(mode, numpy_mode):
    images = levels(200, 6, 5, 3)
    cropped = run(augment.crop(padding=2, mode=mode), images)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=numpy_mode)
    counts = np.zeros((5, 5), int)
    for whole, window in zip(padded, cropped, strict=True):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if abs(whole[i : i + 6, j : j + 5] - window).max() < 1e-3
        ]
        assert len(fits) == 1
        counts[fits[0]] += 1
    assert counts.min() >= 1 and counts.max() < 25  # 8 expected each


def test_a_flip_mirrors_about_half_of_the_images():
    images = levels(200, 4, 5, 3)
    flipped = run(augment.flip(), images)
    same = abs(flipped - images).max(axis=(1, 2, 3)) < 1e-3
    mirrored = abs(flipped - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-3
    assert (same ^ mirrored).all() and 70 < mirrored.sum() < 130
    np.testing.assert_allclose(run(augment.flip(rate=1), images), images[:, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(run(augment.flip(rate=0), images), images, atol=1e-3)


@pytest.mark.parametrize("size", [4, 5])
def test_cutout_fills_one_square_around_a_pixel_drawn_anywhere(size):
    images = np.full((400, 8, 7, 2), 255, np.uint8)
    cut = run(augment.cutout(size, fill=(0.0, 0.2)), images)
    hole = cut[..., 0] < 1
    assert (cut[~hole] == 255).all() and np.allclose(cut[hole], [0, 51])
    squares = set()
    for top, left in np.argwhere(np.ones((8, 7))) - size // 2:
        square = np.zeros((8, 7), bool)
        square[max(top, 0) : top + size, max(left, 0) : left + size] = True
        squares.add(square.tobytes())
    seen = {square.tobytes() for square in hole}
    assert seen <= squares and len(seen) > 0.9 * len(squares)


def test_mixup_mixes_images_and_targets_of_two_rows_by_one_share():
    images = np.broadcast_to(
        np.arange(0, 250, 2, dtype=np.uint8)[:, None, None, None], (125, 2, 2, 1)
    )
    batch = batch_of(images, num_classes=125) | {"mask": np.arange(125) != 3}
    mixed = jax.jit(augment.mixup(125, alpha=1.0))(KEY, batch)
    targets = np.asarray(mixed["targets"])
    assert mixed["targets"].dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    # Labels are the rows' numbers: the target says who was mixed, the level must agree.
    np.testing.assert_allclose(
        np.asarray(mixed["inputs"])[:, 0, 0, 0] * 255,
        targets @ np.arange(0, 250, 2),
        rtol=1e-4,
        atol=1e-2,
    )
    own = np.diagonal(targets)
    partners = (targets - np.diag(own)).argmax(axis=1)[own < 1]
    assert ((targets > 0).sum(axis=1) <= 2).all() and len(set(partners)) == len(partners)
    assert not np.asarray(mixed["mask"])[3] and np.asarray(mixed["mask"]).sum() in (123, 124)
    assert (np.asarray(mixed["index"]) == np.arange(125)).all()


@pytest.mark.parametrize("alpha", [0.2, 8])
def test_shares_of_mixup_have_the_moments_of_their_beta_distribution(alpha):
    batch = {"inputs": np.zeros((2000, 1, 1, 1), np.uint8), "targets": np.arange(2000) % 2}
    # Rows of one label are mixed with either: those with the other one show their share.
    targets = np.asarray(jax.jit(augment.mixup(2, alpha))(KEY, batch)["targets"])
    own = targets[np.arange(2000), np.arange(2000) % 2]
    shares = own[own < 1]
    assert 900 < len(shares) < 1100
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / len(shares))
    assert abs(shares.var() / variance - 1) < 0.15


def test_mixup_takes_targets_that_are_probabilities_already():
    batch = batch_of(levels(16, 8, 8, 3)) | {"targets": np.full((16, 5), 0.2, np.float32)}
    np.testing.assert_allclose(jax.jit(augment.mixup(5))(KEY, batch)["targets"], 0.2, atol=1e-6)


IMAGE = levels(32, 32, 3, seed=3) // 2 + np.arange(32, dtype=np.uint8)[:, None, None]


def moved(a, b, c, d, e, f):
    image = Image.fromarray(IMAGE).transform(
        (32, 32),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.NEAREST,
        fillcolor=(128, 128, 128),
    )
    return np.asarray(image)


def enhanced(kind):
    return [np.asarray(kind(Image.fromarray(IMAGE)).enhance(factor)) for factor in (0.55, 1.45)]


AT_MAGNITUDE_5 = {
    "identity": [IMAGE],
    "auto_contrast": [np.asarray(ImageOps.autocontrast(Image.fromarray(IMAGE)))],
    "equalize": [np.asarray(ImageOps.equalize(Image.fromarray(IMAGE)))],
    "rotate": [
        np.asarray(Image.fromarray(IMAGE).rotate(d, fillcolor=(128,) * 3)) for d in (-15, 15)
    ],
    "solarize": [np.asarray(ImageOps.solarize(Image.fromarray(IMAGE), 128))],
    "color": enhanced(ImageEnhance.Color),
    "posterize": [np.asarray(ImageOps.posterize(Image.fromarray(IMAGE), 6))],
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear_x": [moved(1, s, 0, 0, 1, 0) for s in (-0.15, 0.15)],
    "shear_y": [moved(1, 0, 0, s, 1, 0) for s in (-0.15, 0.15)],
    "translate_x": [moved(1, 0, s, 0, 1, 0) for s in (-7.2, 7.2)],
    "translate_y": [moved(1, 0, 0, 0, 1, s) for s in (-7.2, 7.2)],
}


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_each_operation_has_its_parameter_and_both_signs(name):
    chosen = augment.rand_augment(1, 5, operations=[name], fill=128 / 255)
    images = run(chosen, np.broadcast_to(IMAGE, (16, 32, 32, 3)))
    fits = [
        # Rotation may part from Pillow's where pixels meet, in a few.
        [np.quantile(abs(image - expected), 0.97) < 1.3 for expected in AT_MAGNITUDE_5[name]]
        for image in images
    ]
    assert (np.sum(fits, axis=1) == 1).all() and np.any(fits, axis=0).all()


def test_magnitude_0_changes_nothing_but_histograms():
    names = [n for n in augment.OPERATIONS if n not in ("auto_contrast", "equalize")]
    images = levels(64, 8, 8, 3)
    unchanged = run(augment.rand_augment(3, 0, operations=names), images)
    np.testing.assert_allclose(unchanged, images, atol=1e-2)


def test_operations_are_drawn_evenly_for_each_image_and_each_time():
    images = np.broadcast_to(np.uint8([[[10]]]), (3000, 1, 1, 1))
    # Inverting twice is no change: with two draws of two, half of the images end inverted.
    both = run(augment.rand_augment(2, 10, operations=["identity", "solarize"]), images)
    assert set(both.round().ravel().tolist()) == {10.0, 245.0}
    assert abs((both > 100).mean() - 0.5) < 0.04


def test_grey_images_can_be_augmented_at_random():
    images = levels(64, 8, 8, 1)
    changed = run(augment.rand_augment(2, 9), images)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 255.001
    assert (abs(changed - images).max(axis=(1, 2, 3)) > 1).mean() > 0.5


ALL = {
    "crop": augment.crop(2),
    "flip": augment.flip(),
    "cutout": augment.cutout(3),
    "rand_augment": augment.rand_augment(2, 9),
    "mixup": augment.mixup(5, alpha=1.0),
    "composed": augment.compose(augment.crop(2), augment.flip()),
}


@pytest.mark.parametrize("name", ALL)
def test_the_same_key_gives_the_same_and_another_key_another_on_any_devices(name):
    batch = batch_of(levels(16, 8, 8, 3))
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    jitted = jax.jit(ALL[name])
    one, other = jitted(KEY, batch), jitted(jax.random.key(8), batch)
    spread = jitted(KEY, jax.device_put(batch, rows))
    assert set(one) == set(batch)
    assert (np.asarray(one["inputs"]) != np.asarray(other["inputs"])).any()
    assert len(jax.devices()) == 8
    for key in one:
        np.testing.assert_allclose(one[key], spread[key], rtol=0, atol=1e-6, err_msg=key)
    if name != "mixup":
        np.testing.assert_array_equal(one["targets"], batch["targets"])


@pytest.mark.parametrize("name", ["crop", "flip", "cutout", "rand_augment"])
def test_a_row_depends_on_no_other_row(name):
    images = levels(16, 8, 8, 3)
    whole, part = run(ALL[name], images), run(ALL[name], images[:4])
    np.testing.assert_allclose(whole[:4], part, atol=1e-3)
    # Equal images, and yet not all are changed alike.
    alike = run(ALL[name], np.broadcast_to(images[:1], images.shape))
    assert len(np.unique(alike.round(2), axis=0)) > 1


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_no_row_moves_to_another_device(name):
    batch = batch_of(levels(16, 8, 8, 3))
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    placed = {name: jax.device_put(array, rows) for name, array in batch.items()}
    text = jax.jit(ALL[name]).lower(KEY, placed).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_images_changed_one_by_one_and_all_at_once_are_the_same():
    images, several = levels(16, 8, 8, 3), jax.vmap(ALL["rand_augment"])
    keys = jax.random.split(KEY, 2)
    batches = {name: np.stack([array] * 2) for name, array in batch_of(images).items()}
    at_once = np.asarray(jax.jit(several)(keys, batches)["inputs"]) * 255
    for key, images_at_once in zip(keys, at_once, strict=True):
        np.testing.assert_allclose(run(ALL["rand_augment"], images, key), images_at_once, atol=0.01)


def test_levels_and_floats_are_augmented_alike():
    images = levels(8, 6, 6, 3)
    floats = batch_of(images) | {"inputs": images.astype(np.float32) / 255}
    made = jax.jit(ALL["composed"])(KEY, floats)["inputs"]
    np.testing.assert_allclose(run(ALL["composed"], images), np.asarray(made) * 255, atol=1e-3)
    with pytest.raises(UsageError, match=r"float images from 0 to 255; expected \[0, 1\]"):
        augment.flip()(KEY, batch_of(images.astype(np.float32).round() % 256))


def test_parts_of_a_composition_draw_apart():
    images = levels(64, 4, 4, 1)
    twice = run(augment.compose(augment.flip(), augment.flip()), images)
    same = abs(twice - images).max(axis=(1, 2, 3)) < 1e-3
    assert 10 < same.sum() < 54  # one key for both would always flip back


def linear(images_bhwc):
    return images_bhwc.reshape(len(images_bhwc), -1)[:, :5]


def test_an_objective_sees_augmented_batches_and_its_own_key():
    seen = {}

    def objective(model, batch, carry=None, key=None):
        seen.update(batch=batch, key=key)
        return objectives.classify(model, batch, carry, key)

    batch = batch_of(levels(8, 6, 6, 3))
    changed = augmented(objective, augment.crop(2), augment.flip())
    loss = changed(linear, batch, {"h": 1}, KEY)
    expected = ALL["composed"](named(KEY, "augment"), batch)
    assert isinstance(loss, Loss) and loss.carry == {"h": 1} and seen["key"] is KEY
    np.testing.assert_array_equal(seen["batch"]["inputs"], expected["inputs"])
    np.testing.assert_allclose(loss.value, objectives.classify(linear, expected).value, rtol=1e-6)
    assert batch["inputs"].dtype == np.uint8  # what came in is not changed


def test_an_augmented_objective_is_jitted_and_differentiated():
    changed = augmented(objectives.classify, augment.flip(), augment.cutout(3))
    batch = batch_of(levels(16, 8, 8, 3))

    @jax.jit
    def value(scale, key):
        return changed(lambda x: linear(x) * scale, batch, None, key).value

    gradient = jax.jit(jax.grad(value))(1.5, KEY)
    step = 1e-2
    numeric = (value(1.5 + step, KEY) - value(1.5 - step, KEY)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=2e-2, atol=1e-4)


def test_without_a_key_nothing_is_augmented():
    changed = augmented(objectives.classify, augment.flip())
    with pytest.raises(UsageError, match="augmentation needs a key and got None; pass one, or eva"):
        changed(linear, batch_of(levels(4, 4, 4, 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.crop(0), "padding=0; expected at least 1"),
        (lambda: augment.crop(4, "zeros"), "mode='zeros'; expected zero or reflect; did you mean"),
        (lambda: augment.flip(1.5), "rate=1.5; expected a probability from 0 to 1"),
        (lambda: augment.cutout(0), "size=0; expected at least 1"),
        (lambda: augment.cutout(4, 127), r"fill=127; expected numbers in \[0, 1\]"),
        (lambda: augment.mixup(10, 0), "alpha=0; expected a number above 0"),
        (lambda: augment.mixup(0), "num_classes=0; expected at least 1"),
        (lambda: augment.rand_augment(0), "num_ops=0; expected at least 1"),
        (lambda: augment.rand_augment(2, 11), "magnitude=11; expected a number from 0 to 10"),
        (lambda: augment.rand_augment(fill=128), r"fill=128; expected numbers in \[0, 1\]"),
        (
            lambda: augment.rand_augment(operations=["rotat"]),
            "unknown operation 'rotat'; expected some of .*; did you mean 'rotate'",
        ),
        (lambda: augment.rand_augment(operations=[]), r"operations=\(\); expected at least one"),
        (lambda: augment.rand_augment(operations=["color"] * 2), "at least one, and each once"),
        (lambda: augmented(objectives.classify), "no augmentation; pass at least one"),
        (
            lambda: augment.rand_augment()(KEY, batch_of(levels(2, 4, 4, 2))),
            "images with 2 channels; rand_augment takes 1 or 3",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
