from __future__ import annotations

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.results import MetricWriter, read_metrics


def events_of(folder):
    """Reads TensorBoard events back: (session start steps, {tag: {step: value}})."""
    import struct

    from tensorboardX.proto.event_pb2 import Event, SessionLog

    starts, scalars = [], {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                starts.append(event.step)
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return starts, scalars


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def writer(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        yield writer


def test_rows_come_back_as_written(writer, path):
    writer.write(10, {"train/loss": np.float32(0.1), "train/tokens": 2048})
    writer.write(np.int32(20), {"eval/loss": jnp.float32(0.5), "eval/wide": jnp.bfloat16(1.5)})
    assert read_metrics(path) == [
        {"step": 10, "train/loss": float(np.float32(0.1)), "train/tokens": 2048},
        {"step": 20, "eval/loss": 0.5, "eval/wide": 1.5},
    ]


def test_every_row_is_on_disk_as_one_line_before_write_returns(writer, path):
    for step in range(3):
        writer.write(step, {"train/loss": step / 3})
        lines = path.read_text().splitlines(keepends=True)
        assert len(lines) == step + 1
        assert all(line.endswith("\n") and json.loads(line) for line in lines)


def test_values_that_are_not_finite_are_null_in_strict_json(writer, path):
    writer.write(1, {"train/loss": float("nan"), "train/norm": np.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "train/loss": None, "train/norm": None}


@pytest.mark.parametrize("value", ["1.5", None, [1.0, 2.0], np.zeros(0), 1j, {"a": 1}])
def test_what_is_not_one_number_is_refused_and_not_written(writer, path, value):
    with pytest.raises(UsageError, match="metric 'train/loss' is .*expected one real number"):
        writer.write(1, {"train/loss": value})
    assert path.read_bytes() == b""


def test_a_name_without_a_split_is_refused(writer):
    with pytest.raises(UsageError, match="metric 'loss' has no split; name it like 'train/loss'"):
        writer.write(1, {"loss": 1.0})


def test_a_torn_last_line_is_not_read(writer, path):
    writer.write(1, {"train/loss": 1.0})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "train/lo')
    assert [row["step"] for row in read_metrics(path)] == [1]


def test_a_resumed_writer_cuts_a_torn_last_line(tmp_path, writer, path):
    writer.write(1, {"train/loss": 1.0})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "train/lo')
    with MetricWriter(tmp_path, tensorboard=False) as resumed:
        resumed.write(2, {"train/loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_truncate_drops_later_rows_and_keeps_the_bits_of_the_others(tmp_path, writer, path):
    values = np.random.default_rng(0).normal(size=5)
    for step, value in enumerate(values):
        writer.write(step, {"train/loss": value})
    before = path.read_bytes().splitlines()
    with open(path, "ab") as file:
        file.write(b'{"step": 5')
    writer.truncate(2)
    assert path.read_bytes().splitlines() == before[:3]
    for step in (3, 4):
        writer.write(step, {"train/loss": values[step]})
    assert path.read_bytes().splitlines() == before


def test_a_truncate_that_fails_leaves_the_old_file(writer, path, monkeypatch):
    for step in range(4):
        writer.write(step, {"train/loss": 1.0})
    before = path.read_bytes()

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        writer.truncate(1)
    assert path.read_bytes() == before


def test_a_damaged_line_is_named(path):
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UsageError, match="metrics.jsonl line 2 is 'nonsense'"):
        read_metrics(path)


def test_a_missing_file_has_no_rows(path):
    assert read_metrics(path) == []


def test_tensorboard_gets_the_same_scalars_and_forgets_what_is_repeated(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": step / 4})
        writer.truncate(1)
        writer.write(2, {"train/loss": 8.0})
    starts, scalars = events_of(tmp_path / "tensorboard")
    assert starts == [2]
    assert scalars["train/loss"].keys() == {1, 2, 3}
    assert scalars["train/loss"][1] == 0.25


def test_no_events_are_written_without_tensorboard(tmp_path, writer):
    writer.write(1, {"train/loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()
