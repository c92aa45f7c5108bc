from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxlab import checkpoint, train
from jaxlab.core import UsageError, View
from jaxlab.results import Record

OPTIMIZER = optax.adam(1e-2)


def bits(tree):
    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(plain, tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, bits(a), bits(b))


@pytest.fixture(scope="module")
def states(toy, one):
    """A plan and the states after 1, 2 and 3 steps."""
    plan = train.plan_state(toy.build, OPTIMIZER, key=0, mesh=one, carry=toy.carry())
    plan = plan.with_metrics(("grad_norm", "input", "loss"))
    step = train.make_step(plan.view, toy.objective, OPTIMIZER, mesh=one)
    state, stream, found = plan.init(), toy.Numbers(), {}
    for number in (1, 2, 3):
        state = step(state, next(stream))
        found[number] = jax.tree.map(jnp.copy, state)
    return plan, found


@pytest.fixture(scope="module")
def saved(states, tmp_path_factory):
    """A workdir with the checkpoints of steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("run")
    config = {"model": {"width": 8}}
    Record.create(workdir, experiment="e", variant="v", paper="p", config=config)
    with checkpoint.Checkpoints(workdir / "checkpoints", keep_last=3) as checkpoints:
        for number, state in states[1].items():
            checkpoints.save(state, {"number": number}, {"tokenizer": "bytes"})
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


def damage(workdir, step):
    """Cuts the data files of a checkpoint's parameters."""
    for file in (workdir / "checkpoints" / str(step) / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])


def test_what_was_saved_comes_back_to_the_bit(states, saved):
    plan, found = states
    with checkpoint.Checkpoints(saved / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(plan.abstract)
    assert_same(restored.state, found[3])
    assert restored.data_state == {"number": 3}
    assert restored.meta["tokenizer"] == "bytes" and "jaxlab" in restored.meta


def test_it_comes_back_onto_another_mesh(states, saved, toy, eight):
    plan = train.plan_state(toy.build, OPTIMIZER, key=0, mesh=eight, carry=toy.carry())
    plan = plan.with_metrics(("grad_norm", "input", "loss"))
    with checkpoint.Checkpoints(saved / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(plan.abstract).state
    assert_same(state, states[1][3])
    assert state.params["up/kernel"].sharding == plan.abstract.params["up/kernel"].sharding


def test_a_folder_without_checkpoints_gives_none(states, tmp_path):
    with checkpoint.Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore(states[0].abstract) is None


def test_the_newest_that_can_be_read_is_taken_and_training_goes_on(states, copy, caplog):
    damage(copy, 3)
    (copy / "checkpoints" / "9").mkdir()
    plan, found = states
    with checkpoint.Checkpoints(copy / "checkpoints", keep_last=2) as checkpoints:
        with caplog.at_level(logging.WARNING, "jaxlab"):
            restored = checkpoints.restore(plan.abstract)
        lines = [r.getMessage() for r in caplog.records if r.name.startswith("jaxlab")]
        assert [line.split(" in ")[0] for line in lines] == [
            "checkpoint of step 9",
            "checkpoint of step 3",
        ]
        assert all("\n" not in line for line in lines)
        assert_same(restored.state, found[2])
        checkpoints.save(found[3], {"number": 3})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
        assert_same(checkpoints.restore(plan.abstract).state, found[3])


def test_other_numbers_than_were_saved_are_noticed(states, copy):
    path = copy / "checkpoints" / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["checksums"]["params/up/kernel"] += 1
    path.write_text(json.dumps(meta))
    with checkpoint.Checkpoints(copy / "checkpoints", read_only=True) as checkpoints:
        assert_same(checkpoints.restore(states[0].abstract).state, states[1][2])


def test_a_small_state_is_written_as_few_arrays(saved, states):
    folder = saved / "checkpoints" / "3"
    written = json.loads((folder / "train" / "_METADATA").read_text())["tree_metadata"]
    # A joined one of each dtype, and the key.
    assert len(written) < 5 < len(jax.tree.leaves(states[1][3].opt_state))


def test_a_save_survives_the_donation_of_its_state(states, tmp_path, toy, one):
    plan = states[0]
    step = train.make_step(plan.view, toy.objective, OPTIMIZER, mesh=one)
    state, batch = jax.tree.map(jnp.copy, states[1][3]), next(toy.Numbers())
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = step(state, batch)
        checkpoints.wait()
        assert_same(checkpoints.restore(plan.abstract).state, states[1][3])


def test_a_large_array_survives_donation_too(tmp_path):
    """One that is saved as it is, not joined with others into a new array."""
    x = jnp.arange(2.0**21)
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Large(jnp.asarray(1), x))
        for _ in range(5):
            x = double(x)
        checkpoints.wait()
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        restored = checkpoints.restore(Large(jnp.asarray(1), x)).state
    np.testing.assert_array_equal(restored.x, np.arange(2.0**21, dtype=np.float32))


@dataclasses.dataclass
class Large:
    """A state of one large array."""

    step: jax.Array
    x: jax.Array

    def items(self):
        return {"params": {"x": self.x}, "train": {"step": self.step}}

    @classmethod
    def from_items(cls, items):
        return cls(items["train"]["step"], items["params"]["x"])


def test_checking_a_save_never_waits_for_it(states, tmp_path, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    finalize = ocp.StandardCheckpointHandler.finalize

    def held(*args):
        writing.set()
        assert go_on.wait(60)
        finalize(*args)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", held)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(states[1][1])
        try:
            assert writing.wait(60)
            checkpoints.check()
            assert checkpoints.latest_step() is None
        finally:
            go_on.set()
        checkpoints.wait()
        assert checkpoints.latest_step() == 1


def test_orbax_alone_reads_a_checkpoint(saved, states):
    with ocp.CheckpointManager(saved / "checkpoints") as manager:
        found = manager.restore(3)
    kernel = states[1][3].params["up/kernel"]
    joined = found["params"][f"joined:{kernel.dtype}"]
    assert set(np.asarray(kernel).ravel()) <= set(np.asarray(joined))


def test_no_readable_checkpoint_is_an_error(states, copy):
    for step in (1, 2, 3):
        damage(copy, step)
    with checkpoint.Checkpoints(copy / "checkpoints") as checkpoints:
        with pytest.raises(UsageError, match=r"none of the checkpoints \[3, 2, 1\]"):
            checkpoints.restore(states[0].abstract)
    assert (copy / "checkpoints" / "3").exists()


def test_another_config_is_refused_with_the_parameter(saved, toy, one):
    wide = train.plan_state(
        lambda rngs: toy.Net(rngs, width=16), OPTIMIZER, key=0, mesh=one, carry=toy.carry()
    )
    with checkpoint.Checkpoints(saved / "checkpoints", read_only=True) as checkpoints:
        with pytest.raises(UsageError, match=r"kernel is float32\[8, 2\] there and float32\[16, 2"):
            checkpoints.restore(wide.abstract)


def test_another_optimizer_is_refused(saved, toy, one):
    plan = train.plan_state(toy.build, optax.sgd(1.0), key=0, mesh=one, carry=toy.carry())
    plan = plan.with_metrics(("grad_norm", "input", "loss"))
    with checkpoint.Checkpoints(saved / "checkpoints", read_only=True) as checkpoints:
        with pytest.raises(UsageError, match="opt_state/.* and absent in this config"):
            checkpoints.restore(plan.abstract)


def test_a_carry_of_other_rows_is_left_out(saved, states, toy, one):
    plan = train.plan_state(toy.build, OPTIMIZER, key=0, mesh=one, carry=toy.carry(4))
    plan = plan.with_metrics(("grad_norm", "input", "loss"))
    with checkpoint.Checkpoints(saved / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(plan.abstract).state
    assert state.carry is None
    assert_same(state.params, states[1][3].params)
    assert plan.init_carry().shape == (4, 2)


def test_only_the_newest_and_the_marked_are_kept(states, tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep_last=1, keep_every=2) as checkpoints:
        for state in states[1].values():
            checkpoints.save(state)
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_parameters_are_read_alone(saved, states):
    assert_same(checkpoint.restore_params(saved), states[1][3].params)
    assert_same(checkpoint.restore_params(saved / "checkpoints", step=1), states[1][1].params)
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 .* it has \[1, 2, 3\]"):
        checkpoint.restore_params(saved, step=7)


def test_a_trained_model_is_ready_to_call(saved, states, toy):
    model = checkpoint.load_model(saved, toy.Net)
    x, (plan, found) = next(toy.Numbers())["x"], states
    np.testing.assert_array_equal(model(x), plan.view.apply(found[3].params, x))


def test_a_missing_run_is_an_error(tmp_path, toy):
    with pytest.raises(UsageError, match="nowhere"):
        checkpoint.load_model(tmp_path / "nowhere", toy.Net)
    with pytest.raises(UsageError, match="nowhere"):
        checkpoint.restore_params(tmp_path / "nowhere")
    Record.create(tmp_path, experiment="e", variant="v", paper="p", config={"model": {"width": 8}})
    with pytest.raises(UsageError, match="no checkpoint in"):
        checkpoint.load_model(tmp_path, toy.Net)


def test_a_model_of_another_width_is_refused(copy, toy):
    path = copy / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"config": {"model": {"width": 4}}}))
    with pytest.raises(UsageError, match="of another config: down/kernel"):
        checkpoint.load_model(copy, toy.Net)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="keep_last=0"):
        checkpoint.Checkpoints(tmp_path, keep_last=0)


def test_the_best_are_kept_beside_the_newest(states, tmp_path):
    losses = {1: 0.5, 2: 0.7, 3: 0.9}
    kept = {"keep_last": 1, "keep_best": 1, "best_metric": "held_out/loss"}
    for mode, best in (("min", 1), ("max", 3)):
        folder = tmp_path / mode
        with checkpoint.Checkpoints(folder, **kept, best_mode=mode) as checkpoints:
            for step, state in states[1].items():
                checkpoints.save(state, measured={"held_out/loss": losses[step]})
            checkpoints.wait()
            assert checkpoints.best_step() == best
        kept_steps = {int(p.name) for p in folder.iterdir() if p.name.isdigit()}
        assert kept_steps == {best, 3}


def test_the_best_model_is_loaded_by_name(states, tmp_path, toy):
    config = {"model": {"width": 8}}
    Record.create(tmp_path, experiment="e", variant="v", paper="p", config=config)
    with checkpoint.Checkpoints(
        tmp_path / "checkpoints", keep_best=1, best_metric="a/b"
    ) as checkpoints:
        for step, state in states[1].items():
            checkpoints.save(state, measured={"a/b": abs(step - 2)})
    found = View.of(checkpoint.load_model(tmp_path, toy.Net, step="best"))
    assert_same(found.params, states[1][2].params)


def test_a_metric_that_was_not_measured_is_named(states, tmp_path, caplog):
    with checkpoint.Checkpoints(tmp_path, keep_best=1, best_metric="held_out/los") as checkpoints:
        checkpoints.save(states[1][1], measured={"held_out/loss": 1.0})
    assert "has no held_out/los and is none of the best" in caplog.text
    assert "did you mean 'held_out/loss'" in caplog.text


def test_best_needs_a_metric_and_a_number(saved, tmp_path, toy):
    with pytest.raises(UsageError, match="keep_best=1 and best_metric=None; give both"):
        checkpoint.Checkpoints(tmp_path, keep_best=1)
    with pytest.raises(UsageError, match="best_mode='least'; it takes 'min' or 'max'"):
        checkpoint.Checkpoints(tmp_path, keep_best=1, best_metric="a/b", best_mode="least")
    with pytest.raises(UsageError, match="was saved with a metric; train with keep_best"):
        checkpoint.load_model(saved, toy.Net, step="best")
