from __future__ import annotations

import sys

import pytest

from jaxlab.core import UsageError
from jaxlab.data import TfdsText, open_source


@pytest.fixture(scope="module")
def data_dir(shared):
    pytest.importorskip("tensorflow_datasets")
    return shared / "data" / "tfds"


def test_books_are_read_as_bytes_with_names_that_cost_no_reading(data_dir):
    source = open_source("tfds:pg19/train", data_dir=data_dir)
    assert len(source) == 30
    assert source.names[12] == "pg19/train/12"
    assert isinstance(source, TfdsText)
    assert (source.feature, source.title(0)) == ("book_text", "The Scarlet Letter")
    assert b"Hester Prynne" in source[0]


def test_a_part_of_a_split_can_be_read(data_dir):
    assert len(TfdsText("pg19", "train[:2]", data_dir)) == 2


def test_another_string_feature_can_be_asked_for(data_dir):
    assert TfdsText("pg19", "train", data_dir, feature="book_title")[0] == b"The Scarlet Letter"


def test_unknown_names_are_shown_with_the_nearest(data_dir):
    with pytest.raises(UsageError, match="no data set 'pg20'.*did you mean 'pg19'"):
        TfdsText("pg20", data_dir=data_dir)
    with pytest.raises(UsageError, match="no split 'trian'; it has train, .*mean 'train'"):
        TfdsText("pg19", "trian", data_dir)
    with pytest.raises(UsageError, match="'book_txt' of 'pg19' is not a text.*mean 'book_text'"):
        TfdsText("pg19", "train", data_dir, feature="book_txt")


def test_unprepared_version_or_folder_says_what_to_do(data_dir, tmp_path):
    with pytest.raises(UsageError, match="'pg19' is not prepared.*file_format='array_record'"):
        TfdsText("pg19", data_dir=tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded at version 9.9.9, only: 0.1.1"):
        TfdsText("pg19:9.9.9", data_dir=data_dir)
    with pytest.raises(UsageError, match="is not a folder"):
        TfdsText("pg19", data_dir=tmp_path / "nowhere")


def test_data_set_without_text_is_refused(data_dir):
    with pytest.raises(UsageError, match="'mnist' has no text feature; it has image, label"):
        TfdsText("mnist", data_dir=data_dir)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "importlib_resources", None)
    with pytest.raises(UsageError, match="'importlib_resources' is missing.*pip install"):
        TfdsText("pg19")
