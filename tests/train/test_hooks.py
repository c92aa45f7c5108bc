from __future__ import annotations

import io
import math
import time

import jax
import numpy as np
import optax
import pytest

from jaxlab import checkpoint, train
from jaxlab.core import UsageError

OPTIMIZER = optax.sgd(0.01)


@pytest.fixture(scope="module")
def made(toy, one):
    """A plan and its compiled step."""
    plan = train.plan_state(toy.build, OPTIMIZER, key=0, mesh=one)
    plan = plan.with_metrics(("grad_norm", "input", "loss"))
    return plan, train.make_step(plan.view, toy.objective, OPTIMIZER, mesh=one)


def fit(made, toy, hooks, *, steps, state=None, stream=None, **kwargs):
    plan, step = made
    state = plan.init() if state is None else state
    return train.fit(step, state, stream or toy.Numbers(), steps=steps, hooks=hooks, **kwargs)


@pytest.fixture(scope="module")
def single(made, toy):
    """The rows of a run that logs every step."""
    writer = toy.Rows()
    fit(made, toy, [train.LogMetrics(writer, 1)], steps=7)
    return writer.rows


def test_a_row_is_the_weighted_mean_of_its_steps(made, toy, single):
    writer, stream = toy.Rows(), toy.Numbers()
    fit(made, toy, [train.LogMetrics(writer, 3)], steps=6)
    weights = [int(next(stream)["mask"].sum()) for _ in range(6)]
    assert [step for step, _ in writer.rows] == [3, 6]
    for (last, row), first in zip(writer.rows, (0, 3), strict=True):
        losses = [single[i][1]["train/loss"] for i in range(first, last)]
        norms = [single[i][1]["train/grad_norm"] for i in range(first, last)]
        expected = np.average(losses, weights=weights[first:last])
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert row["train/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)


def test_a_row_is_read_when_the_next_step_is_on_its_way(made, toy):
    writer, seen = toy.Rows(), []

    class Look(train.Hook):
        def after_step(self, run):
            seen.append((run.step, len(writer.rows)))

    fit(made, toy, [train.LogMetrics(writer, 2), Look()], steps=5)
    assert seen == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]


def test_a_complete_run_writes_what_it_has(made, toy, single):
    writer = toy.Rows()
    fit(made, toy, [train.LogMetrics(writer, 6)], steps=7)
    assert [step for step, _ in writer.rows] == [6, 7]
    assert writer.rows[1][1]["train/loss"] == single[6][1]["train/loss"]


def test_an_interrupted_run_leaves_its_sums_to_the_next(made, toy):
    whole, halves, stream = toy.Rows(), toy.Rows(), toy.Numbers()

    class Stop(train.Hook):
        every = 4

        def after_step(self, run):
            run.stop = True

    fit(made, toy, [train.LogMetrics(whole, 3)], steps=7)
    run = fit(made, toy, [train.LogMetrics(halves, 3), Stop()], steps=7, stream=stream)
    fit(made, toy, [train.LogMetrics(halves, 3)], steps=7, state=run.state, stream=stream)

    def trained(rows):
        return [
            (step, {k: v for k, v in row.items() if k.startswith("train/")}) for step, row in rows
        ]

    assert trained(whole.rows) == trained(halves.rows)


def test_a_row_has_rate_and_times(made, toy):
    writer = toy.Rows()
    rate = train.schedule(train.OptimizerConfig(schedule="linear", learning_rate=1.0), 4)
    run = fit(made, toy, [train.LogMetrics(writer, 2, rate)], steps=4, tokens_per_step=8)
    assert [row["train/learning_rate"] for _, row in writer.rows] == [0.5, 0.0]
    row = writer.rows[1][1]
    assert row["time/tokens_per_second"] == pytest.approx(8 / row["time/step_seconds"])
    assert 0 <= row["time/outside_step_rate"] <= 1
    assert run.latest == {"step": 4} | row


def test_what_hooks_do_at_the_end_is_time_of_hooks(made, toy):
    class Slow(train.Hook):
        def finish(self, run):
            time.sleep(0.05)

    run = fit(made, toy, [Slow()], steps=2)
    assert run.seconds.hooks >= 0.05 and run.seconds.outside_step >= 0.05


def test_logging_compiles_no_second_step(made, single):
    assert made[1].num_compilations == 1


def test_the_first_row_compiles_nothing(made, toy, caplog):
    rate = train.schedule(train.OptimizerConfig(schedule="linear", learning_rate=1.0), 4)
    seen = []

    class Look(train.Hook):
        def after_step(self, run):
            seen.append(sum("Finished XLA compilation" in r.getMessage() for r in caplog.records))

    with jax.log_compiles():
        fit(made, toy, [Look(), train.LogMetrics(toy.Rows(), 2, rate), Look()], steps=4)
    assert seen[0] > 0 and len(set(seen)) == 1


def test_a_loss_that_is_no_number_stops_the_run(made, toy):
    class Broken(toy.Numbers):
        def __next__(self):
            batch = super().__next__()
            return batch | {"x": batch["x"] * (np.nan if self.number == 3 else 1)}

    writer = toy.Rows()
    with pytest.raises(train.TrainingDiverged) as caught:
        hooks = [train.LogMetrics(writer, 1), train.StopOnNaN()]
        fit(made, toy, hooks, steps=9, stream=Broken())
    assert caught.value.step == 3 and caught.value.checkpoint is None
    words = str(caught.value)
    assert "train/loss is nan at step 3" in words and "no checkpoint was saved" in words
    assert "learning_rate" in words and "clip_norm" in words and "data" in words
    assert math.isnan(writer.rows[-1][1]["train/loss"])


def test_a_state_that_is_not_finite_is_never_saved(made, toy, tmp_path):
    class Break(train.Hook):
        def after_step(self, run):
            if run.step == 4:
                import dataclasses

                params = jax.tree.map(lambda p: p * np.inf, run.state.params)
                run.state = dataclasses.replace(run.state, params=params)

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        hooks = [
            train.LogMetrics(toy.Rows(), 100),
            train.StopOnNaN(checkpoints),
            Break(),
            train.SaveCheckpoint(checkpoints, 2),
        ]
        with pytest.raises(
            train.TrainingDiverged,
            match="the parameters are not finite at step 4"
            "; the checkpoint of step 2 is good and kept",
        ):
            fit(made, toy, hooks, steps=9)
        checkpoints.wait()
        assert checkpoints.latest_step() == 2
        assert int(checkpoints.restore(made[0].abstract).state.step) == 2


def test_a_checkpoint_is_not_ahead_of_the_rows_on_disk(made, toy, tmp_path):
    writer, seen = toy.Rows(), []
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save = checkpoints.save
        checkpoints.save = lambda *args: (seen.append(len(writer.rows)), save(*args))
        hooks = [train.LogMetrics(writer, 2), train.SaveCheckpoint(checkpoints, 2)]
        fit(made, toy, hooks, steps=4)
    assert seen == [1, 2]


def test_evaluations_come_at_their_steps_and_at_the_end(made, toy):
    writer = toy.Rows()

    def evaluate(state):
        return {"held_out/step": int(state.step)}

    hooks = [train.LogMetrics(writer, 2), train.Evaluate(evaluate, 2, writer)]
    fit(made, toy, hooks, steps=5)
    found = [(step, "held_out/step" in row) for step, row in writer.rows]
    assert found == [(2, False), (2, True), (4, False), (4, True), (5, False), (5, True)]
    assert writer.rows[-1][1] == {"held_out/step": 5}


def test_plain_lines_tell_of_progress_where_there_is_no_terminal(made, toy):
    out = io.StringIO()
    bar = train.ProgressBar("toy", out)
    fit(made, toy, [train.LogMetrics(toy.Rows(), 10), bar], steps=60, tokens_per_step=8)
    lines = out.getvalue().splitlines()
    assert len(lines) == 20 and "\r" not in out.getvalue()
    assert lines[0].startswith("toy: step 3/60, ") and lines[0].endswith(" left")
    assert lines[-1].startswith("toy: step 60/60, loss ") and lines[-1].endswith("tokens/s")


def test_a_terminal_gets_one_bar(made, toy):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    fit(made, toy, [train.LogMetrics(toy.Rows(), 2), train.ProgressBar("toy", out)], steps=6)
    assert "toy" in out.getvalue() and "6/6" in out.getvalue() and "loss " in out.getvalue()
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    "hook",
    [
        lambda: train.LogMetrics(None, 0),
        lambda: train.Evaluate(None, 0, None),
        lambda: train.SaveCheckpoint(None, -1),
    ],
)
def test_every_needs_a_number_of_steps(hook):
    with pytest.raises(UsageError, match="(0|-1); expected"):
        hook()
