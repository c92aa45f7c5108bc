from __future__ import annotations

import numpy as np
import pytest

from jaxlab.core import UsageError, WriteError
from jaxlab.data import kept_arrays


def counted(calls, fill=1):
    def make():
        calls.append(fill)
        return {"x": np.full((2, 3), fill, np.uint8), "labels": np.arange(2)}

    return make


def test_arrays_are_made_once_for_each_key(tmp_path):
    calls = []
    for key, fill in ((["a", 1], 1), (["a", 2], 2), (["a", 1], 3)):
        arrays = kept_arrays(tmp_path / "new" / "kept", "cifar10/train", key, counted(calls, fill))
    assert calls == [1, 2]
    assert arrays["x"].tolist() == [[1] * 3] * 2 and arrays["labels"].tolist() == [0, 1]
    assert isinstance(arrays["x"], np.memmap)
    entries = sorted(p.name for p in (tmp_path / "new" / "kept").iterdir())
    assert len(entries) == 2 and all(name.startswith("cifar10_train-") for name in entries)


def test_without_a_folder_nothing_is_kept():
    calls = []
    for _ in range(2):
        kept_arrays(None, "x", 0, counted(calls))
    assert len(calls) == 2


def test_what_fails_leaves_nothing_behind(tmp_path):
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        kept_arrays(tmp_path, "x", 0, fail)
    assert list(tmp_path.iterdir()) == []


def test_who_comes_second_takes_what_is_there(tmp_path):
    def meanwhile():
        kept_arrays(tmp_path, "x", 0, counted([], 7))
        return {"x": np.zeros(3)}

    assert kept_arrays(tmp_path, "x", 0, meanwhile)["x"].tolist() == [[7] * 3] * 2
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_entry_is_named(tmp_path):
    kept_arrays(tmp_path, "x", 0, counted([]))
    (entry,) = tmp_path.iterdir()
    (entry / "x.npy").write_bytes(b"cut off")
    with pytest.raises(UsageError, match=rf"{entry.name}' cannot be read .*delete that folder"):
        kept_arrays(tmp_path, "x", 0, counted([]))


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="kept arrays 'x-.* cannot be written"):
        kept_arrays(tmp_path / "file", "x", 0, counted([]))
