from __future__ import annotations

import errno
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxlab.core import WriteError
from jaxlab.data import cached_arrays

ROOT = pathlib.Path(__file__).resolve().parents[2]


def counted(calls, fill=1):
    def make():
        calls.append(fill)
        return {"x": np.full((2, 3), fill, np.uint8), "labels": np.arange(2)}

    return make


def test_arrays_are_made_once_for_each_key(tmp_path):
    calls = []
    for key, fill in ((["a", 1], 1), (["a", 2], 2), (["a", 1], 3)):
        arrays = cached_arrays(
            tmp_path / "new" / "cache", "cifar10/train", key, counted(calls, fill)
        )
    assert calls == [1, 2]
    assert arrays["x"].tolist() == [[1] * 3] * 2 and arrays["labels"].tolist() == [0, 1]
    assert isinstance(arrays["x"], np.memmap)
    entries = sorted(p.name for p in (tmp_path / "new" / "cache").iterdir())
    assert len(entries) == 2 and all(name.startswith("cifar10_train-") for name in entries)


def test_without_a_folder_nothing_is_cached():
    calls = []
    for _ in range(2):
        cached_arrays(None, "x", 0, counted(calls))
    assert len(calls) == 2


def test_a_failed_make_leaves_nothing_behind(tmp_path):
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        cached_arrays(tmp_path, "x", 0, fail)
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_takes_the_entry_of_the_first(tmp_path):
    def meanwhile():
        cached_arrays(tmp_path, "x", 0, counted([], 7))
        return {"x": np.zeros(3)}

    assert cached_arrays(tmp_path, "x", 0, meanwhile)["x"].tolist() == [[7] * 3] * 2
    assert len(list(tmp_path.iterdir())) == 1


ARRAYS = {
    "x": np.random.default_rng(0).integers(0, 256, (2, 30), dtype=np.uint8),
    "x-labels": np.arange(2),
}


def cached(folder):
    return cached_arrays(folder, "x", {"v": 1}, lambda: ARRAYS)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def truncate(entry):
    path = entry / "x.npy"
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(entry):
    path = entry / "x.npy"
    path.write_bytes(path.read_bytes() + b"0")


def empty(entry):
    (entry / "x-labels.npy").write_bytes(b"")


def flip(entry, name="x.npy", position=-1):
    data = bytearray((entry / name).read_bytes())
    data[position] ^= 1
    (entry / name).write_bytes(data)


def other_shape(entry):
    np.save(entry / "x.npy", ARRAYS["x"].reshape(3, 20))


def other_dtype(entry):
    np.save(entry / "x.npy", ARRAYS["x"].view(np.int8))


def lose_an_array(entry):
    (entry / "x-labels.npy").unlink()


def lose_the_contents(entry):
    (entry / "contents.txt").unlink()


def gain_an_array(entry):
    shutil.copy(entry / "x.npy", entry / "y.npy")


def shorten_the_contents(entry):
    path = entry / "contents.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def lose_all_but_the_folder(entry):
    for path in entry.iterdir():
        path.unlink()


def become_a_file(entry):
    shutil.rmtree(entry)
    entry.write_text("")


def swap(entry):
    (entry / "x.npy").rename(entry / "z")
    (entry / "x-labels.npy").rename(entry / "x.npy")
    (entry / "z").rename(entry / "x-labels.npy")


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lengthen,
        empty,
        flip,
        other_shape,
        other_dtype,
        lose_an_array,
        lose_the_contents,
        gain_an_array,
        shorten_the_contents,
        lose_all_but_the_folder,
        become_a_file,
        swap,
    ],
)
def test_damage_is_reported_in_one_line_and_repaired(tmp_path, caplog, damage):
    cached(tmp_path)
    whole = files_of(tmp_path)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            arrays = cached(tmp_path)
            assert arrays.keys() == ARRAYS.keys()
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(arrays[name], array)
                assert isinstance(arrays[name], np.memmap) and not arrays[name].flags.writeable
    assert files_of(tmp_path) == whole and list(tmp_path.iterdir()) == [entry]
    (record,) = caplog.records
    message = record.getMessage()
    assert f"{entry.name}' are damaged; making them again (" in message and "\n" not in message


def test_a_changed_byte_in_any_file_is_noticed(tmp_path, caplog):
    cached(tmp_path)
    whole = files_of(tmp_path)
    places = [(path, i) for path, content in whole.items() for i in range(0, len(content), 11)]
    with caplog.at_level(logging.WARNING):
        for path, position in places:
            flip(tmp_path, path, position)
            cached(tmp_path)
            assert files_of(tmp_path) == whole
    assert len(caplog.records) == len(places) > 40


def test_a_damaged_entry_stays_if_it_cannot_be_made_again(tmp_path):
    cached(tmp_path)
    (entry,) = tmp_path.iterdir()
    truncate(entry)
    before = files_of(tmp_path)
    with pytest.raises(KeyError):
        cached_arrays(tmp_path, "x", {"v": 1}, lambda: {}["x"])
    assert files_of(tmp_path) == before


def test_arrays_of_every_shape_and_layout_come_back(tmp_path):
    arrays = {
        "none": np.zeros((0, 3)),
        "scalar": np.float32(3),
        "bools": np.array([True, False]),
        "turned": np.asfortranarray(np.eye(2, 3)),
        "strided": np.arange(10)[::3],
    }
    for _ in range(2):
        cache = cached_arrays(tmp_path, "long" * 100, "k", lambda: arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(cache[name], array)
            assert cache[name].dtype == array.dtype and cache[name].shape == array.shape
    with pytest.raises(ValueError, match="[Oo]bject"):
        cached_arrays(tmp_path, "x", "objects", lambda: {"x": np.array([None])})
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="cached arrays 'x-.*No space left.*free some space"):
        cached(tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import os, pathlib, sys, time
import numpy as np
from jaxlab.data import cached_arrays

folder, meeting, me, other = sys.argv[1:]

def meet(name):
    pathlib.Path(meeting, f"{name}-{me}").touch()
    end = time.monotonic() + 60
    while not pathlib.Path(meeting, f"{name}-{other}").exists() and time.monotonic() < end:
        time.sleep(0.0005)

def make():
    meet(f"making{i}")
    return {"x": np.full(50_000, int(me)), "y": np.full(3, int(me))}

def rename(old, new, rename=os.rename):
    # In half of the rounds both processes rename at the same time.
    if str(new).startswith(f"{folder}/entry-") and i % 4 < 2:
        meet(f"renaming{i}")
    rename(old, new)

os.rename = rename
for i in range(20):
    meet(f"round{i}")
    found = cached_arrays(folder, "entry", i, make)
    assert {*found["x"].tolist()} == {*found["y"].tolist()}, found
    print(found["y"][0])
"""


def test_two_processes_that_write_at_once_leave_one_whole_entry(tmp_path):
    folder, meeting = tmp_path / "cache", tmp_path / "meeting"
    meeting.mkdir()
    # Half of the entries are damaged for both processes.
    for i in range(0, 20, 2):
        cached_arrays(folder, "entry", i, counted([]))
    for entry in folder.iterdir():
        (entry / "contents.txt").write_text("")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(meeting), *names],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in (("1", "2"), ("2", "1"))
    ]
    said = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [len(lines) for lines in said] == [20, 20]
    assert len(list(folder.iterdir())) == 20
    for i in range(20):
        arrays = cached_arrays(folder, "entry", i, lambda: pytest.fail("was not whole"))
        assert arrays["x"].tolist() == [arrays["y"][0]] * 50_000


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cached arrays 'x-.* cannot be written"):
        cached_arrays(tmp_path / "file", "x", 0, counted([]))
