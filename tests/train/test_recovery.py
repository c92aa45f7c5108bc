from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import signal

import jax
import numpy as np
import pytest

from jaxlab import train
from jaxlab.core import UsageError
from jaxlab.results import read_metrics
from jaxlab.train import recovery
from jaxlab.train.loop import Run

CONFIG = train.TrainConfig(
    steps=14,
    batch_size=8,
    log_every=2,
    save_every=4,
    keep_last=2,
    on_divergence="skip",
    optimizer=train.OptimizerConfig("adamw", learning_rate=1e-2, warmup_steps=2),
)


def start(toy, workdir, stream, config=CONFIG, hooks=()):
    workdir.mkdir(exist_ok=True)
    return train.run_training(
        config,
        build=toy.build,
        objective=toy.objective,
        stream=stream,
        workdir=workdir,
        init_carry=lambda rows: toy.carry(rows)(),
        hooks=hooks,
    )[1]


@pytest.fixture(scope="module")
def streams(toy):
    """Streams with bad batches, and streams that never had some batches."""

    class Scaled(toy.Numbers):
        def __init__(self, scales):
            super().__init__()
            self.scales = scales

        def __next__(self):
            batch = super().__next__()
            scale = np.float32(self.scales.get(self.number, 1))
            return batch | {"x": batch["x"] * scale, "y": batch["y"] * scale}

    class Without(toy.Numbers):
        def __init__(self, left_out):
            super().__init__()
            self.left_out = left_out

        def __next__(self):
            while self.number + 1 in self.left_out:
                self.number += 1
            return super().__next__()

    return Scaled, Without


@pytest.fixture(scope="module")
def nan_at_7(toy, streams, tmp_path_factory):
    """A run over data in which batch 7 is no number: workdir and run."""
    workdir = tmp_path_factory.mktemp("nan")
    return workdir, start(toy, workdir, streams[0]({7: np.nan}))


def rows(workdir):
    found = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def assert_same(workdir, run, other_workdir, other):
    for a, b in zip(
        jax.tree.leaves((run.state.params, run.state.opt_state, run.state.carry, run.state.step)),
        jax.tree.leaves(
            (other.state.params, other.state.opt_state, other.state.carry, other.state.step)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert rows(workdir) == rows(other_workdir)


# What is bad; the batches that must be left out: from the checkpoint to the row that shows it.
@pytest.mark.parametrize(
    ("scales", "spike_factor", "left_out"),
    [
        ({7: np.nan}, None, range(5, 9)),
        ({2: np.inf}, None, range(1, 3)),  # before the first checkpoint: back to the beginning
        ({11: 30}, 5.0, range(9, 13)),  # the checkpoint of step 12 is not saved
        # Behind the first skip step 12 reads batch 14, and the checkpoint of step 8 batch 10.
        ({6: np.nan, 14: np.nan}, None, (5, 6, 11, 12, 13, 14)),
        ({14: np.nan}, None, (13, 14)),
    ],
)
def test_a_skip_gives_the_run_that_never_saw_those_batches(
    toy, streams, tmp_path, scales, spike_factor, left_out
):
    Scaled, Without = streams
    config = dataclasses.replace(CONFIG, spike_factor=spike_factor)
    found = start(toy, tmp_path / "a", Scaled(scales), config)
    expected = start(toy, tmp_path / "b", Without(left_out), config)
    assert_same(tmp_path / "a", found, tmp_path / "b", expected)


def test_a_skip_says_so_in_one_line_and_compiles_no_second_step(
    toy, streams, tmp_path, caplog, monkeypatch
):
    steps, make_step = [], train.make_step

    def keep(*args, **kwargs):
        steps.append(make_step(*args, **kwargs))
        return steps[-1]

    monkeypatch.setattr(train.setup, "make_step", keep)
    with caplog.at_level(logging.WARNING, "jaxlab"):
        start(toy, tmp_path, streams[0]({7: np.nan}))
    assert [r.getMessage() for r in caplog.records if r.name == "jaxlab.train.recovery"] == [
        "training diverged: train/loss is nan at step 8; back to the checkpoint of step 4; "
        "batches skipped after it: 4 (skip 1 of at most 3)"
    ]
    assert [step.num_compilations for step in steps] == [1]


class Break(train.Hook):
    """Ends the run as a kill would, at its second start or at a step after it."""

    def __init__(self, step):
        self.step, self.starts = step, 0

    def start(self, run):
        self.starts += 1
        if self.starts == 2 and self.step is None:
            raise RuntimeError("killed")

    def after_step(self, run):
        if self.starts == 2 and run.step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("step", [None, 5, 9])
def test_a_run_killed_after_a_skip_skips_once(toy, streams, tmp_path, nan_at_7, step):
    bad = {7: np.nan}
    with pytest.raises(RuntimeError, match="killed"):
        start(toy, tmp_path, streams[0](bad), hooks=[Break(step)])
    assert_same(tmp_path, start(toy, tmp_path, streams[0](bad)), *nan_at_7)


def test_a_run_killed_before_its_skip_is_written_finds_it_again(
    toy, streams, tmp_path, nan_at_7, monkeypatch
):
    def killed(*_args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "replace_json", killed)
        with pytest.raises(RuntimeError, match="killed"):
            start(toy, tmp_path, streams[0]({7: np.nan}))
    assert_same(tmp_path, start(toy, tmp_path, streams[0]({7: np.nan})), *nan_at_7)


def test_a_checkpoint_that_diverges_twice_is_set_aside(toy, streams, tmp_path):
    Scaled, Without = streams
    found = start(toy, tmp_path / "a", Scaled({9: np.nan, 11: np.nan}))
    # 9 and 10 from the checkpoint of step 8; then 11 and 12 as well, and all from that of step 4.
    expected = start(toy, tmp_path / "b", Without(range(5, 13)))
    assert_same(tmp_path / "a", found, tmp_path / "b", expected)
    assert (tmp_path / "a" / "checkpoints" / "diverged-8" / "params").is_dir()


def test_skips_come_to_an_end_and_can_be_allowed_again(toy, streams, tmp_path):
    Scaled, Without = streams
    bad = {6: np.nan, 14: np.nan}
    one = dataclasses.replace(CONFIG, max_skips=1)
    with pytest.raises(
        train.TrainingDiverged,
        match=r"diverged \(skips: 1; train.max_skips allows no more\): train/loss is nan at step "
        "12; the checkpoint of step 8 is good and kept",
    ):
        start(toy, tmp_path / "a", Scaled(bad), one)
    found = start(toy, tmp_path / "a", Scaled(bad))
    expected = start(toy, tmp_path / "b", Without((5, 6, 11, 12, 13, 14)))
    assert_same(tmp_path / "a", found, tmp_path / "b", expected)


@pytest.mark.parametrize("begin", [0, 4, 8, 12])
def test_from_an_older_checkpoint_all_is_passed_over_up_to_the_last_skip(tmp_path, begin):
    # Two batches are skipped after step 4, three after step 8.
    path = tmp_path / recovery.FILE
    path.write_text(json.dumps({"after": {"4": 2, "8": 3}, "reasons": ["a", "b"]}))
    place = begin + sum(n for step, n in ((4, 2), (8, 3)) if step < begin)
    for _ in range(2):  # as many again when the run is killed and begins there once more
        count = recovery.Skips.read(tmp_path).from_step(begin)
        assert place + count == (8 + 5 if begin <= 8 else place)
    later = recovery.Skips.read(tmp_path).from_step(begin + 4 if begin < 8 else 16)
    assert later == 0


def test_a_damaged_list_of_skips_is_one_line(toy, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for text in ("{", '{"after": 3}', "[]"):
        (folder / recovery.FILE).write_text(text)
        with pytest.raises(UsageError, match=r"skips.json' does not say which batches"):
            start(toy, tmp_path, toy.Numbers())
    (folder / recovery.FILE).unlink()
    (folder / recovery.FILE).mkdir()  # cannot be read at all
    with pytest.raises(UsageError, match=r"skips.json' does not say which batches"):
        start(toy, tmp_path, toy.Numbers())


def test_data_that_end_while_batches_are_passed_over_are_an_error(tmp_path):
    (tmp_path / recovery.FILE).write_text(json.dumps({"after": {"4": 3}, "reasons": ["a"]}))
    found = recovery.Recovery(None, recovery.Skips.read(tmp_path), 3, True)
    with pytest.raises(UsageError, match="the data ended after 2 of the 3 batches .* after step 4"):
        found.pass_over(iter(range(2)), 4)


def look(hook, losses, partial=None):
    """The step at which a spike is found in rows of one step each, or None."""
    run = Run(None, 0, 100, itertools.count())
    for step, loss in enumerate(losses, 1):
        run.step, run.latest = step, {"step": step, "train/loss": loss}
        try:
            hook.after_step(run)
        except train.TrainingDiverged as error:
            return error.step
    return None


@pytest.mark.parametrize(
    ("losses", "before", "found"),
    [
        ([1, 1, 1, 1, 3.1], (), 5),
        ([1, 1, 1, 1, 3.0], (), None),
        ([1, 1, 1, 9], (), None),  # three rows are too few
        ([9], (1, 1, 1, 1), 1),  # those before the run's first step count
        ([1, 9, 9, 9, 26], (), None),  # the median is 9
        ([8, 4, 2, 1, 0.5, 0.25, 8], (), 7),
        ([-1, -1, -1, -1, 50], (), None),
        ([50] * 20 + [1] * 16 + [4], (), 37),  # the last 16 rows count
    ],
)
def test_a_spike_is_a_loss_far_above_the_median_before_it(losses, before, found):
    assert look(train.StopOnSpike(3.0, before), losses) == found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"on_divergence": "retry"}, "on_divergence='retry'; it takes 'stop' or 'skip'"),
        ({"spike_factor": 1.0}, "spike_factor=1.0; it takes a number above 1, or none"),
        ({"spike_factor": float("nan")}, "spike_factor=nan; it takes a number above 1"),
        ({"stuck_seconds": 0.0}, "stuck_seconds=0.0; it takes a number above 0"),
        ({"max_skips": -1}, "max_skips=-1; it takes a whole number of 0 or more"),
    ],
)
def test_fields_out_of_range_are_named(fields, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(CONFIG, **fields)


def test_a_signal_before_a_skip_ends_the_run_which_skips_when_it_continues(toy, streams, tmp_path):
    class Signal(train.Hook):
        def after_step(self, run):
            if run.step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        train.TrainingInterrupted, match="SIGTERM at step 4 of 14; everything is saved"
    ):
        start(toy, tmp_path, streams[0]({7: np.nan}), hooks=[Signal()])
    # Seen at step 7, where the run ends, and not at 8: one batch fewer is skipped.
    found = start(toy, tmp_path, streams[0]({7: np.nan}))
    other = tmp_path / "other"
    assert_same(tmp_path, found, other, start(toy, other, streams[1](range(5, 8))))
