from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.nn import DualUpdate, FixedGate, GRUGate, LSTMGate, SingleUpdate, SkipUpdate

B, R, D, H, K, F = 2, 3, 8, 4, 4, 12
GATES = {"fixed": FixedGate, "lstm": LSTMGate, "gru": GRUGate}


def make(update, gate):
    mlp = () if update is SkipUpdate else (F,)
    return update(D, H, K, *mlp, gate=GATES[gate], rngs=nnx.Rngs(0))


def inputs():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s).astype(np.float32) for s in ((B, R, D), (B, R, H, K)))


def set_biases(module, value):
    """Every bias of a gate at `value`."""
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        if path[-1] in ("bias", "forget_bias", "take_bias"):
            variable[...] = jnp.full_like(variable[...], value)
            nnx.update(module, nnx.from_flat_state([(path, variable)]))
    return module


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("update", [SkipUpdate, SingleUpdate, DualUpdate])
def test_every_gate_and_configuration_keeps_the_shape_and_trains_all_its_parameters(update, gate):
    module, (c, heads) = make(update, gate), inputs()
    graph, params = nnx.split(module)

    def loss(params):
        return jnp.square(nnx.merge(graph, params)(c, heads)).sum()

    assert module(c, heads).shape == (B, R, D)
    for path, grad in nnx.to_flat_state(jax.grad(loss)(params)):
        assert np.abs(grad[...]).max() > 0, path


@pytest.mark.parametrize("update", [SkipUpdate, SingleUpdate, DualUpdate])
@pytest.mark.parametrize("gate", ["fixed", "gru"])
def test_an_open_gate_keeps_the_state_and_a_closed_one_replaces_it(update, gate):
    c, heads = inputs()
    kept = set_biases(make(update, gate), 40.0)(c, heads)
    np.testing.assert_allclose(kept, c, atol=1e-5)
    new = set_biases(make(update, gate), -40.0)
    np.testing.assert_allclose(new(c, heads), new(c + 1.0, heads), atol=1e-5)
    assert np.abs(np.asarray(new(c, heads)) - c).max() > 0.01


def test_the_single_configuration_is_bounded_by_tanh():
    c, heads = inputs()
    z = set_biases(make(SingleUpdate, "fixed"), -40.0)(c, 100 * heads)
    assert np.abs(z).max() <= 1.0 + 1e-6


def test_gates_start_where_the_paper_starts_them():
    heads = np.zeros((B, R, H, K), np.float32)
    kept, taken = make(SkipUpdate, "lstm").gate_values(None, heads)
    np.testing.assert_allclose(kept, 0.73, atol=0.08)  # sigmoid(+1), bias N(0, 0.1)
    np.testing.assert_allclose(taken, 0.27, atol=0.08)
    kept, taken = make(SkipUpdate, "gru").gate_values(None, heads)
    np.testing.assert_allclose(kept, 0.73, atol=0.08)
    np.testing.assert_allclose(kept + taken, 1.0, atol=1e-6)
    kept, _ = FixedGate(1000, bias=3.0, rngs=nnx.Rngs(0)).values(heads)
    assert abs(float(jnp.log(kept / (1 - kept)).mean()) - 3.0) < 0.02
