from __future__ import annotations

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.results import storage


def test_arrays_and_scalars_become_plain_values():
    value = {"a": np.float32(0.5), "b": jnp.arange(3), "c": (np.int64(2), np.bool_(True)), "d": "x"}
    expected = {"a": 0.5, "b": [0, 1, 2], "c": [2, True], "d": "x"}
    assert json.loads(json.dumps(storage.plain(value))) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf"), jnp.nan])
def test_values_that_are_not_finite_become_null(value):
    assert storage.plain([value]) == [None]


def test_a_type_without_a_place_in_json_is_named():
    with pytest.raises(TypeError, match="set .* cannot be written as JSON"):
        storage.plain({"a": {1, 2}})


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.txt"
    storage.replace_file(path, "old")
    storage.replace_file(path, "n\u00e9w\n")
    assert path.read_bytes() == "n\u00e9w\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.txt"
    storage.replace_file(path, "old")

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        storage.replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = storage.replace_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        storage.replace_json(path, {"a": object()})
    assert storage.read_json_object(path) == {"a": 1}


def test_new_files_get_the_permissions_of_the_process(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert storage.replace_file(tmp_path / "a", "x").stat().st_mode == plain.stat().st_mode
