from __future__ import annotations

import logging

import numpy as np
import pytest

from jaxlab.core import UsageError, WriteError
from jaxlab.data import ImageSet, corrupted, corrupted_sets, corruptions, images_fingerprint

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
NAME = "impulse_noise"


LABELLED = ImageSet(IMAGES, [2, 0, 1, 1, 0], class_names=["a", "b", "c", "d"], name="noise/test")


def kept(folder):
    (entry,) = folder.iterdir()
    return entry / "images.npy"


def test_a_set_is_made_once_and_then_read(tmp_path):
    expected = corruptions.corrupt(IMAGES, NAME, 2)
    first = corrupted(IMAGES, NAME, 2, cache_dir=tmp_path / "new" / "folder")
    path = kept(tmp_path / "new" / "folder")
    before = path.stat()
    again = corrupted(IMAGES, NAME, 2, cache_dir=str(tmp_path / "new" / "folder"))
    after = kept(tmp_path / "new" / "folder").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    for found in (first, again, corrupted(IMAGES, NAME, 2)):
        np.testing.assert_array_equal(found, expected)
    assert isinstance(again, np.memmap) and not again.flags.writeable
    np.testing.assert_array_equal(np.load(path), expected)


def test_what_is_kept_is_read_not_made(tmp_path):
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path, fingerprint="set")
    # The fingerprint alone names the set: other images of the same shape are not looked at.
    found = corrupted(IMAGES[::-1], NAME, 2, cache_dir=tmp_path, fingerprint="set")
    np.testing.assert_array_equal(found, corruptions.corrupt(IMAGES, NAME, 2))


def test_each_set_has_its_own_entry(tmp_path):
    names = set()
    for i, (images, name, severity, options) in enumerate(
        [
            (IMAGES, NAME, 2, {}),
            (IMAGES[::-1], NAME, 2, {}),
            (IMAGES[:4], NAME, 2, {}),
            (IMAGES, NAME, 3, {}),
            (IMAGES, NAME, 2, {"seed": 1}),
            (IMAGES, "glass_blur", 1, {}),
            (IMAGES, "glass_blur", 1, {"swap": True}),
        ]
    ):
        found = corrupted(images, name, severity, cache_dir=tmp_path, **options)
        np.testing.assert_array_equal(found, corruptions.corrupt(images, name, severity, **options))
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names) == i + 1
    assert {name.rpartition("-")[0] for name in names} == {
        f"{NAME}-2-seed0-v1",
        f"{NAME}-3-seed0-v1",
        f"{NAME}-2-seed1-v1",
        "glass_blur-1-seed0-v1",
    }


def test_a_damaged_set_is_made_again_with_one_line(tmp_path, caplog):
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path)
    path = kept(tmp_path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        found = corrupted(IMAGES, NAME, 2, cache_dir=tmp_path)
    np.testing.assert_array_equal(found, corruptions.corrupt(IMAGES, NAME, 2))
    assert kept(tmp_path).read_bytes() == whole
    (record,) = caplog.records
    assert (
        f"{NAME}-2-seed0-v1" in record.getMessage() and "making them again" in record.getMessage()
    )


def test_what_is_kept_is_not_handed_out_for_wrong_input(tmp_path):
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path, fingerprint="set")
    with pytest.raises(UsageError, match="dtype float32; expected uint8"):
        corrupted(IMAGES.astype(np.float32), NAME, 2, cache_dir=tmp_path, fingerprint="set")


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=f"{NAME}-2.*cannot be written to"):
        corrupted(IMAGES, NAME, 2, cache_dir=tmp_path / "file")


def test_a_fingerprint_may_be_any_text(tmp_path):
    texts = ["", "a/b", "..", "a b", "my set " * 100, "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
    for _ in range(2):
        for text in texts:
            corrupted(IMAGES[:1], NAME, 1, cache_dir=tmp_path, fingerprint=text)
    assert len(list(tmp_path.iterdir())) == len(texts)


@pytest.mark.parametrize("keep", [True, False])
def test_an_image_set_becomes_one_with_the_same_labels(tmp_path, keep):
    cache_dir = tmp_path / "kept" if keep else None
    for _ in range(2):
        found = corrupted(LABELLED, NAME, 2, cache_dir=cache_dir)
        assert isinstance(found, ImageSet) and found.name == f"noise/test/{NAME}/2"
        np.testing.assert_array_equal(found.images, corruptions.corrupt(IMAGES, NAME, 2))
        assert found.labels.tolist() == [2, 0, 1, 1, 0]
        assert found.class_names == ("a", "b", "c", "d")
    part = corrupted(LABELLED[:2], NAME, 2, cache_dir=cache_dir)
    assert part.name == f"noise/test[:2]/{NAME}/2" and part.labels.tolist() == [2, 0]
    sets = corrupted_sets(LABELLED, [NAME], (2, 3), cache_dir=cache_dir)
    assert [(n, s, of.name) for n, s, of in sets] == [
        (NAME, 2, f"noise/test/{NAME}/2"),
        (NAME, 3, f"noise/test/{NAME}/3"),
    ]
    assert not keep or len(list(cache_dir.iterdir())) == 3


def test_a_kept_image_set_is_named_by_its_fingerprint(tmp_path):
    corrupted(LABELLED, NAME, 2, cache_dir=tmp_path)
    # The same fingerprint, told: what is there is read.
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path, fingerprint=LABELLED.fingerprint)
    assert len(list(tmp_path.iterdir())) == 1


def test_sets_come_in_order_and_are_read_alike(tmp_path):
    for _ in range(2):
        sets = list(corrupted_sets(IMAGES, [NAME, "contrast"], (1, 5), cache_dir=tmp_path))
        assert [(name, severity) for name, severity, _ in sets] == [
            (NAME, 1),
            (NAME, 5),
            ("contrast", 1),
            ("contrast", 5),
        ]
        for name, severity, images in sets:
            np.testing.assert_array_equal(images, corruptions.corrupt(IMAGES, name, severity))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_wrong_name_is_found_before_anything_is_made(tmp_path):
    with pytest.raises(UsageError, match="no corruption 'fogg'"):
        next(corrupted_sets(IMAGES, [NAME, "fogg"], cache_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_is_of_values_shape_and_order():
    variants = [IMAGES, IMAGES[::-1], IMAGES[:4], IMAGES.reshape(5, 32, 96, 1), IMAGES ^ 1]
    assert len({images_fingerprint(images) for images in variants}) == len(variants)
    assert images_fingerprint(IMAGES[:, ::-1][:, ::-1]) == images_fingerprint(IMAGES)
