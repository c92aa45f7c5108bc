from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.probes import state_statistics

SIZES = {
    "vocab_size": 20, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16, "window": 4,
    "num_states": 3, "dtype": "float32",
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 16)), jnp.int32)
PATH = "blocks/1/attention"


def statistics(changes=None, **kwargs):
    """Statistics of one segment, and the view; `changes` replaces parameters."""
    config = TransformerLMConfig(**{**SIZES, "recurrent_layers": (1,), **kwargs})
    view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    params = {**view.params, **(changes(view.params) if changes else {})}
    carry = view.model(params).init_carry(2)
    read = jax.jit(lambda params: state_statistics(
        view, params, TOKENS, carry, jnp.zeros(TOKENS.shape, bool)
    ))
    return read(params)[PATH], view, params


def test_a_gate_says_what_it_keeps():
    def at(value):
        return lambda params: {f"{PATH}/cell/update/gate/bias": jnp.full((16,), value)}

    half, open_, closed = (statistics(at(value))[0] for value in (0.0, 30.0, -30.0))
    assert half["kept"] == half["kept_low"] == half["kept_high"] == half["taken"] == 0.5
    assert open_["kept"] > 0.999 and open_["change"] < 1e-6
    assert closed["kept"] < 0.001 and closed["taken"] > 0.999 and closed["change"] > 0.1


def test_an_open_gate_leaves_the_norm_of_the_initial_state():
    found, view, params = statistics(
        lambda params: {f"{PATH}/cell/update/gate/bias": jnp.full((16,), 30.0)}
    )
    initial = np.asarray(params[f"{PATH}/cell/initial"])
    np.testing.assert_allclose(found["norm"], np.sqrt(np.square(initial).mean()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("entropy_self", "cell/scale"),
        ("entropy_tokens", "cell/token_scale"),
        ("entropy_read", "state_scale"),
    ],
)
def test_entropy_is_that_of_a_mean_without_scale_and_falls_with_it(name, scale):
    flat, soft, sharp = (
        statistics(lambda params, v=value: {f"{PATH}/{scale}": jnp.full((2,), v)})[0][name]
        for value in (0.0, 2.0, 1000.0)
    )
    np.testing.assert_allclose(flat, 1.0, atol=1e-5)
    assert sharp < 0.35 < soft < 1.0


def test_watching_does_not_change_what_the_state_becomes():
    found, view, params = statistics(gate="lstm", update="dual")
    _, carry = view.apply(params, TOKENS)
    state = np.asarray(carry["blocks"]["1"]["state"])
    assert 0 < found["norm"] < 10 and np.isfinite(state).all()
    one, _, _ = statistics(gate="lstm", update="dual", window=16)
    _, carry = TransformerLM(
        TransformerLMConfig(
            **{**SIZES, "recurrent_layers": (1,), "gate": "lstm", "update": "dual", "window": 16}
        ),
        rngs=nnx.Rngs(0),
    )(TOKENS)
    last = np.sqrt(np.square(carry["blocks"]["1"]["state"]).mean(axis=(1, 2))).mean()
    np.testing.assert_allclose(one["norm"], last, rtol=1e-5)  # one block: its norm is the last


def test_a_model_without_a_state_is_refused():
    with pytest.raises(UsageError, match="no recurrent layer; set recurrent_layers"):
        statistics(recurrent_layers=())
