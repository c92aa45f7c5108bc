from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.nn import Rotary
from jaxlab.nn import reading as reading_module
from jaxlab.probes import state_statistics

SIZES = {
    "vocab_size": 20,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 16,
    "window": 4,
    "num_states": 3,
    "dtype": "float32",
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 16)), jnp.int32)
PATH = "blocks/1/attention"


def statistics(changes=None, **kwargs):
    """Statistics of one segment, and the view; `changes` replaces parameters."""
    config = TransformerLMConfig(**{**SIZES, "recurrent_layers": (1,), **kwargs})
    view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    params = {**view.params, **(changes(view.params) if changes else {})}
    carry = view.model(params).init_carry(2)
    read = jax.jit(
        lambda view: state_statistics(view, TOKENS, carry, jnp.zeros(TOKENS.shape, bool))
    )
    return read(view.at(params))[PATH], view, params


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
        ("entropy_window", "attention/scale"),
    ],
)
def test_entropy_is_that_of_a_mean_without_scale_and_falls_with_it(name, scale):
    flat, soft, sharp = (
        statistics(lambda params, v=value: {f"{PATH}/{scale}": jnp.full((2,), v)})[0][name]
        for value in (0.0, 2.0, 1000.0)
    )
    np.testing.assert_allclose(flat, 1.0, atol=1e-5)
    assert sharp < 0.35 < soft < 1.0


def window_entropy(layer, x_btd, doc_bt):
    """Mean entropy over that of uniform weights, token by token in NumPy; fresh rows."""
    attention, (q, k, _) = layer.attention, layer.attention.heads(x_btd)
    if isinstance(attention.position, Rotary):
        q, k = (attention.position(a, np.arange(x_btd.shape[1])) for a in (q, k))
    bias_hm = np.asarray(attention._bias(np.arange(attention.window + 1)), np.float64)
    nearest, found = 0 if attention.include_self else 1, []
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = [
            s
            for s in range(t + 1)
            if nearest <= t - s < nearest + attention.window and doc_bt[b, s] == doc_bt[b, t]
        ]
        if len(seen) > 1:
            logits = np.array(
                [
                    float(q[b, t, h] @ k[b, s, h // (q.shape[2] // k.shape[2])]) + bias_hm[h, t - s]
                    for s in seen
                ]
            )
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            found.append(-(weights * np.log(weights)).sum() / np.log(len(seen)))
    return np.mean(found)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"head_scale": 3.0},
        {"position": "rotary", "num_kv_heads": 1, "include_self": True, "normalise": False},
    ],
)
def test_entropy_of_the_window_is_that_of_its_weights_by_token(kwargs):
    config = TransformerLMConfig(**{**SIZES, "depth": 1, "recurrent_layers": (0,), **kwargs})
    view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    params = {
        path: p + 0.3 * np.random.default_rng(i).normal(size=p.shape).astype(np.float32)
        for i, (path, p) in enumerate(view.params.items())
    }
    view = view.at(params)
    model = view.model()
    start = jnp.zeros(TOKENS.shape, bool).at[0, 6].set(True).at[1, 8].set(True)
    # In two calls, so that the window before comes with the carry; tiles of a part of the window.
    with mock.patch.object(reading_module, "tile_size", lambda w: 2):
        _, carry = model(TOKENS[:, :8], None, start[:, :8])
        found = state_statistics(view, TOKENS, model.init_carry(2), start)
        late = state_statistics(view, TOKENS[:, 8:], carry, start[:, 8:])
        early = state_statistics(view, TOKENS[:, :8], model.init_carry(2), start[:, :8])
    x_btd = model.blocks[0].attention_norm(model.embed(TOKENS))
    doc_bt = np.cumsum(start, axis=1)
    path, name = "blocks/0/attention", "entropy_window"
    want = window_entropy(model.blocks[0].attention, x_btd, doc_bt)
    np.testing.assert_allclose(found[path][name], want, rtol=1e-4)
    assert want < 0.95
    # A token that sees fewer than two is not counted: so many do in each half.
    seen = (
        np.array(
            [
                [
                    sum(doc_bt[b, s] == doc_bt[b, t] for s in range(max(t - 4, 0), t))
                    for t in range(16)
                ]
                for b in range(2)
            ]
        )
        + config.include_self
        - (config.include_self & (np.arange(16) >= 4))
    )
    halves = [(seen[:, :8] > 1).sum(), (seen[:, 8:] > 1).sum()]
    joined = np.average([early[path][name], late[path][name]], weights=halves)
    np.testing.assert_allclose(joined, want, rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"scan_layers": True, "remat": True}])
def test_a_layer_whose_state_others_read_is_watched_like_any(kwargs):
    feedback, view, params = statistics(
        depth=4, state_readers=(0, 2, 3), recurrent_layers=(1,), gate="lstm", **kwargs
    )
    model = view.model(params)
    # Readers below change what the layer reads: block by block, by hand.
    carry, changes, norms = model.init_carry(2), [], []
    for j in range(4):
        before = carry["blocks"]["1"]["state"]
        if j == 0:
            before = model.blocks[1].attention.cell.initial_state(2)
        _, carry = model(TOKENS[:, 4 * j : 4 * j + 4], carry)
        after = carry["blocks"]["1"]["state"]
        size = [np.sqrt(np.square(x).mean(axis=(1, 2))) for x in (after, before, after - before)]
        norms.append(size[0])
        changes.append(size[2] / size[1])
    np.testing.assert_allclose(feedback["norm"], np.mean(norms), rtol=1e-5)
    np.testing.assert_allclose(feedback["change"], np.mean(changes), rtol=1e-5)
    assert all(
        0 < feedback[f"entropy_{name}"] <= 1.0001 for name in ("self", "tokens", "read", "window")
    )


def test_no_more_than_the_weights_of_one_block_are_held():
    def temporaries(length):
        config = TransformerLMConfig(
            **{**SIZES, "window": 64, "depth": 1, "recurrent_layers": (0,), "num_states": 64}
        )
        view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
        tokens = jnp.zeros((2, length), jnp.int32)
        carry = view.model().init_carry(2)
        read = jax.jit(
            lambda view: state_statistics(view, tokens, carry, jnp.zeros(tokens.shape, bool))
        )
        return read.lower(view).compile().memory_analysis().temp_size_in_bytes

    of_one_block = 4 * 2 * 2 * 64 * 128  # float32 weights [b, h, w, 2 w]
    assert temporaries(64 * 17) - temporaries(64) < 2 * of_one_block


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


def test_tokens_that_are_not_whole_windows_are_refused():
    with pytest.raises(UsageError, match="16 tokens is not a multiple of window=5; nearest: 15"):
        statistics(window=5)


def test_a_model_without_a_state_is_refused():
    with pytest.raises(UsageError, match="no recurrent layer; set recurrent_layers"):
        statistics(recurrent_layers=())
