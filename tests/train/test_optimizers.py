from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import train
from jaxlab.core import UsageError

STEPS = 40


def rates(**fields) -> np.ndarray:
    rate = train.schedule(train.OptimizerConfig(**fields), STEPS)
    return np.array([float(rate(done)) for done in range(STEPS)])


def warm(n, warmup):
    return np.minimum(n / warmup, 1.0)


N = np.arange(1, STEPS + 1)


def test_constant_rate():
    np.testing.assert_allclose(rates(schedule="constant", learning_rate=0.3), 0.3, rtol=1e-6)
    found = rates(schedule="constant", learning_rate=0.3, warmup_steps=10)
    np.testing.assert_allclose(found, 0.3 * warm(N, 10), rtol=1e-6)


def test_cosine_rate_ends_at_the_end_rate():
    found = rates(schedule="cosine", learning_rate=2.0, warmup_steps=8, end_rate=0.1)
    part = np.clip((N - 8) / (STEPS - 8), 0, 1)
    expected = 2.0 * warm(N, 8) * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * part)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] == pytest.approx(0.2)


def test_linear_rate_ends_at_the_end_rate():
    found = rates(schedule="linear", learning_rate=2.0, warmup_steps=8, end_rate=0.25)
    part = np.clip((N - 8) / (STEPS - 8), 0, 1)
    np.testing.assert_allclose(found, 2.0 * warm(N, 8) * (1 - 0.75 * part), rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 10])
def test_rsqrt_rate_is_the_papers(warmup):
    found = rates(schedule="rsqrt", learning_rate=1.0, warmup_steps=warmup)
    expected = warm(N, max(warmup, 1)) / np.sqrt(np.maximum(N, warmup))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_only_the_named_parameters_decay(name):
    config = train.OptimizerConfig(
        name, learning_rate=0.1, schedule="constant", weight_decay=0.5, momentum=None
    )
    params = {"a/kernel": jnp.full((3, 2), 2.0), "a/bias": jnp.full(3, 2.0)}
    zeros = {path: jnp.zeros_like(p) for path, p in params.items()}
    optimizer = train.build_optimizer(config, STEPS)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a/kernel"], -0.1 * 0.5 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(updates["a/bias"], 0.0)


def test_a_decay_pattern_that_fits_nothing_is_refused():
    config = train.OptimizerConfig(weight_decay=0.1, decay_params=("*/kernels",))
    with pytest.raises(UsageError, match="kernels.*did you mean 'a/kernel'"):
        train.build_optimizer(config, STEPS).init({"a/kernel": jnp.ones(2)})


def test_adamw_is_optax_adamw():
    config = train.OptimizerConfig(
        learning_rate=0.1, schedule="constant", weight_decay=0.01, decay_params=("*",), b2=0.98
    )
    ours = train.build_optimizer(config, STEPS)
    theirs = optax.adamw(0.1, b2=0.98, weight_decay=0.01)
    params = {"a": jnp.array([1.0, -2.0])}
    states = ours.init(params), theirs.init(params)
    for grad in (jnp.array([0.5, 2.0]), jnp.array([-1.0, 0.1])):
        a, first = ours.update({"a": grad}, states[0], params)
        b, second = theirs.update({"a": grad}, states[1], params)
        states = first, second
        np.testing.assert_allclose(a["a"], b["a"], rtol=1e-6)


def test_the_gradient_is_cut_to_the_norm():
    config = train.OptimizerConfig(
        "sgd", learning_rate=1.0, schedule="constant", momentum=None, clip_norm=1.0
    )
    optimizer, params = train.build_optimizer(config, STEPS), {"a": jnp.zeros(2)}
    updates, _ = optimizer.update({"a": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6, -0.8], rtol=1e-6)


def test_an_adafactor_step_is_relative_to_the_parameter():
    config = train.OptimizerConfig(
        "adafactor", learning_rate=0.01, schedule="constant", momentum=None
    )
    optimizer, params = train.build_optimizer(config, STEPS), {"a": jnp.full(4, 10.0)}
    updates, _ = optimizer.update({"a": jnp.full(4, 1e-3)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.01 * 10.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_steps", -1),
        ("end_rate", 1.5),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("momentum", 1.0),
        ("name", "adam"),
        ("schedule", "step"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UsageError, match=f"{field}={value!r}; it takes"):
        train.OptimizerConfig(**{field: value})


def test_a_warm_up_longer_than_the_run_is_refused():
    config = train.OptimizerConfig(schedule="cosine", warmup_steps=50)
    with pytest.raises(UsageError, match="warmup_steps=50 leaves nothing of steps=40"):
        train.schedule(config, STEPS)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_padding_changes_no_step_and_stays_zero(name):
    config = train.OptimizerConfig(name, weight_decay=0.1, decay_params=("table",))
    rng = np.random.default_rng(0)
    params = {"table": rng.normal(size=(260, 128)), "scale": rng.normal(size=(3,))}
    params = {path: jnp.asarray(p, jnp.float32) for path, p in params.items()}

    def padded(arrays):
        return {**arrays, "table": jnp.pad(arrays["table"], ((0, 124), (0, 0)))}

    plain = train.build_optimizer(config, STEPS)
    ours = train.build_optimizer(config, STEPS, {"table": 124})

    def trained(optimizer, params, pad):
        state = optimizer.init(params)
        for seed in range(3):
            noise = np.random.default_rng(seed).normal(size=(260, 128))
            grads = pad({"table": jnp.asarray(noise, jnp.float32), "scale": jnp.ones(3)})
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    want = trained(plain, params, lambda arrays: arrays)
    got = trained(ours, padded(params), padded)
    assert not got["table"][260:].any()
    np.testing.assert_array_equal(got["table"][:260], want["table"])
    np.testing.assert_array_equal(got["scale"], want["scale"])
