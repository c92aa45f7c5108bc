from __future__ import annotations

import dataclasses
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from jaxlab import checkpoint, train
from jaxlab.core import MeshConfig, UsageError
from jaxlab.results import read_metrics

CONFIG = train.TrainConfig(
    steps=10,
    batch_size=8,
    log_every=3,
    save_every=5,
    keep_last=1,
    optimizer=train.OptimizerConfig("adamw", learning_rate=1e-2, warmup_steps=2, weight_decay=0.1),
)


class Kill(train.Hook):
    """Ends the run as a kill would: nothing is finished."""

    def __init__(self, at: int, error: BaseException):
        self.at, self.error = at, error

    def after_step(self, run):
        if run.step == self.at:
            raise self.error


def start(toy, workdir, config=CONFIG, hooks=(), stream=None):
    workdir.mkdir(exist_ok=True)
    return train.run_training(
        config,
        build=toy.build,
        objective=toy.objective,
        stream=stream or toy.Numbers(),
        workdir=workdir,
        init_carry=lambda rows: toy.carry(rows)(),
        hooks=hooks,
        tokens_per_step=8,
        evaluate=lambda state: {"held_out/step": float(state.step)},
    )


def setup_of(toy, config, build):
    return train.make_setup(
        config,
        build=build,
        objective=toy.objective,
        batch=train.batch_shapes(toy.Numbers(), config.batch_size),
        init_carry=lambda rows: toy.carry(rows)(),
        tokens_per_step=100,
    )


def trained_rows(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_same_run(a, b):
    for x, y in zip(
        jax.tree.leaves((a.params, a.opt_state, a.carry, a.step, jax.random.key_data(a.key))),
        jax.tree.leaves((b.params, b.opt_state, b.carry, b.step, jax.random.key_data(b.key))),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A run without a break: workdir, view, run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, *start(toy, workdir)


def test_the_view_that_comes_back_is_the_trained_model(whole, toy):
    workdir, view, run = whole
    x = next(toy.Numbers())["x"]
    np.testing.assert_array_equal(view(x), view.apply(checkpoint.restore_params(workdir), x))
    assert run.complete and int(run.state.step) == 10


def test_rows_are_written_at_their_steps(whole):
    rows = trained_rows(whole[0])
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 6, 9, 10]
    assert [row["step"] for row in rows if "held_out/step" in row] == [10]


def test_a_killed_run_continues_to_the_bit(whole, toy, tmp_path):
    # Rows come at 3, 6, 9; the checkpoint of step 5 lies between, and the kill after row 6.
    with pytest.raises(RuntimeError, match="killed"):
        start(toy, tmp_path, hooks=[Kill(8, RuntimeError("killed"))])
    assert [row["step"] for row in trained_rows(tmp_path)] == [3, 6]
    _, run = start(toy, tmp_path)
    assert_same_run(run.state, whole[2].state)
    assert trained_rows(tmp_path) == trained_rows(whole[0])


def test_a_signal_saves_and_the_next_run_continues_to_the_bit(whole, toy, tmp_path):
    class Send(train.Hook):
        every = 4

        def after_step(self, run):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(train.TrainingInterrupted, match="SIGTERM at step 4 of 10") as caught:
        start(toy, tmp_path, hooks=[Send()])
    assert caught.value.signal is signal.SIGTERM
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]
    _, run = start(toy, tmp_path)
    assert_same_run(run.state, whole[2].state)
    assert trained_rows(tmp_path) == trained_rows(whole[0])


def test_a_complete_run_is_only_read(whole, toy):
    workdir, view, run = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    again, same = start(toy, workdir, hooks=[Kill(1, AssertionError("a step was taken"))])
    assert same.complete and (workdir / "metrics.jsonl").read_bytes() == before
    for path, p in view.params.items():
        np.testing.assert_array_equal(p, again.params[path])


def test_another_stream_is_refused(whole, toy, tmp_path):
    class Other(toy.Numbers):
        def restore(self, state):
            if state["number"]:
                raise UsageError("the data state was saved by another stream")

    workdir = shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(UsageError, match="another stream"):
        start(toy, workdir, dataclasses.replace(CONFIG, steps=12), stream=Other())


def test_a_diverging_run_keeps_its_good_checkpoint(toy, tmp_path):
    class Broken(toy.Numbers):
        def __next__(self):
            batch = super().__next__()
            return batch | {"x": batch["x"] * (np.inf if self.number == 8 else 1)}

    with pytest.raises(train.TrainingDiverged, match="the checkpoint of step 5 is good and kept"):
        start(toy, tmp_path, stream=Broken())
    assert int(start(toy, tmp_path)[1].state.step) == 10


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "steps=0; it takes a whole number of 1 or more"),
        ({"seed": -1}, "seed=-1; it takes a whole number of 0 or more"),
        ({"accumulate": 3}, "accumulate=3 does not divide batch_size=8; accepted: 1, 2, 4, 8"),
        ({"eval_every": 0}, "eval_every=0"),
    ],
)
def test_fields_out_of_range_are_named(fields, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(CONFIG, **fields)


def test_rows_that_do_not_divide_over_the_devices_are_refused(toy):
    config = dataclasses.replace(CONFIG, accumulate=2)
    with pytest.raises(UsageError, match="batch_size=8 in accumulate=2 .* 8 devices; .* of 16"):
        setup_of(toy, config, toy.build)


def test_a_description_comes_from_shapes(toy):
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    lines = setup_of(toy, config, lambda rngs: toy.Net(rngs, 1024)).describe()
    text = "\n".join(lines)
    numbers = 4 * 1024 + 1024 + 1024 * 2 + 2
    assert f"parameters: {numbers:,}, {numbers * 4 / 2**20:.2f} MiB" in text
    assert "data=2, fsdp=2, tensor=2" in text and "8 rows in 1 micro-batches, 2 rows a" in text
    assert "steps: 10, 1,000 tokens" in text
    assert "sharding: up/kernel float32[4, 1024] (fsdp, tensor)" in lines
    assert "sharding: down/bias float32[2] replicated" in lines
