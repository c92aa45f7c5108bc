from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from jaxlab.core import UsageError
from jaxlab.data import ImageFolder, open_images


def write(path, levels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(levels)
    (image.convert(mode) if mode else image).save(path)


def grey(value, height=4, width=5):
    return np.full((height, width), value, np.uint8)


def rgb(red, green, blue, height=4, width=5):
    return np.broadcast_to(np.uint8([red, green, blue]), (height, width, 3)).copy()


@pytest.fixture
def pets(tmp_path):
    """Two classes of RGB images, with files that are no part of them."""
    folder = tmp_path / "pets"
    write(folder / "dog" / "b.png", rgb(1, 2, 3))
    write(folder / "dog" / "a.png", rgb(4, 5, 6))
    write(folder / "cat" / "inside" / "c.bmp", rgb(7, 8, 9))
    (folder / ".DS_Store").write_bytes(b"no image")
    (folder / "dog" / ".hidden.png").write_bytes(b"no image")
    (folder / "dog" / ".thumbs").mkdir()
    (folder / "dog" / ".thumbs" / "a.png").write_bytes(b"no image")
    (folder / "README.txt").write_text("Pets.")
    return folder


def test_one_subfolder_is_one_class_in_order_of_names(pets):
    images = open_images(f"images:{pets}")
    assert isinstance(images, ImageFolder)
    assert (images.name, images.class_names) == ("pets", ("cat", "dog"))
    assert images.files == ("cat/inside/c.bmp", "dog/a.png", "dog/b.png")
    assert images.labels.tolist() == [0, 1, 1]
    assert images.images[:, 0, 0].tolist() == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]
    assert images.images.shape == (3, 4, 5, 3)


def test_more_files_than_one_thread_takes_at_once_stay_in_order(tmp_path):
    for number in range(300):
        write(tmp_path / "only" / f"{number:03}.png", grey(number % 251, 1, 1))
    images = ImageFolder(tmp_path)
    assert images.images[:, 0, 0, 0].tolist() == [n % 251 for n in range(300)]


def test_grey_images_have_one_channel_unless_one_is_in_colour(tmp_path):
    for name, value in (("a", 10), ("b", 20)):
        write(tmp_path / "one" / f"{name}.png", grey(value))
    assert ImageFolder(tmp_path).images.shape == (2, 4, 5, 1)
    assert ImageFolder(tmp_path, channels=3).images[1, 0, 0].tolist() == [20, 20, 20]
    write(tmp_path / "one" / "c.png", rgb(1, 2, 3))
    write(tmp_path / "one" / "d.png", grey(30))
    assert ImageFolder(tmp_path).images[:, 3, 4].tolist() == [
        [10, 10, 10],
        [20, 20, 20],
        [1, 2, 3],
        [30, 30, 30],
    ]
    assert ImageFolder(tmp_path, channels=1).images.shape == (4, 4, 5, 1)


def test_sizes_that_differ_are_refused_with_two_names(pets):
    write(pets / "dog" / "c.png", rgb(0, 0, 0, 6, 5))
    with pytest.raises(
        UsageError, match=r"c.bmp' has 4x5 pixels, '.*dog/c.png' has 6x5; pass size=\(height, wid"
    ):
        ImageFolder(pets)
    resized = ImageFolder(pets, size=(2, 3))
    assert resized.images.shape == (4, 2, 3, 3)
    assert resized.images[1, 1, 2].tolist() == [4, 5, 6]


def test_resizing_averages_what_it_shrinks(tmp_path):
    stripes = np.tile(np.uint8([0, 200]), (8, 4))
    write(tmp_path / "one" / "a.png", stripes)
    shrunk = ImageFolder(tmp_path, size=(8, 2)).images
    assert abs(shrunk.astype(int) - 100).max() <= 15


@pytest.mark.parametrize("size", [8, (8,), (0, 8), (8, 8, 3)])
def test_size_is_a_height_and_a_width(pets, size):
    with pytest.raises(UsageError, match=r"size=.*; expected \(height, width\)"):
        ImageFolder(pets, size=size)


def test_file_that_is_no_image_is_named(pets):
    (pets / "dog" / "labels.csv").write_text("a,1\n")
    with pytest.raises(UsageError, match="dog/labels.csv' cannot be decoded .*unknown to Pillow"):
        ImageFolder(pets)


def test_file_that_is_cut_off_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write(tmp_path / "one" / "a.png", noise)
    whole = (tmp_path / "one" / "a.png").read_bytes()
    (tmp_path / "one" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="one/a.png' cannot be decoded as an image"):
        ImageFolder(tmp_path)


def test_alpha_is_dropped_or_kept_only_when_asked(tmp_path):
    write(tmp_path / "one" / "a.png", np.full((4, 4, 4), 77, np.uint8))
    with pytest.raises(UsageError, match=r"a.png' has an alpha channel; pass channels=3"):
        ImageFolder(tmp_path)
    assert ImageFolder(tmp_path, channels=3).images.tolist() == [[[[77] * 3] * 4] * 4]
    assert ImageFolder(tmp_path, channels=4).image_shape == (4, 4, 4)
    with pytest.raises(UsageError, match="channels=2; expected 1, 3, 4 or None"):
        ImageFolder(tmp_path, channels=2)


def test_sixteen_bits_a_level_are_refused(tmp_path):
    write(tmp_path / "one" / "a.png", np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(UsageError, match="a.png' has the mode 'I;16'; expected 8 bits per chan"):
        ImageFolder(tmp_path, channels=1)


def test_folder_without_classes_is_refused(tmp_path, pets):
    with pytest.raises(UsageError, match="inside' has 'c.bmp' next to its sub-folders; exp"):
        ImageFolder(pets / "cat" / "inside")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty' has no sub-folders; expected one sub-folder per"):
        ImageFolder(tmp_path / "empty")
    write(pets / "loose.png", grey(0))
    with pytest.raises(UsageError, match="has 'loose.png' next to its sub-folders"):
        ImageFolder(pets)
    (pets / "loose.png").unlink()
    (pets / "eel").mkdir()
    with pytest.raises(UsageError, match="sub-folder 'eel' of .* has no images"):
        ImageFolder(pets)
    with pytest.raises(UsageError, match="is a file; expected a folder with one sub-folder"):
        ImageFolder(pets / "README.txt")


def test_decoded_images_are_kept_until_a_file_changes(pets, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    first = ImageFolder(pets, cache_dir=kept)
    monkeypatch.setattr("jaxlab.data.images.image_folder.read_file", None)  # nothing is read again
    again = ImageFolder(pets, cache_dir=kept)
    assert again.fingerprint == first.fingerprint and again.files == first.files
    monkeypatch.undo()
    write(pets / "dog" / "a.png", rgb(4, 5, 7))
    os.utime(pets / "dog" / "a.png", ns=(1, 1))
    assert ImageFolder(pets, cache_dir=kept).images[1, 0, 0].tolist() == [4, 5, 7]
    assert ImageFolder(pets, cache_dir=kept, size=(2, 2)).image_shape == (2, 2, 3)
