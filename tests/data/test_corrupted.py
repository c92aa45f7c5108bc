from __future__ import annotations

import logging

import numpy as np
import pytest

from jaxlab.core import UsageError, WriteError
from jaxlab.data import corrupted, corrupted_sets, corruptions, images_fingerprint

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
NAME = "impulse_noise"


def kept(folder):
    (path,) = folder.glob("*")
    return path


def test_a_set_is_made_once_and_then_read(tmp_path):
    expected = corruptions.corrupt(IMAGES, NAME, 2)
    first = corrupted(IMAGES, NAME, 2, cache_dir=tmp_path / "new" / "folder")
    path = kept(tmp_path / "new" / "folder")
    before = path.stat()
    again = corrupted(IMAGES, NAME, 2, cache_dir=str(path.parent))
    after = kept(path.parent).stat()
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


def test_each_set_has_its_own_file(tmp_path):
    names = set()
    for i, (images, name, severity, options) in enumerate([
        (IMAGES, NAME, 2, {}),
        (IMAGES[::-1], NAME, 2, {}),
        (IMAGES, NAME, 3, {}),
        (IMAGES, NAME, 2, {"seed": 1}),
        (IMAGES, "glass_blur", 1, {}),
        (IMAGES, "glass_blur", 1, {"swap": True}),
    ]):
        found = corrupted(images, name, severity, cache_dir=tmp_path, **options)
        np.testing.assert_array_equal(
            found, corruptions.corrupt(images, name, severity, **options)
        )
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names) == i + 1
    assert f"{images_fingerprint(IMAGES)}-{NAME}-2-0-v1.npy" in names


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(bytes(data))


def flip_header(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))


def without_checksum(path):
    np.save(path, np.load(path))


def other_shape(path):
    np.save(path, np.load(path)[:2])


def floats(path):
    np.save(path, np.load(path).astype(np.float32))


@pytest.mark.parametrize(
    "damage", [cut, empty, flip, flip_header, without_checksum, other_shape, floats]
)
def test_a_damaged_file_is_made_again_with_one_line(tmp_path, caplog, damage):
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path)
    path = kept(tmp_path)
    whole = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING):
        found = corrupted(IMAGES, NAME, 2, cache_dir=tmp_path)
    np.testing.assert_array_equal(found, corruptions.corrupt(IMAGES, NAME, 2))
    assert kept(tmp_path).read_bytes() == whole
    (record,) = caplog.records
    message = record.getMessage()
    assert path.name in message and "damaged and are made again" in message
    assert "\n" not in message


def test_what_is_kept_is_not_handed_out_for_wrong_input(tmp_path):
    corrupted(IMAGES, NAME, 2, cache_dir=tmp_path, fingerprint="set")
    with pytest.raises(UsageError, match="dtype float32; expected uint8"):
        corrupted(IMAGES.astype(np.float32), NAME, 2, cache_dir=tmp_path, fingerprint="set")


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=f"{NAME}-2.*cannot be written to"):
        corrupted(IMAGES, NAME, 2, cache_dir=tmp_path / "file")


@pytest.mark.parametrize("fingerprint", ["", "a/b", "..", "a b"])
def test_a_fingerprint_that_is_no_file_name_is_refused(tmp_path, fingerprint):
    with pytest.raises(UsageError, match="fingerprint="):
        corrupted(IMAGES, NAME, 2, cache_dir=tmp_path, fingerprint=fingerprint)


def test_sets_come_in_order_and_are_read_alike(tmp_path):
    for _ in range(2):
        sets = list(corrupted_sets(IMAGES, [NAME, "contrast"], (1, 5), cache_dir=tmp_path))
        assert [(name, severity) for name, severity, _ in sets] == [
            (NAME, 1), (NAME, 5), ("contrast", 1), ("contrast", 5)
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
