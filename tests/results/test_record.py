from __future__ import annotations

import json
import os
import pathlib
import platform
import re

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.results import Claim, MetricWriter, Record

CONFIG = {"model": {"width": 64, "widths": (32, 32)}, "train": {"steps": 10, "lr": 1e-3}, "seed": 0}
CLAIMS = [
    Claim("it learns", "< 2.0", np.float32(1.5), np.bool_(True)),
    Claim("it flies", "yes", "no", False),
]


def create(workdir, config=CONFIG, **changed):
    named = {"experiment": "study", "variant": "tiny", "paper": "arXiv:2203.07852"}
    return Record.create(workdir, **(named | {"config": config} | changed))


def test_a_record_comes_back_as_created(tmp_path):
    created = create(tmp_path / "runs" / "a")
    opened = Record.open(tmp_path / "runs" / "a")
    assert opened.config == created.config == json.loads(json.dumps(CONFIG))
    assert (opened.experiment, opened.variant, opened.paper) == (
        "study",
        "tiny",
        "arXiv:2203.07852",
    )


def test_a_record_is_the_path_of_its_workdir(tmp_path):
    assert pathlib.Path(create(tmp_path)) == tmp_path


def test_the_same_config_is_taken_up_again(tmp_path):
    create(tmp_path).write_results(CLAIMS, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert create(tmp_path).complete
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_config_is_refused_with_the_fields_that_differ(tmp_path):
    create(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = {"model": {"width": 96, "widths": [32, 32]}, "train": {"steps": 10}, "seed": 0}
    with pytest.raises(UsageError) as error:
        create(tmp_path, other, variant="paper")
    message = str(error.value)
    assert 'variant: "tiny" -> "paper"' in message
    assert "model.width: 64 -> 96" in message
    assert "train.lr: 0.001 -> (absent)" in message
    assert "another --workdir" in message
    assert not any(same in message for same in ("widths", "steps", "seed", "\n"))
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(("changed", "tail"), [(5, ";"), (6, " and 1 more;"), (9, " and 4 more;")])
def test_at_most_five_differing_fields_are_listed(tmp_path, changed, tail):
    create(tmp_path, {f"f{i}": 0 for i in range(9)})
    with pytest.raises(UsageError) as error:
        create(tmp_path, {f"f{i}": int(i < changed) for i in range(9)})
    assert len(re.findall(r"f\d: 0 -> 1", str(error.value))) == 5
    assert f"f4: 0 -> 1{tail}" in str(error.value)


@pytest.mark.parametrize("ignore", [("train.steps",), ("train",)])
def test_an_ignored_field_may_change_and_outdates_the_results(tmp_path, ignore):
    create(tmp_path).write_results(CLAIMS, {})
    longer = CONFIG | {"train": {"steps": 20, "lr": 1e-3}}
    record = create(tmp_path, longer, ignore=ignore)
    assert not record.complete
    assert Record.open(tmp_path).config["train"]["steps"] == 20


def test_an_ignored_field_does_not_excuse_its_neighbours(tmp_path):
    create(tmp_path)
    other = CONFIG | {"train": {"steps": 20, "lr": 2e-3}, "seeds": 3}
    with pytest.raises(UsageError, match=r"config: train.lr: 0.001 -> 0.002, seeds: \(absent\)"):
        create(tmp_path, other, ignore=("train.steps", "seed"))


@pytest.mark.parametrize("value", [float("inf"), {1, 2}, pathlib.Path("a")])
def test_a_config_that_json_cannot_hold_is_refused_by_field(tmp_path, value):
    with pytest.raises(UsageError, match="config field train.lr="):
        create(tmp_path / "run", {"train": {"lr": value}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below", ["", "run"])
def test_a_workdir_that_is_or_lies_in_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is or is in a file; give a --workdir"):
        create(tmp_path / "file" / below)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_args: False)
    with pytest.raises(UsageError, match="cannot be written"):
        create(tmp_path)


def test_opening_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        Record.open(tmp_path / "missing")
    with pytest.raises(UsageError, match="has no config.json"):
        Record.open(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UsageError, match="a JSON list, not an object"):
        Record.open(tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": "a", "paper": "b"}')
    with pytest.raises(UsageError, match="lacks variant, config"):
        create(tmp_path)


def test_results_hold_exactly_what_the_contract_says(tmp_path):
    record = create(tmp_path)
    assert not record.complete
    record.write_results(CLAIMS, {"loss": np.float32(1.5), "bits": {"value": 2, "command": "run"}})
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == {
        "experiment": "study",
        "variant": "tiny",
        "paper": "arXiv:2203.07852",
        "claims": [
            {"claim": "it learns", "expected": "< 2.0", "measured": 1.5, "holds": True},
            {"claim": "it flies", "expected": "yes", "measured": "no", "holds": False},
        ],
        "numbers": {"loss": 1.5, "bits": {"value": 2, "command": "run"}},
        "environment": record.environment(),
    }
    opened = Record.open(tmp_path)
    assert opened.complete
    assert opened.results == stored
    assert opened.claims == (
        Claim("it learns", "< 2.0", 1.5, True),
        Claim("it flies", "yes", "no", False),
    )


def test_a_lost_number_is_null_and_costs_no_other(tmp_path):
    record = create(tmp_path)
    record.write_results([Claim("c", "e", float("nan"), False)], {"a": float("inf"), "b": 1})
    text = record.results_path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert record.results["numbers"] == {"a": None, "b": 1}
    assert record.claims[0].measured is None


def test_results_that_fail_to_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    record = create(tmp_path)
    record.write_results(CLAIMS, {"a": 1})

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        record.write_results(CLAIMS, {"a": 2})
    assert record.results["numbers"] == {"a": 1}


def test_a_record_opened_to_read_writes_no_results(tmp_path):
    create(tmp_path)
    with pytest.raises(UsageError, match="opened for reading"):
        Record.open(tmp_path).write_results(CLAIMS, {})
    assert not (tmp_path / "results.json").exists()


def test_a_run_that_is_not_complete_has_no_results_to_read(tmp_path):
    create(tmp_path)
    with pytest.raises(UsageError, match="no results.json yet; let it finish first"):
        _ = Record.open(tmp_path).results
    with pytest.raises(UsageError, match="no results.json yet"):
        Record.open(tmp_path).environment()


def test_the_environment_names_versions_and_devices_and_nobody(tmp_path):
    import jax

    environment = create(tmp_path).environment()
    assert environment["jax"] == jax.__version__
    assert environment["python"] == platform.python_version()
    assert environment["device_count"] == jax.device_count()
    libraries = {"jaxlab", "python", "jax", "jaxlib", "flax", "optax", "numpy"}
    devices = {"platform", "device_kind", "device_count", "process_count"}
    assert set(environment) == libraries | devices | {"system", "cpu_count"}
    assert platform.node() not in " ".join(map(str, environment.values())).split()
    assert os.sep not in "".join(map(str, environment.values()))


def test_the_environment_of_a_complete_run_is_the_one_it_ran_in(tmp_path):
    record = create(tmp_path)
    record.write_results(CLAIMS, {})
    stored = record.results
    stored["environment"]["device_kind"] = "another machine"
    record.results_path.write_text(json.dumps(stored))
    assert Record.open(tmp_path).environment()["device_kind"] == "another machine"


def test_a_curve_holds_the_steps_that_have_the_metric(tmp_path):
    record = create(tmp_path)
    with MetricWriter(record, tensorboard=False) as writer:
        for step in range(6):
            writer.write(step, {"train/loss": step**2})
            if step % 3 == 0:
                writer.write(step, {"eval/loss": float("nan") if step else 0.5})
    assert len(record.metrics) == 8
    steps, values = record.curve("train/loss")
    assert (steps.dtype, values.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(steps, np.arange(6))
    np.testing.assert_array_equal(values, np.arange(6) ** 2)
    steps, values = record.curve("eval/loss")
    np.testing.assert_array_equal(steps, [0, 3])
    np.testing.assert_array_equal(values, [0.5, np.nan])


def test_an_unknown_curve_is_refused_with_the_nearest_name(tmp_path):
    record = create(tmp_path)
    with MetricWriter(record, tensorboard=False) as writer:
        writer.write(0, {"train/loss": 1.0, "train/accuracy": 0.5})
    with pytest.raises(UsageError, match="'train/los' .*did you mean 'train/loss'.*train/accuracy"):
        record.curve("train/los")


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket"])
def test_a_url_is_no_workdir(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a URL; give a folder"):
        create(url)
    assert not list(tmp_path.iterdir())
