from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jaxlab.core import UsageError
from jaxlab.data import TfdsImages, open_images


@pytest.fixture(scope="module")
def data_dir(shared):
    pytest.importorskip("tensorflow_datasets")
    return shared / "data" / "tfds"


@pytest.mark.parametrize(("name", "shape"), [("cifar10", (32, 32, 3)), ("mnist", (28, 28, 1))])
def test_images_and_labels_are_those_that_tfds_decodes(data_dir, name, shape):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = open_images(f"tfds:{name}/test[:300]", data_dir=data_dir)
    assert isinstance(images, TfdsImages)
    assert (len(images), images.image_shape, images.num_classes) == (300, shape, 10)
    assert images.name == f"{name}/test[:300]"
    theirs = tfds.builder(name, data_dir=data_dir).as_data_source("test[:300]")
    for i in (0, 127, 128, 299):
        image, label = images[i]
        assert label == theirs[i]["label"]
        np.testing.assert_array_equal(image, theirs[i]["image"])


def test_images_can_be_resized(data_dir):
    small = TfdsImages("mnist", "train[:3]", data_dir, size=(14, 14))
    assert small.image_shape == (14, 14, 1) and small.name == "mnist/train[:3]@14x14"
    whole = TfdsImages("mnist", "train[:3]", data_dir)
    means = whole.images.mean(axis=(1, 2, 3)), small.images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(*means, rtol=0.05)


def test_decoded_images_are_kept(data_dir, tmp_path, monkeypatch):
    first = TfdsImages("mnist", "train[:20]", data_dir, cache_dir=tmp_path)
    monkeypatch.setattr("jaxlab.data.images.tfds_images.decode_images", None)
    again = TfdsImages("mnist", "train[:20]", data_dir, cache_dir=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.class_names == first.class_names
    with pytest.raises(TypeError):
        TfdsImages("mnist", "train[:21]", data_dir, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("mnits",), {}, "no data set 'mnits'.*did you mean 'mnist'"),
        (("mnist", "tets"), {}, "no split 'tets'; it has .*did you mean 'test'"),
        (("mnist", "train[9000:]"), {}, "part 'train.9000:.' of 'mnist' .*'train' has 8000 exam"),
        (("mnist", "train[:0]"), {}, "part 'train.:0.' of 'mnist' cannot be read"),
        (("pg19",), {}, "'pg19' has no image feature; it has book_text"),
        (("mnist",), {"label": "image"}, "feature 'image' of 'mnist' is not a label; .* of: label"),
        (("mnist",), {"size": 14}, r"size=14; expected \(height, width\)"),
    ],
)
def test_what_cannot_be_opened_is_told(data_dir, arguments, more, message):
    with pytest.raises(UsageError, match=message):
        TfdsImages(*arguments, data_dir=data_dir, **more)


def png(levels):
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


class Files:
    """What `builder.as_data_source` gives where images are left encoded."""

    def __init__(self, files):
        self._files = files

    def __len__(self):
        return len(self._files)

    def __getitems__(self, numbers):
        return [{"image": self._files[i], "label": i % 10} for i in numbers]


def test_damaged_image_is_named_by_its_number(data_dir, monkeypatch):
    files = [png(np.full((28, 28), i, np.uint8)) for i in range(4)]
    monkeypatch.setattr("jaxlab.data.images.tfds_images.open_examples", lambda *_: Files(files))
    assert TfdsImages("mnist", "train", data_dir).images[:, 3, 3, 0].tolist() == [0, 1, 2, 3]
    files[2] = files[2][:50]
    with pytest.raises(UsageError, match="image 2 of mnist/train cannot be decoded"):
        TfdsImages("mnist", "train", data_dir)
