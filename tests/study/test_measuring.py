"""Rows that are kept, shared and looked at; what is trained is made up."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import os
import threading

import pytest

from jaxlab.core import UsageError
from jaxlab.data import image_batch_shapes
from jaxlab.models import MLPConfig
from jaxlab.objectives import classify
from jaxlab.results import Record
from jaxlab.study import (
    Rows,
    Share,
    Training,
    Unfinished,
    check,
    measure,
    numbers_of,
    sharing,
    use_share,
)
from jaxlab.study.sharing import locked, parse_share
from jaxlab.train import TrainConfig

MODEL = MLPConfig(image_shape=(4, 4, 1), num_classes=2, width=4)


def training(name, **fields):
    settings = TrainConfig(steps=2, batch_size=8)
    batch = image_batch_shapes(8, MODEL.image_shape)
    return Training(name, MODEL, classify, batch, lambda *_: iter(()), settings, **fields)


@pytest.fixture
def record(tmp_path):
    return Record.create(tmp_path, experiment="e", variant="v", paper="", config={"a": 1})


@pytest.fixture
def fitted(monkeypatch):
    """The folders of what was trained, in order; the model is its folder's name."""
    folders = []

    def fit(training, record):
        (record.workdir / training.folder).mkdir(parents=True, exist_ok=True)
        folders.append(training.folder)
        return training.folder

    monkeypatch.setattr("jaxlab.study.measuring.fit", fit)
    return folders


def test_a_study_that_was_killed_measures_only_what_is_missing(record, fitted):
    calls = []

    def measurements(training):
        def value(name):
            def function(view):
                calls.append((view, name))
                if len(calls) == 4:
                    raise KeyboardInterrupt
                return float(len(calls))

            return function

        return {name: value(name) for name in ("test/a", "test/b", "test/c")}

    nets = [training("one"), training("two")]
    with pytest.raises(KeyboardInterrupt):
        measure(nets, record, 2, measurements)
    rows = measure(nets, record, 2, measurements)
    # The fourth call was stopped: it is the only one that is made twice.
    assert len(calls) == len(set(calls)) + 1 == 2 * 2 * 3 + 1
    assert fitted == ["one/seed0", "one/seed1", "one/seed1", "two/seed0", "two/seed1"]
    assert rows.values_of("one", "test/a") == [1.0, 5.0]
    del fitted[:]
    assert measure(nets, record, 2, measurements)["two"] == rows["two"] and not fitted


def test_other_settings_of_a_measurement_are_measured_again(record, fitted):
    def values(number):
        return lambda training: {"test/a": lambda view: number}

    assert measure([training("one")], record, 1, values(1), {"eps": 0.1})["one"][0]["test/a"] == 1
    assert measure([training("one")], record, 1, values(2), {"eps": 0.1})["one"][0]["test/a"] == 1
    assert measure([training("one")], record, 1, values(2), {"eps": 0.2})["one"][0]["test/a"] == 2


def test_numbers_that_json_lacks_come_back_as_nan(record, fitted):
    values = {"test/a": lambda view: math.inf, "test/b": lambda view: [1.0, math.nan]}
    rows = measure([training("one")], record, 1, lambda _: values)
    assert math.isnan(rows.values_of("one", "test/a")[0])
    first, second = rows.values_of("one", "test/b")[0]
    assert first == 1 and math.isnan(second)
    with pytest.raises(UsageError, match="no 'test/aa'; did you mean 'test/a'"):
        rows.values_of("one", "test/aa")
    with pytest.raises(UsageError, match="no training 'onne' was measured; did you mean 'one'"):
        rows["onne"]


def test_each_training_is_taken_by_one_share_and_the_last_finds_all_rows(record, fitted):
    nets = [training(f"net{i}") for i in range(6)]
    busy = threading.Barrier(2, timeout=20)
    first = threading.local()

    def measurements(training):
        def value(view):
            if not getattr(first, "met", False):
                first.met = True
                busy.wait()  # both shares hold a lock at one time
            return view

        return {"test/a": value}

    def share(index):
        with use_share(Share(index, 2)):
            rows = measure(nets, record, 1, measurements)
        try:
            return rows.values_of("net0", "test/a")
        except Unfinished as unfinished:
            return str(unfinished)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(share, range(2)))
    assert sorted(fitted) == sorted(net.folder for net in nets)
    assert {fitted[0], fitted[1]} == {"net0/seed0", "net3/seed0"}
    assert ["net0/seed0"] in ended
    assert not list(record.workdir.rglob(sharing.LOCK))


def test_rows_of_another_share_are_missing_until_they_are_there(record, fitted):
    nets = [training("mine"), training("theirs")]
    with locked(record.workdir / "theirs/seed0") as taken, use_share(Share(0, 2)):
        assert taken
        rows = measure(nets, record, 1, lambda _: {"test/a": lambda view: 1})
        with pytest.raises(Unfinished, match="1 of 2 trainings are left to other shares"):
            rows["mine"]
    assert fitted == ["mine/seed0"]
    with use_share(Share(1, 2)):
        rows = measure(nets, record, 1, lambda _: {"test/a": lambda view: 1})
    assert rows.values_of("mine", "test/a") == rows.values_of("theirs", "test/a") == [1]


def test_a_lock_whose_holder_died_is_taken_over_by_one(tmp_path):
    (tmp_path / sharing.LOCK).write_text("{}")
    old = (tmp_path / sharing.LOCK).stat().st_mtime - sharing.STALE - 1
    with locked(tmp_path) as taken:
        assert not taken
    os.utime(tmp_path / sharing.LOCK, (old, old))
    with locked(tmp_path) as taken:
        assert taken and json.loads((tmp_path / sharing.LOCK).read_text())["pid"] == os.getpid()
        with locked(tmp_path) as again:
            assert not again
    assert not list(tmp_path.iterdir())


def test_a_stale_lock_that_another_process_replaces_is_left_to_it(tmp_path, monkeypatch):
    path = tmp_path / sharing.LOCK
    path.write_text("{}")
    os.utime(path, (0, 0))
    guarded = sharing._create_file

    def replaced_first(file):
        if file.name.endswith(".guard"):  # between the look at the lock and the guard
            path.write_text("live")
        return guarded(file)

    monkeypatch.setattr(sharing, "_create_file", replaced_first)
    with locked(tmp_path) as taken:
        assert not taken
    assert path.read_text() == "live" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/64", {}, Share(3, 64)),
        (None, {}, None),
        ("none", {"SLURM_ARRAY_TASK_ID": "3"}, None),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "12",
                "SLURM_ARRAY_TASK_MIN": "4",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "5",
            },
            Share(2, 5),
        ),
        (None, {"JOB_COMPLETION_INDEX": "7"}, Share(7, 8)),
    ],
)
def test_a_share_comes_from_the_flag_or_the_cluster(text, environment, expected):
    assert parse_share(text, environment) == expected


@pytest.mark.parametrize("text", ["64", "64/64", "-1/2", "a/b"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="INDEX/COUNT with an index from 0"):
        parse_share(text)


def test_settings_that_json_cannot_hold_are_refused_in_one_line():
    with pytest.raises(UsageError, match="settings of training odd cannot be kept as JSON"):
        check([training("odd", data={"source": object()})])


def test_a_training_on_which_nothing_is_measured_is_refused(record, fitted):
    with pytest.raises(UsageError, match="nothing is measured on training one; use study.fit"):
        measure([training("one")], record, 1, lambda _: {})
    assert not fitted


def test_metrics_of_some_trainings_stand_beside_those_of_all():
    rows = Rows({"a": [{"m": 1.0, "only": 2.0}], "b": [{"m": 3.0, "list": [1]}]})
    numbers = numbers_of([training("a"), training("b")], rows, baseline="b")
    assert numbers["only"] == {"a": [2.0, -math.inf, math.inf]} and "list" not in numbers
    assert numbers["m_over_b"]["a"][0] == -2.0 and "only_over_b" not in numbers


def test_names_are_folders_each_given_once():
    with pytest.raises(UsageError, match="2 training.s. with the name 'a'"):
        check([training("a"), training("b"), training("a")])
    with pytest.raises(UsageError, match="with the name '../a'"):
        check([training("../a")])


def test_trainings_that_differ_in_their_seed_share_a_setup_and_others_do_not():
    one = training("one")
    assert one.seeded(1).setup is one.setup and training("two").setup is one.setup
    longer = dataclasses.replace(one, settings=dataclasses.replace(one.settings, steps=3))
    assert longer.setup is not one.setup
    assert one.seeded(1).folder == "one/seed1"


def test_a_difference_of_differences_is_paired_by_seed():
    rows = Rows({name: [{"m": a}, {"m": b}] for name, a, b in (("a", 4, 8), ("b", 1, 4))})
    assert rows.contrast({"a": 1, "b": -1}, "m") == rows.difference("a", "b", "m")
    assert rows.contrast({"a": 1, "b": -2}, "m").value == 1.0
