from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import checkpoint, sparsity, train
from jaxlab.core import (
    MeshConfig,
    UsageError,
    apply_masks,
    batch_sharding,
    from_dict,
    override,
    place_rows,
    to_dict,
)
from jaxlab.planning.hlo import read_program

OPTIMIZERS = {
    "sgd": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01, 0.9)),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
}
KERNELS = ("down/kernel", "up/kernel")


def half(params):
    return sparsity.masks.random(jax.random.key(0), params, 0.5)


def trained(toy, mesh, optimizer, steps=100, start=lambda view, state: state):
    """The state after some steps on the toy task."""
    view, state, _ = toy.make_state(mesh, optimizer)
    state = start(view, state)
    step = train.make_step(view, toy.objective, optimizer, mesh=mesh)
    stream = toy.Numbers()
    for _ in range(steps):
        state = step(state, place_rows(next(stream), batch_sharding(mesh)))
    assert step.num_compilations == 1
    return state


def assert_masked(state, counts):
    masks = sparsity.masks_of(state.opt_state)
    assert {path: int(mask.sum()) for path, mask in masks.items()} == counts
    for path, mask in masks.items():
        kernel = np.asarray(state.params[path])
        assert not kernel[~np.asarray(mask)].any()
        # One that has just grown, or whose unit nothing reads, may be zero too.
        assert np.count_nonzero(kernel) > 0.6 * counts[path]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_masked_weights_are_zero_after_a_hundred_steps(toy, one, name):
    state = trained(toy, one, sparsity.sparsify(OPTIMIZERS[name], half))
    assert_masked(state, {"up/kernel": 16, "down/kernel": 8})
    assert np.asarray(state.params["down/bias"]).all() and state.params["up/bias"].any()


def test_a_run_over_eight_devices_is_masked_and_sharded(toy, one, eight):
    change = sparsity.Regrow("gradient", 60, every=20)
    optimizer = sparsity.sparsify(OPTIMIZERS["adamw"], half, change)
    state = trained(toy, eight, optimizer, 60)
    assert_masked(state, {"up/kernel": 16, "down/kernel": 8})
    for path, mask in state.opt_state.masks.items():
        assert mask.sharding == state.params[path].sharding
    assert state.opt_state.masks["up/kernel"].addressable_shards[0].data.shape == (2, 4)
    single = trained(toy, one, optimizer, 60)
    for path, mask in single.opt_state.masks.items():
        np.testing.assert_array_equal(mask, state.opt_state.masks[path])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_density_one_is_the_unmasked_training_to_the_bit(toy, one, name):
    inner = OPTIMIZERS[name]
    plain = trained(toy, one, inner, 20)
    config = sparsity.SparsityConfig(density=1.0)
    full = {path: jnp.ones(plain.params[path].shape, bool) for path in KERNELS}
    optimizer = config.wrap(inner, train.TrainConfig(steps=20))
    for state in (
        trained(toy, one, sparsity.sparsify(inner, full), 20),
        trained(
            toy,
            one,
            optimizer,
            20,
            lambda view, state: sparsity.start_sparse(config, optimizer, view, state),
        ),
    ):
        for path, p in plain.params.items():
            np.testing.assert_array_equal(state.params[path], p)


def test_dense_parameters_are_masked_by_the_first_update():
    params = {"w": jnp.array([[1.5, -2.0], [3.0, 1e-30]]), "b": jnp.ones(2)}
    masks = {"w": jnp.array([[True, False], [False, False]])}
    optimizer = sparsity.sparsify(optax.adamw(0.1, weight_decay=0.1), masks)
    grads = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    assert after["w"].ravel()[1:].tolist() == [0, 0, 0] and (after["b"] < 1).all()


def test_the_optimizer_within_sees_masked_gradients():
    # Cut to a norm of 1: that of the kept gradient alone, which is 2.
    params = {"w": jnp.array([1.0, 0.0])}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    optimizer = sparsity.sparsify(inner, {"w": jnp.array([True, False])})
    updates, _ = optimizer.update({"w": jnp.array([2.0, 9.0])}, optimizer.init(params), params)
    assert updates["w"].tolist() == [-1, 0]


def test_averages_over_changing_masks_are_masked_again():
    first, second = {"w": jnp.array([1.0, 0.0, 2.0])}, {"w": jnp.array([0.0, 3.0, 2.0])}
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert mean["w"].all()
    again = apply_masks(mean, {"w": jnp.array([False, True, True])})
    assert again["w"].tolist() == [0, 1.5, 2]


# Changes of masks, one update at a time.


def updated(optimizer, params, grads, steps):
    """Parameters and state after each update with the gradients `grads(t)`."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t in range(steps):
        updates, state = update(grads(t), state, params)
        params = optax.apply_updates(params, updates)
        yield jax.tree.map(np.asarray, (params, state))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_gradual_pruning_follows_the_cubic_schedule():
    params = {"kernel": normal(25, 40)}
    change = sparsity.Gradual({"kernel": 200}, begin=4, end=12, every=2)
    optimizer = sparsity.sparsify(optax.sgd(0.0), {"kernel": jnp.ones((25, 40), bool)}, change)
    counts, before = [], np.ones((25, 40), bool)
    for _, state in updated(optimizer, params, lambda t: params, 20):
        mask = state.masks["kernel"]
        counts.append(int(mask.sum()))
        assert not (mask & ~before).any()
        before = mask
    # Density is one up to t0, 1 - .8 * .875 half way, and .2 from t1 on.
    assert counts[:5] == [1000] * 5 and counts[3] == 1000
    assert counts[8] == counts[9] == 300
    assert counts[12:] == [200] * 8
    for t, count in enumerate(counts):
        p = np.clip((t - t % 2 - 4) / 8, 0, 1)
        assert abs(count - 1000 * (1 - 0.8 * (1 - (1 - p) ** 3))) < 1
    kept = np.abs(np.asarray(params["kernel"]))
    assert kept[before].min() > kept[~before].max()


def test_rigl_drops_the_smallest_and_grows_by_gradient():
    kernel, gradients = np.array(normal(8, 10)), [np.array(normal(8, 10, seed=t)) for t in range(9)]
    mask = np.array(half({"kernel": jnp.asarray(kernel)})["kernel"])
    kernel[~mask] = 0
    change = sparsity.Regrow("gradient", end=8, drop=0.5, every=2)
    optimizer = sparsity.sparsify(optax.adam(1e-2), {"kernel": jnp.asarray(mask)}, change)
    runs = list(
        updated(optimizer, {"kernel": jnp.asarray(kernel)}, lambda t: {"kernel": gradients[t]}, 9)
    )
    for t, (params, state) in enumerate(runs):
        now, after = params["kernel"], state.masks["kernel"]
        adam = state.inner[0]
        assert after.sum() == 40 and not now[~after].any()
        assert not adam.mu["kernel"][~after].any() and not adam.nu["kernel"][~after].any()
        last = runs[t - 1][0]["kernel"] if t else kernel
        old = runs[t - 1][1].masks["kernel"] if t else mask
        if t in (2, 4, 6):
            moved = round(0.25 * (1 + math.cos(math.pi * t / 8)) * 40)
            size = np.where(old, np.abs(last), -1).ravel()
            left = np.zeros(80, bool)
            left[np.argsort(-size, kind="stable")[: 40 - moved]] = True
            score = np.where(left, -1, np.abs(gradients[t]).ravel())
            left[np.argsort(-score, kind="stable")[:moved]] = True
            np.testing.assert_array_equal(after, left.reshape(8, 10))
            grown = after & ~old
            assert grown.any() and not now[grown].any()
            assert not adam.mu["kernel"][grown].any() and not adam.nu["kernel"][grown].any()
            stays = after & old
            assert (now[stays] != last[stays]).all()
        else:
            np.testing.assert_array_equal(after, old)


def test_what_grows_is_zero_also_under_an_optimizer_with_noise():
    grads = {"kernel": normal(8, 10)}
    change, masks = sparsity.Regrow("random", end=20, drop=0.9, every=3), half(grads)
    noisy = optax.chain(optax.add_noise(1.0, 0.1, 0), optax.sgd(0.1))
    optimizer = sparsity.sparsify(noisy, masks, change)
    now = apply_masks(grads, masks)
    after, update = optimizer.init(now), jax.jit(optimizer.update)
    for _ in range(4):
        before, state = now, after
        updates, after = update(grads, state, before)
        now = optax.apply_updates(before, updates)
    kept = [np.asarray(each.masks["kernel"]) for each in (state, after)]
    grown, stays = kept[1] & ~kept[0], kept[1] & kept[0]
    assert grown.any() and not now["kernel"][grown].any()
    assert stays.any() and (now["kernel"] != before["kernel"])[stays].all()


def test_a_step_without_a_change_copies_nothing_but_masks():
    params = {"kernel": normal(64, 48), "bias": normal(48)}
    change = sparsity.Regrow("gradient", end=9, every=3)
    optimizer = sparsity.sparsify(optax.adamw(1e-2), {"kernel": half(params)["kernel"]}, change)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params)
    text = compiled.compile().as_text()
    program = read_program(text)
    entry = program.computations[program.entry].instructions.values()
    assert any(each.opcode in ("while", "call") for each in entry) and "conditional(" in text
    assert not any(each.opcode == "conditional" for each in entry)  # that of ties is in the loop
    copies = [
        array.dtype
        for each in entry
        if each.opcode == "copy" or "copy" in each.name
        for array in each.result
        if array.shape == (64, 48)
    ]
    assert copies == ["pred"]


def test_set_grows_at_random_under_its_seed():
    params = {"kernel": normal(8, 10)}
    masks = half(params)

    def run(seed):
        change = sparsity.Regrow("random", end=20, every=3, seed=seed)
        optimizer = sparsity.sparsify(optax.sgd(0.0), masks, change)
        params_at = apply_masks(params, masks)
        return [
            state.masks["kernel"]
            for _, state in updated(optimizer, params_at, lambda t: params, 14)
        ]

    first, again, other = run(0), run(0), run(1)
    assert all(mask.sum() == 40 for mask in first)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[-1], other[-1])
    moved = [(a & ~b).sum() for a, b in zip(first[1:], first[:-1], strict=True)]
    assert [t + 1 for t, number in enumerate(moved) if number] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sparsity.Gradual({}, 5, 5), "from step 5 to 5 every 100"),
        (lambda: sparsity.Gradual({}, 0, 10, 3), "from step 0 to 10 every 3; it takes"),
        (lambda: sparsity.Regrow("weight", 9), "by='weight'; expected 'random' or"),
        (lambda: sparsity.Regrow("random", 9, drop=1.0), "drop=1.0; it takes a fraction"),
        (lambda: sparsity.Regrow("random", 0), "end=0"),
        (lambda: sparsity.Regrow("random", 9, every=0), "every=0"),
        (
            lambda: sparsity.sparsify(optax.sgd(1.0), {"kernl": np.zeros((2, 2), bool)}).init(
                {"kernel": jnp.ones((2, 2))}
            ),
            "the mask 'kernl' fits no parameter; did you mean 'kernel'",
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()


# Whole runs.

CONFIG = train.TrainConfig(
    steps=12,
    batch_size=8,
    log_every=4,
    save_every=5,
    keep_last=1,
    mesh=MeshConfig(data=-1),
    optimizer=train.OptimizerConfig("adamw", learning_rate=1e-2, weight_decay=0.1),
)
RIGL = sparsity.SparsityConfig("rigl", 0.5, rule="uniform", every=3, end_step=9)


def run(toy, workdir, intervention, hooks=()):
    workdir.mkdir(exist_ok=True)
    return train.run_training(
        CONFIG,
        build=toy.build,
        objective=toy.objective,
        stream=toy.Numbers(),
        workdir=workdir,
        interventions=[intervention],
        hooks=hooks,
    )


class Kill(train.Hook):
    """Ends the run at a step, as a kill would."""

    def __init__(self, at: int):
        self.at = at

    def after_step(self, run):
        if run.step == self.at:
            raise RuntimeError("killed")


def test_a_sparse_run_is_taken_up_to_the_bit(toy, tmp_path):
    _, whole = run(toy, tmp_path / "whole", RIGL)
    with pytest.raises(RuntimeError, match="killed"):
        run(toy, tmp_path / "broken", RIGL, [Kill(8)])
    view, again = run(toy, tmp_path / "broken", RIGL)
    assert_masked(again.state, {"up/kernel": 16, "down/kernel": 8})
    for a, b in zip(
        jax.tree.leaves((whole.state.params, whole.state.opt_state)),
        jax.tree.leaves((again.state.params, again.state.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    restored = sparsity.masks.nonzero(checkpoint.restore_params(tmp_path / "broken"))
    for path, mask in sparsity.masks_of(again.state.opt_state).items():
        np.testing.assert_array_equal(restored[path], mask)
        np.testing.assert_array_equal(view.masked({path: mask}).params[path], view.params[path])


def test_a_checkpoint_of_another_sparsity_is_refused(toy, tmp_path):
    run(toy, tmp_path, sparsity.SparsityConfig("set", 0.5, rule="uniform"))
    other = sparsity.SparsityConfig("set", 0.75, rule="uniform")
    with pytest.raises(UsageError, match="keeps 8 weights of 'down/kernel', this config 12; use"):
        run(toy, tmp_path, other)


def start(toy, one, config, objective=None, batch=None):
    """The first state of a sparse run, and that of the dense model."""
    optimizer = config.wrap(optax.adam(1e-3), train.TrainConfig(steps=1000))
    view, state, _ = toy.make_state(one, optimizer)
    dense = jax.tree.map(jnp.copy, state.params)
    batch = next(toy.Numbers()) if batch is None else batch
    state = sparsity.start_sparse(
        config,
        optimizer,
        view,
        state,
        objective=objective or toy.objective,
        batch=batch,
    )
    return dense, state


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"density": 0.5}, {"up/kernel": 13, "down/kernel": 11}),
        ({"density": None, "total": 21, "rule": "level"}, {"up/kernel": 11, "down/kernel": 10}),
        (
            {
                "method": "magnitude",
                "own_params": ("up/*",),
                "own_densities": (1.0,),
                "density": 0.5,
            },
            {"down/kernel": 8},
        ),
        ({"method": "n_m", "density": None, "n": 1}, {"up/kernel": 8, "down/kernel": 4}),
        ({"method": "gradual", "density": 0.5}, {"up/kernel": 32, "down/kernel": 16}),
        ({"method": "set", "density": 0.5, "rule": "uniform"}, {"up/kernel": 16, "down/kernel": 8}),
        ({"density": 1.0}, {}),
    ],
)
def test_a_config_begins_with_its_counts(toy, one, fields, counts):
    dense, state = start(toy, one, sparsity.SparsityConfig(**fields))
    assert_masked(state, counts)
    for path, p in dense.items():
        mask = state.opt_state.masks.get(path)
        wanted = p if mask is None else np.where(mask, p / math.sqrt(mask.mean()), 0)
        np.testing.assert_allclose(state.params[path], wanted, rtol=1e-6)


def test_first_weights_are_kept_or_drawn_as_asked(toy, one):
    dense, kept = start(toy, one, sparsity.SparsityConfig(density=0.5, init="keep"))
    masks = kept.opt_state.masks
    for path, p in apply_masks(dense, masks).items():
        np.testing.assert_array_equal(kept.params[path], p)
    _, drawn = start(toy, one, sparsity.SparsityConfig(density=0.5, init="he"))
    wanted = sparsity.sparse_init(jax.random.key(0), dense, masks)
    for path, p in wanted.items():
        np.testing.assert_allclose(drawn.params[path], p, rtol=1e-6)


def test_snip_and_synflow_find_masks_on_the_first_batch(toy, one):
    _, state = start(toy, one, sparsity.SparsityConfig("snip", 0.25))
    view, first, _ = toy.make_state(one, optax.sgd(1.0))
    view = view.at(first.params)
    wanted = sparsity.masks.snip(view, toy.objective, next(toy.Numbers()), 0.25)
    for path, mask in state.opt_state.masks.items():
        np.testing.assert_array_equal(mask, wanted[path])
    batch = {"inputs": np.zeros((3, 4), np.float32)}
    _, state = start(toy, one, sparsity.SparsityConfig("synflow", 0.25, rounds=3), batch=batch)
    wanted = sparsity.masks.synflow(view, batch["inputs"], 0.25, rounds=3)
    for path, mask in state.opt_state.masks.items():
        np.testing.assert_array_equal(mask, wanted[path])
    with pytest.raises(UsageError, match="synflow needs the shape of batch"):
        start(toy, one, sparsity.SparsityConfig("synflow", 0.25))


def test_a_description_counts_the_kept_weights(toy):
    stream = toy.Numbers()
    setup = train.make_setup(
        CONFIG,
        build=toy.build,
        objective=toy.objective,
        batch=train.batch_shapes(stream, CONFIG.batch_size),
        interventions=[RIGL],
    )
    lines = setup.describe()
    assert "kept weights: 24 of 48 in 2 kernels, density 0.5 (rigl)" in lines


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"density": 0.0}, "field density=0.0; it takes a fraction of the weights above 0"),
        ({"density": 1.1}, "field density=1.1"),
        ({"density": None}, "density=None and total=None; give exactly one"),
        ({"total": 5}, "density=0.1 and total=5; give exactly one"),
        ({"method": "rigel"}, "field method='rigel'; .* did you mean 'rigl'"),
        ({"method": "n_m"}, "n_m keeps n=2 of m=4; set density and total to none"),
        ({"method": "n_m", "density": None, "n": 5}, "field n=5; it takes 1 to m=4"),
        ({"method": "snip", "own_params": ("a",), "own_densities": (0.5,)}, "takes only 1"),
        ({"own_params": ("a",)}, "they take the same number"),
        ({"drop": 0.0}, "field drop=0.0"),
        ({"every": 0}, "field every=0; it takes an integer of 1 or more"),
    ],
)
def test_fields_of_a_config_are_checked(fields, words):
    with pytest.raises(UsageError, match=words):
        sparsity.SparsityConfig(**fields)


def test_a_config_is_set_from_the_command_line_and_kept_as_json():
    flags = {
        "method": "rigl",
        "density": "none",
        "total": "26432",
        "rule": "level",
        "own_params": "*_0/*",
        "own_densities": "1.0",
        "end_step": "50",
    }
    config = override(sparsity.SparsityConfig(), flags)
    assert config == sparsity.SparsityConfig(
        "rigl", None, 26432, "level", own_params=("*_0/*",), own_densities=(1.0,), end_step=50
    )
    assert from_dict(sparsity.SparsityConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_pruning_that_ends_behind_the_run_is_refused():
    config = sparsity.SparsityConfig("gradual", 0.1, end_step=200)
    with pytest.raises(UsageError, match="field end_step=200 is after the last of steps=100"):
        config.change(100)
    change = dataclasses.replace(config, end_step=None, begin_step=30, every=20).change(100)
    assert (change.begin, change.end) == (30, 70)


def test_a_state_without_masks_cannot_begin_sparse(toy, one):
    view, state, _ = toy.make_state(one, optax.sgd(1.0))
    with pytest.raises(UsageError, match="the optimizer of this state has no masks"):
        sparsity.start_sparse(sparsity.SparsityConfig(), optax.sgd(1.0), view, state)
