"""Faults of machines and files: each ends in the result of an undisturbed run, or in one line.

Runs that must die, or that bend their whole process, are made by `faulty_runs.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from jaxlab import data, train
from jaxlab.core import MeshConfig, UsageError
from jaxlab.data import prefetch, retries
from jaxlab.results import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(__file__).with_name("faulty_runs.py")

# Where in the save of step 8 the run is killed, and the newest checkpoint that is whole then.
KILLED = {
    "before the save": 4,
    "while arrays are written": 4,
    "with a part of it whole": 4,
    "before it is named": 4,
    "after it is named": 8,
    "before the old one goes": 8,
    "while the old one goes": 8,
}
CONTINUES = "the same command continues from"
SAVED = f"everything is saved, and {CONTINUES}"
# Exit code, newest checkpoint and the end of what is printed, for runs that end by themselves.
ENDED = {
    "SIGTERM": (75, 6, rf"stopped by SIGTERM at step 6 of 12; {SAVED} there"),
    "SIGTERM in a save": (75, 8, rf"stopped by SIGTERM at step 8 of 12; .* {CONTINUES} there"),
    "Ctrl-C": (130, 6, rf"stopped by SIGINT at step 6 of 12; {SAVED} there"),
    "Ctrl-C twice": (130, 4, rf"stopped by Ctrl-C; {CONTINUES} the last checkpoint"),
    "a limit on files": (
        5,
        4,
        r"the checkpoint of step 8 cannot be written to '.*/checkpoints' \(File too large\); "
        r"the checkpoint of step 4 is whole and kept; free some space there and run the same "
        r"command again",
    ),
    "a limit on metrics": (
        5,
        4,
        r"the metrics of step 8 cannot be written to '.*/metrics.jsonl' \(File too large\); "
        r"earlier rows and all checkpoints are intact; free some space there and run .*",
    ),
    "numbers that are not finite": (
        3,
        4,
        r"training diverged: train/loss is nan at step 8; the checkpoint of step 4 is good "
        r"and kept; .*",
    ),
    "data that hang": (
        4,
        4,
        r"stuck: no step completed for 2 s after step 6 of 12; the checkpoint of step 4 is "
        r"kept; the stacks of all threads are above. The same command continues; .*",
    ),
}


@pytest.fixture(scope="module")
def faulty():
    """The module of the program."""
    spec = importlib.util.spec_from_file_location("faulty_runs", PROGRAM)
    module = sys.modules["faulty_runs"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["faulty_runs"]


@pytest.fixture(scope="module")
def config(faulty):
    return faulty.Config().train


@pytest.fixture(scope="module")
def whole(faulty, config, tmp_path_factory):
    """A run that nothing disturbs: workdir and run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, faulty.start(workdir, config)[1]


@pytest.fixture(scope="module")
def ended(whole, tmp_path_factory):
    """What became of every faulty run: workdir, exit code, printed text. It waits for `whole`,
    whose programs are in the compilation cache then."""
    folder = tmp_path_factory.mktemp("faulty")
    faults = [*KILLED, *ENDED, "numbers that are skipped", "a full disk"]
    workdirs = {fault: folder / str(i) for i, fault in enumerate(faults)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, str(PROGRAM), *(f"{f}={workdir}" for f, workdir in workdirs.items())],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    return {fault: (workdirs[fault], *found[fault]) for fault in faults}


@pytest.fixture(scope="module")
def broken_off(faulty, config, tmp_path_factory):
    """A workdir with the checkpoints of steps 4 and 8, left at step 10."""

    def stop():
        raise RuntimeError("broken off")

    workdir = tmp_path_factory.mktemp("broken_off")
    two = dataclasses.replace(config, keep_last=2)
    with pytest.raises(RuntimeError, match="broken off"):
        faulty.start(workdir, two, [faulty.At(10, stop)])
    assert steps_in(workdir) == [4, 8]
    return workdir


@pytest.fixture
def copy(broken_off, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(broken_off, tmp_path / "run")


def steps_in(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_result(workdir, run, whole):
    """State and metrics are those of the undisturbed run, to the bit."""

    def leaves(state):
        state = dataclasses.replace(state, key=jax.random.key_data(state.key))
        return jax.tree.leaves(state)

    for found, expected in zip(leaves(run.state), leaves(whole[1].state), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert rows_in(workdir) == rows_in(whole[0])


def rows_in(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.parametrize("phase", KILLED)
def test_a_kill_in_a_save_loses_no_whole_checkpoint(ended, faulty, config, whole, phase):
    workdir, code, text = ended[phase]
    assert code == -signal.SIGKILL, text
    assert max(steps_in(workdir)) == KILLED[phase]
    assert_same_result(workdir, faulty.start(workdir, config)[1], whole)
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["12"]


@pytest.mark.parametrize("fault", ENDED)
def test_a_run_that_ends_says_so_in_its_last_line_and_continues(
    ended, faulty, config, whole, fault
):
    workdir, code, text = ended[fault]
    expected, newest, words = ENDED[fault]
    assert code == expected, text
    assert re.fullmatch(rf"(faulty_runs: )?{words}", text.splitlines()[-1]), text
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [str(newest)]
    assert_same_result(workdir, faulty.start(workdir, config)[1], whole)


def test_a_stuck_run_shows_the_stacks_of_all_threads(ended):
    _, _, text = ended["data that hang"]
    assert "in sleep_for_ever" in text and "prefetch.py" in text and "in fit" in text


def test_a_run_that_may_skip_comes_to_its_end_without_the_data_that_diverged(
    ended, faulty, config, tmp_path
):
    workdir, code, text = ended["numbers that are skipped"]
    assert code == 0, text
    [line] = [line for line in text.splitlines() if "diverged" in line]
    assert "back to the checkpoint of step 4; batches skipped after it: 4 (skip 1 of" in line
    expected = faulty.start(tmp_path, config, stream=faulty.FiveToEightLeftOut())[1]
    assert_same_result(workdir, faulty.start(workdir, config)[1], (tmp_path, expected))


def test_a_full_disk_leaves_the_checkpoint_before_and_goes_on_when_there_is_space(
    ended, faulty, whole
):
    _, code, text = ended["a full disk"]
    if code == faulty.UNAVAILABLE:
        pytest.skip(f"no small file system can be mounted here: {text.strip()}")
    assert code == 0, text
    first, kept, second, digest = json.loads(text.splitlines()[-1])
    assert (first, kept, second) == (5, ["4"], 0)
    assert "(No space left on device)" in text
    assert digest == faulty.digest(whole[1].state.params)


def files(workdir, item):
    """The data files of an item of the newest checkpoint, the largest first."""
    found = (workdir / "checkpoints" / "8" / item).rglob("d/*")
    return sorted(found, key=lambda file: -file.stat().st_size)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def newest(workdir, *names):
    return workdir.joinpath("checkpoints", "8", *names)


DAMAGES = {
    "arrays cut": lambda w: cut(files(w, "params")[0]),
    "arrays with a flipped bit": lambda w: flip(files(w, "params")[0]),
    "optimizer state with a flipped bit": lambda w: flip(files(w, "train")[0]),
    "arrays missing": lambda w: files(w, "params")[0].unlink(),
    "arrays emptied": lambda w: files(w, "carry")[0].write_bytes(b""),
    "an item missing": lambda w: shutil.rmtree(newest(w, "train")),
    "an item's index cut": lambda w: cut(newest(w, "params", "manifest.ocdbt")),
    "the manifest cut": lambda w: cut(newest(w, "meta", "metadata")),
    "the manifest missing": lambda w: shutil.rmtree(newest(w, "meta")),
    "the place in the data cut": lambda w: cut(newest(w, "data", "metadata")),
    "the place in the data missing": lambda w: newest(w, "data", "metadata").unlink(),
    "all of it missing": lambda w: shutil.rmtree(newest(w)),
    "its list of items missing": lambda w: newest(w, "_CHECKPOINT_METADATA").unlink(),
    "an empty folder for a checkpoint": lambda w: (w / "checkpoints" / "9").mkdir(),
    "a torn row of metrics": lambda w: (w / "metrics.jsonl").write_bytes(
        (w / "metrics.jsonl").read_bytes() + b'{"step": 12, "train/lo'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_no_more_than_its_checkpoint(copy, faulty, config, whole, damage):
    DAMAGES[damage](copy)
    assert_same_result(copy, faulty.start(copy, config)[1], whole)


def test_where_no_checkpoint_can_be_read_nothing_is_touched(copy, faulty, config):
    for step in ("4", "8"):
        shutil.rmtree(copy / "checkpoints" / step / "params")
    before = sorted((copy / "checkpoints").rglob("*"))
    with pytest.raises(UsageError, match=r"none of the checkpoints \[8, 4\] .* can be read; move"):
        faulty.start(copy, config)
    assert sorted((copy / "checkpoints").rglob("*")) == before


def test_a_mesh_that_does_not_fit_is_one_line(copy, faulty, config):
    with pytest.raises(UsageError, match="mesh data=3.* does not fit 8 devices"):
        faulty.start(copy, dataclasses.replace(config, mesh=MeshConfig(data=3)))
    assert steps_in(copy) == [4, 8]


def test_another_mesh_continues(copy, faulty, config, whole):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    _, run = faulty.start(copy, dataclasses.replace(config, mesh=mesh))
    for path, p in whole[1].state.params.items():
        np.testing.assert_allclose(run.state.params[path], p, rtol=1e-4, atol=1e-6)


def test_another_config_is_one_line(copy, faulty, config):
    other = dataclasses.replace(config, optimizer=train.OptimizerConfig("sgd", learning_rate=0.1))
    with pytest.raises(UsageError, match="of step 8 is of another config: opt_state"):
        faulty.start(copy, other)
    assert steps_in(copy) == [4, 8]


def test_a_data_worker_that_is_gone_is_started_again(copy, faulty, config, whole, monkeypatch):
    class Dies(data.Prefetch):
        deaths = 2

        def _put(self, batch, state):
            if state["number"] == 11 and self.deaths:
                self.deaths -= 1
                raise SystemExit
            super()._put(batch, state)

        def _run(self):  # as where the thread is gone: no error comes out
            try:
                while self._wait_for_room():
                    batch = self._transfer(next(self._stream))
                    self._put(batch, self._stream.state())
            except SystemExit:
                return

    monkeypatch.setattr(prefetch, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(train.training, "Prefetch", Dies)
    assert_same_result(copy, faulty.start(copy, config)[1], whole)
    Dies.deaths = 3
    longer = dataclasses.replace(config, steps=14)
    monkeypatch.setattr(Dies, "_run", lambda self: None)
    with pytest.raises(UsageError, match="the data thread 'prefetch' died while making batch 1"):
        faulty.start(copy, longer)
    assert steps_in(copy) == [12]


class Shards:
    """The toy's batches from documents in files."""

    def __init__(self, folder):
        self.stream = data.DocumentStream(
            data.TextFiles(folder),
            data.Bytes(),
            batch_size=8,
            segment_length=4,
            cache_bytes=0,
        )
        self.state, self.restore = self.stream.state, self.stream.restore

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.stream)
        x = batch["inputs"].astype(np.float32) / 256
        return {"x": x, "y": x[:, 1:3], "mask": batch["mask"][:, 0]}


def test_a_shard_is_read_again_and_named_where_that_does_not_help(
    tmp_path, faulty, config, monkeypatch
):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text("abcdefgh" * (number % 3 + 1))
    runs = {}
    read_bytes, waits = pathlib.Path.read_bytes, []
    monkeypatch.setattr(retries, "time", types.SimpleNamespace(sleep=waits.append))
    for name, failures in (("sound", 0), ("passing", 3), ("lasting", 4)):
        left = [failures]

        def fails(path, left=left):
            if path.name == "7.txt" and left[0]:
                left[0] -= 1
                raise OSError(5, "Input/output error")
            return read_bytes(path)

        stream = Shards(folder)
        monkeypatch.setattr(pathlib.Path, "read_bytes", fails)
        workdir = tmp_path / name
        workdir.mkdir()
        if name == "lasting":
            with pytest.raises(UsageError, match=r"7.txt' cannot be read after 4 attempts"):
                faulty.start(workdir, config, stream=stream)
        else:
            runs[name] = workdir, faulty.start(workdir, config, stream=stream)[1]
    assert_same_result(*runs["passing"], runs["sound"])
    assert waits == 2 * list(retries.WAITS)
