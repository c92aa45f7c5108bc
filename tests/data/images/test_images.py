from __future__ import annotations

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import ImageSet, channel_statistics, digits, open_images


def levels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbered(n, num_classes=3):
    """Images whose first level is their number."""
    images = np.zeros((n, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return ImageSet(images, np.arange(n) % num_classes, name="numbered")


def numbers(images):
    return images.images[:, 0, 0, 0].tolist()


def test_arrays_become_a_set_without_a_copy_and_read_only():
    images = levels(4, 5, 6, 3)
    made = ImageSet(images, [0, 2, 1, 2], class_names=["cat", "dog", "eel"], name="zoo")
    assert (len(made), made.num_classes, made.image_shape) == (4, 3, (5, 6, 3))
    assert made.labels.dtype == np.int32 and made.labels.tolist() == [0, 2, 1, 2]
    assert np.shares_memory(made.images, images)
    with pytest.raises(ValueError, match="read-only"):
        made.images[0] = 0
    assert images.flags.writeable
    image, label = made[1]
    assert label == 2 and (image == images[1]).all()


def test_classes_are_counted_from_the_labels_where_nothing_is_said():
    assert ImageSet(levels(2, 4, 4, 1), [0, 3]).class_names == ("0", "1", "2", "3")
    assert ImageSet(levels(2, 4, 4, 1), [0, 3], num_classes=10).num_classes == 10


@pytest.mark.parametrize(
    ("images", "labels", "more", "message"),
    [
        (np.zeros((2, 4, 4, 1)), [0, 1], {}, r"float64; expected uint8 .* np.rint\(255"),
        (np.zeros((2, 4, 4, 1), int), [0, 1], {}, r"int64; expected uint8 .* images.astype"),
        (
            levels(2, 4, 4),
            [0, 1],
            {},
            r"\(2, 4, 4\); expected \[n, h, w, c\]: for grey images pass",
        ),
        (levels(2, 3, 8, 8), [0, 1], {}, r"channels first; .*transpose\(0, 2, 3, 1\)"),
        (levels(0, 4, 4, 1), [], {}, "expected at least one"),
        (levels(2, 4, 4, 1), [[0], [1]], {}, r"\(2, 1\); expected \[2\]: pass labels\[:, 0\]"),
        (levels(2, 4, 4, 1), [0.0, 1.0], {}, "labels of dtype float64; expected integers"),
        (levels(2, 4, 4, 1), [0, -1], {}, "label -1 of example 1 is out of range"),
        (levels(2, 4, 4, 1), [0, 2], {"num_classes": 2}, "label 2 of example 1 .* 0 to 1"),
        (levels(2, 4, 4, 1), [0, 1], {"num_classes": 0}, "num_classes=0; expected at least 1"),
        (
            levels(2, 4, 4, 1),
            [0, 1],
            {"num_classes": 3, "class_names": ["a", "b"]},
            "num_classes=3, but 2 class_names",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, more, message):
    with pytest.raises(UsageError, match=message):
        ImageSet(images, labels, **more)


def test_parts_know_their_images_classes_and_names():
    whole = numbered(10)
    assert numbers(whole[2:5]) == [2, 3, 4]
    assert np.shares_memory(whole[2:5].images, whole.images)
    assert (whole[2:5].name, whole.first(4).name) == ("numbered[2:5]", "numbered[:4]")
    assert whole[::2].name == "numbered[::2]"
    taken = whole.take([7, 0, 7])
    assert numbers(taken) == [7, 0, 7] and taken.labels.tolist() == [1, 0, 1]
    assert taken.num_classes == 3
    assert taken.name == whole.take(np.array([7, 0, 7])).name != whole.take([0, 7, 7]).name


@pytest.mark.parametrize("indices", [[], [10], [-1], [0.0], [[0]], [True]])
def test_wrong_indices_are_refused(indices):
    with pytest.raises(UsageError, match="of 'numbered'; expected .* from 0 to 9"):
        numbered(10).take(indices)


def test_more_than_there_are_is_refused():
    with pytest.raises(UsageError, match="count=11; 'numbered' has only 10 images"):
        numbered(10).first(11)


def test_split_is_seeded_exact_and_even_over_classes():
    whole = ImageSet(
        np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1),
        np.repeat([0, 1, 2], [60, 30, 10]),
        num_classes=4,
    )
    train, held_out = whole.split(0.2, seed=1)
    assert np.bincount(held_out.labels, minlength=4).tolist() == [12, 6, 2, 0]
    assert train.num_classes == held_out.num_classes == 4
    assert sorted(numbers(train) + numbers(held_out)) == list(range(100))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(whole.split(0.2, seed=1)[1]) == numbers(held_out)
    assert numbers(whole.split(0.2, seed=2)[1]) != numbers(held_out)
    assert len({train.name, held_out.name, whole.split(0.2, seed=2)[1].name}) == 3


@pytest.mark.parametrize(("rate", "sizes"), [(0.001, (9, 1)), (0.999, (1, 9)), (0.35, (6, 4))])
def test_neither_part_of_a_split_is_empty(rate, sizes):
    parts = numbered(10).split(rate)
    assert tuple(map(len, parts)) == sizes


def test_split_out_of_range_is_refused():
    with pytest.raises(UsageError, match="held_out_rate=1; expected a fraction between 0 and 1"):
        numbered(10).split(1)
    with pytest.raises(UsageError, match="has one image"):
        numbered(1).split(0.5)


def test_fingerprint_changes_with_levels_labels_classes_and_order():
    images, labels = levels(3, 4, 4, 1), [0, 1, 1]
    same = ImageSet(images.copy(), labels, name="another name").fingerprint
    base = ImageSet(images, labels)
    changed = images.copy()
    changed[2, 3, 3, 0] ^= 1
    others = [
        ImageSet(changed, labels),
        ImageSet(images, [0, 1, 0]),
        base.take([0, 2, 1]),
        base[:2],
        ImageSet(images, labels, num_classes=3),
        ImageSet(images.reshape(3, 2, 8, 1), labels),
        ImageSet(images, labels, class_names=["a", "b"]),
    ]
    assert base.fingerprint == same
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 8


def test_channel_statistics_are_those_of_all_pixels():
    images = levels(1500, 3, 5, 3)  # more than are counted at once
    mean, std = channel_statistics(ImageSet(images, np.zeros(1500, int)))
    unit = images / 255
    np.testing.assert_allclose(mean, unit.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, unit.std(axis=(0, 1, 2)), rtol=1e-12)


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    expected = np.rint(theirs.images * 255 / 16)
    parts = digits("train"), digits("test")
    assert [len(part) for part in parts] == [1438, 359]
    pixels = np.concatenate([part.images for part in parts])[..., 0]
    labels = np.concatenate([part.labels for part in parts])

    def rows(images, labels):
        return sorted(
            (int(b), a.astype(int).ravel().tolist()) for a, b in zip(images, labels, strict=True)
        )

    assert rows(pixels, labels) == rows(expected, theirs.target)
    assert sorted(np.unique(pixels).tolist())[:3] == [0, 16, 32] and pixels.max() == 255
    shares = np.bincount(parts[1].labels) / np.bincount(theirs.target)
    assert abs(shares - 0.2).max() < 0.004


def test_digits_do_not_change():
    # A golden value: results on this split are compared over years and machines.
    assert [digits(s).fingerprint for s in ("train", "test")] == [
        "085e1d0dfa2b7842",
        "d1a8270b3bbca929",
    ]


def test_images_are_opened_by_a_line_of_text():
    assert open_images("digits").name == "digits/train"
    assert open_images("digits/test").fingerprint == digits("test").fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digts/train", "unknown images 'digts/train'; expected one of 'digits/<split>'.*'digits'"),
        ("tdfs:cifar10", "did you mean 'tfds'"),
        ("digits/trian", "no split 'trian'; they have train, test; did you mean 'train'"),
        ("images:", "unknown images 'images:'"),
        ("images:/no/where", "'/no/where' does not exist; expected a folder with one sub-folder"),
    ],
)
def test_unknown_images_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        open_images(spec)


def test_folder_without_its_kind_is_recognised(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'images:/"):
        open_images(str(tmp_path))


def test_digits_are_never_resized():
    with pytest.raises(UsageError, match=r"size=\(16, 16\) for 'digits/train'"):
        open_images("digits/train", size=(16, 16))
