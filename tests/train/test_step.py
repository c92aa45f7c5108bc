from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab import train
from jaxlab.core import Loss, UsageError, View, masked_mean


def run_steps(toy, mesh, objective, *, count=3, accumulate=1, carry=True, stream=None, **kwargs):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    make_carry = toy.carry() if carry else None
    view, state, _ = toy.make_state(mesh, optimizer, carry=make_carry)
    step = train.make_step(view, objective, optimizer, mesh=mesh, accumulate=accumulate, **kwargs)
    stream = stream or toy.Numbers()
    for _ in range(count):
        state = step(state, next(stream))
    return step, jax.device_get((state.params, state.carry, state.metrics))


def assert_close(a, b, tolerance):
    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, a, b)


@pytest.fixture(scope="module")
def plain(toy, one):
    """Three steps of the objective with noise and carry, on one device."""
    return run_steps(toy, one, toy.objective)


def test_one_compilation_serves_all_steps(plain):
    assert plain[0].num_compilations == 1


def test_nothing_is_compiled_after_the_first_step(toy, eight):
    compiled = []

    def listen(event: str, seconds: float, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    optimizer, stream = optax.adam(1e-2), toy.Numbers()
    view, state, _ = toy.make_state(eight, optimizer, carry=toy.carry())
    step = train.make_step(view, toy.objective, optimizer, mesh=eight)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state = step(state, next(stream))
        first = len(compiled)
        for _ in range(4):
            state = step(state, next(stream))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first == 1 and len(compiled) == 1
    assert step.num_compilations == 1


def test_metrics_are_sums_of_weighted_means(plain, toy):
    metrics, stream = plain[1][2], toy.Numbers()
    batches = [next(stream) for _ in range(3)]
    total, weight = metrics["input"]
    assert weight == sum(batch["mask"].sum() for batch in batches)
    expected = sum(batch["x"][batch["mask"], 0].sum() for batch in batches)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert metrics["grad_norm"][1] == 3
    assert metrics["loss"][1] == weight


def test_the_carry_goes_from_step_to_step(plain, toy):
    stream, expected = toy.Numbers(), np.zeros((8, 2), np.float32)
    for _ in range(3):
        expected = 0.5 * expected + next(stream)["x"][:, :2]
    np.testing.assert_allclose(plain[1][1], expected, rtol=1e-6)


def test_a_step_is_the_gradient_step_of_the_objective(toy, one):
    optimizer = optax.sgd(0.1)
    view, state, _ = toy.make_state(one, optimizer)
    batch, params = next(toy.Numbers()), jax.tree.map(jnp.array, state.params)
    grads = jax.grad(lambda p: toy.quiet_objective(view.bind(p), batch, None, None).value)(params)
    state = train.make_step(view, toy.quiet_objective, optimizer, mesh=one)(state, batch)
    for path, grad in grads.items():
        np.testing.assert_allclose(state.params[path], params[path] - 0.1 * grad, atol=1e-6)
    np.testing.assert_allclose(state.metrics["grad_norm"][0], optax.tree.norm(grads), rtol=1e-5)
    assert int(state.step) == 1


def test_the_state_passed_in_is_used_up(toy, one):
    optimizer = optax.adam(1e-3)
    view, state, _ = toy.make_state(one, optimizer)
    after = train.make_step(view, toy.objective, optimizer, mesh=one)(state, next(toy.Numbers()))
    assert state.params["up/kernel"].is_deleted()
    assert state.opt_state[0].mu["up/kernel"].is_deleted()
    assert not after.params["up/kernel"].is_deleted()


def test_micro_batches_with_uneven_masks_give_the_whole_batch(toy, one):
    _, whole = run_steps(toy, one, toy.quiet_objective)
    _, parts = run_steps(toy, one, toy.quiet_objective, accumulate=4)
    assert_close(whole, parts, 2e-6)


def test_micro_batches_draw_different_noise(toy, one):
    _, whole = run_steps(toy, one, toy.objective, count=1)
    _, parts = run_steps(toy, one, toy.objective, count=1, accumulate=2)
    assert abs(float(whole[2]["loss"][0] - parts[2]["loss"][0])) > 1e-5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_give_what_one_gives(toy, plain, one, eight, accumulate):
    expected = plain if accumulate == 1 else run_steps(toy, one, toy.objective, accumulate=2)
    step, found = run_steps(toy, eight, toy.objective, accumulate=accumulate)
    assert_close(expected[1], found, 1e-5)
    assert step.num_compilations == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_that_are_reduced_once_are_the_same(toy, one, eight, accumulate):
    _, expected = run_steps(toy, one, toy.quiet_objective)
    step, found = run_steps(
        toy, eight, toy.quiet_objective, accumulate=accumulate, reduce_once=True
    )
    assert_close(expected, found, 1e-5)
    assert step.num_compilations == 1


def test_copies_that_are_reduced_once_draw_different_noise(toy, eight):
    def noise(model, batch, carry, key):
        value = jax.random.normal(key) + 0 * model(batch["x"]).sum()
        return Loss(value, jnp.ones(()), {"input": (value**2, jnp.ones(()))}, carry)

    _, (_, _, metrics) = run_steps(toy, eight, noise, count=1, reduce_once=True)
    total, square = (float(metrics[name][0]) for name in ("loss", "input"))
    assert metrics["loss"][1] == 2
    assert abs(square / 2 - (total / 2) ** 2) > 1e-3  # the variance of two copies


def test_copies_that_are_reduced_once_normalise_by_their_own_rows(toy, one, eight):
    optimizer, batch = optax.sgd(0.5), next(toy.Numbers()) | {"mask": np.ones(8, bool)}

    def after(mesh, batch, **how):
        view, state, _ = train.init_state(
            OnlyNormed, optimizer, key=0, mesh=mesh, metric_names=("loss", "grad_norm", "input")
        )
        step = train.make_step(view, toy.quiet_objective, optimizer, mesh=mesh, **how)
        state = step(state, batch)
        return jax.device_get((state.params, state.model_state))

    # A step of gradient descent of each half, as if it were all rows: the mean is that of both.
    rows = slice(4), slice(4, 8)
    halves = [after(one, {k: x[half] for k, x in batch.items()}) for half in rows]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert_close(expected, after(eight, batch, reduce_once=True), 1e-5)
    whole = after(eight, batch)
    assert abs(whole[1]["norm/var"] - expected[1]["norm/var"]).max() > 1e-4


def test_reduce_once_refuses_stored_random_state(toy, one):
    view, _, _ = train.init_state(Normed, optax.sgd(0.0), key=0, mesh=one)
    with pytest.raises(UsageError, match="reduce_once takes models .* got 'drop/"):
        train.make_step(view, toy.quiet_objective, optax.sgd(0.0), mesh=one, reduce_once=True)


def test_a_batch_without_targets_changes_nothing_but_stays_finite(toy, one):
    for accumulate in (1, 2):
        optimizer = optax.sgd(0.1)
        view, state, _ = toy.make_state(one, optimizer)
        before = jax.device_get(state.params)
        batch = next(toy.Numbers()) | {"mask": np.zeros(8, bool)}
        step = train.make_step(view, toy.objective, optimizer, mesh=one, accumulate=accumulate)
        state = step(state, batch)
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
        assert float(state.metrics["loss"][1]) == 0


class OnlyNormed(nnx.Module):
    """A model with running statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.down = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.down(self.norm(x))


class Normed(nnx.Module):
    """A model with running statistics and stored random state."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x_bd):
        return self.out(self.drop(self.norm(x_bd)))


def test_running_statistics_and_random_counts_are_kept(toy, one):
    optimizer = optax.sgd(0.0)
    view, state, _ = train.init_state(
        Normed, optimizer, key=0, mesh=one, metric_names=("grad_norm", "input", "loss")
    )
    step = train.make_step(view, toy.quiet_objective, optimizer, mesh=one)
    model = view.model(*jax.tree.map(jnp.copy, (state.params, state.model_state)))
    stream = toy.Numbers()
    for _ in range(2):
        batch = next(stream)
        state = step(state, batch)
        model(batch["x"])
    expected = View.of(model).state
    assert expected.keys() == state.model_state.keys()
    np.testing.assert_allclose(state.model_state["norm/mean"], expected["norm/mean"], rtol=1e-5)
    counts = [path for path in expected if path.endswith("count")]
    assert counts
    for path in counts:
        assert int(state.model_state[path]) == int(expected[path])
    assert step.num_compilations == 1


def test_metric_names_come_from_shapes(toy, one):
    view, _, _ = toy.make_state(one, optax.sgd(1.0))
    carry = jax.eval_shape(toy.carry())
    names = train.metric_names(view, toy.objective, next(toy.Numbers()), carry)
    assert names == ("grad_norm", "input", "loss")


def test_metrics_that_the_state_does_not_sum_are_refused(toy, one):
    view, state, _ = toy.make_state(one, optax.sgd(1.0), metric_names=("loss", "grad_norm"))
    step = train.make_step(view, toy.objective, optax.sgd(1.0), mesh=one)
    with pytest.raises(UsageError, match=r"measures \['input', 'loss'\].*metric_names"):
        step(state, next(toy.Numbers()))


def test_a_carry_that_changes_is_refused(toy, one):
    def forgetful(model, batch, carry, key):
        value, weight = masked_mean(model(batch["x"])[:, 0], batch["mask"])
        return Loss(value, weight, {"input": (value, weight)}, None)

    view, state, _ = toy.make_state(one, optax.sgd(1.0), carry=toy.carry())
    step = train.make_step(view, forgetful, optax.sgd(1.0), mesh=one)
    with pytest.raises(UsageError, match="must return the carry"):
        step(state, next(toy.Numbers()))


def test_rows_that_do_not_divide_into_micro_batches_are_refused(toy, one):
    view, state, _ = toy.make_state(one, optax.sgd(1.0))
    step = train.make_step(view, toy.objective, optax.sgd(1.0), mesh=one, accumulate=3)
    with pytest.raises(UsageError, match="8 rows does not divide into accumulate=3"):
        step(state, next(toy.Numbers()))
    with pytest.raises(UsageError, match="accumulate=0"):
        train.make_step(view, toy.objective, optax.sgd(1.0), mesh=one, accumulate=0)
