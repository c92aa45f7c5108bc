from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.models import TransformerLM, TransformerLMConfig, add_recurrence
from jaxlab.objectives import next_token


def loss(view, params, tokens):
    batch = {
        "inputs": tokens,
        "targets": jnp.roll(tokens, -1, 1),
        "mask": tokens >= 0,
        "start": jnp.zeros(tokens.shape, bool),
    }
    return next_token(view.bind(params), batch).value


@pytest.mark.parametrize("update", ["skip", "dual"])
def test_the_grown_model_starts_with_the_logits_of_the_old_and_learns_to_use_its_state(
    tiny, update
):
    old = tiny.model("sliding")
    new = add_recurrence(old, (0,), update=update, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(tiny.run(new)[0], tiny.run(old)[0], atol=1e-5)
    view = View.of(new)
    gradient = jax.jit(jax.grad(lambda params: loss(view, params, tiny.tokens)))
    first = gradient(view.params)
    rows = np.abs(first["blocks/0/attention/attention/output/kernel"]).max(axis=(1, 2))
    assert (rows > 0).all()  # also those of the state, which are still zero
    assert np.abs(first["blocks/0/attention/cell/value/kernel"]).max() == 0
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, view.params, first)
    second = gradient(moved)
    assert np.abs(second["blocks/0/attention/cell/value/kernel"]).max() > 0
    assert loss(view, moved, tiny.tokens) < loss(view, view.params, tiny.tokens)


def test_full_attention_becomes_a_window_and_keeps_texts_of_one_window():
    config = TransformerLMConfig(
        vocab_size=20, width=16, depth=2, num_heads=2, window=None, dtype="float32"
    )
    old = TransformerLM(config, rngs=nnx.Rngs(0))
    new = add_recurrence(old, window=8, num_states=3, rngs=nnx.Rngs(1))
    tokens = jnp.arange(8)[None]
    np.testing.assert_allclose(new(tokens)[0], old(tokens)[0], atol=1e-5)
    with pytest.raises(UsageError, match="need a window: set window"):
        add_recurrence(old, rngs=nnx.Rngs(1))


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("recurrent", {"layers": (0,)}, "layer 0 has a state already"),
        ("sliding", {"layers": (5,)}, "recurrent_layers holds 5, but depth=2"),
        ("sliding", {"window": 9}, "window=9, but the model was trained with window=4"),
        ("sliding", {"width": 8}, "width=8 would change the trained model; add_recurrence takes"),
        ("learned", {"window": 4}, "position='learned' knows no carried window"),
    ],
)
def test_what_cannot_be_grown_is_refused_in_one_line(tiny, kind, kwargs, message):
    with pytest.raises(UsageError, match=message) as error:
        add_recurrence(tiny.model(kind), rngs=nnx.Rngs(0), **kwargs)
    assert "\n" not in str(error.value)
