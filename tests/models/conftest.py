"""Tiny models of every kind and the compiled functions that the tests of this room share."""

from __future__ import annotations

import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import View
from jaxlab.models import TransformerLM, TransformerLMConfig

WINDOW, VOCAB, WIDTH = 4, 20, 16
ROWS, T = 4, 28  # seven blocks; the tests keep to one shape, so that a model compiles once
SIZES = {
    "vocab_size": VOCAB,
    "width": WIDTH,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 16,
    "window": WINDOW,
    "num_states": 3,
    "head_scale": 3.0,
    "dtype": "float32",
}
KINDS = {
    "plain": {"window": None},
    "sliding": {},
    "recurrent": {"recurrent_layers": (0,)},
    "rotary": {
        "recurrent_layers": (-1,),
        "position": "rotary",
        "num_kv_heads": 1,
        "include_self": True,
    },
    "scanned": {"recurrent_layers": (0,), "depth": 3, "scan_layers": True, "remat": True},
    "feedback": {
        "depth": 3,
        "recurrent_layers": (1,),
        "state_readers": (0, 2),
        "gate": "lstm",
        "update": "dual",
    },
    "learned": {"window": None, "position": "learned", "max_length": 28, "normalise": False},
}


@functools.cache
def model(kind: str, **kwargs) -> TransformerLM:
    """A model in which no term hides: all its parameters differ from where they start."""
    config = TransformerLMConfig(**{**SIZES, **KINDS[kind], **kwargs})
    view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    params = {
        path: p + 0.15 * rng.normal(size=p.shape).astype(np.float32)
        for path, p in view.params.items()
    }
    return view.model(params)


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (ROWS, T)), jnp.int32)


@jax.jit
def call(model, tokens_bt, carry, start_bt, key):
    return model(tokens_bt, carry, start_bt, key=key)


def run(model, tokens_bt=TOKENS, carry=None, start_bt=None, key=None):
    """Logits and carry of the compiled model."""
    carry = model.init_carry(tokens_bt.shape[0]) if carry is None else carry
    start_bt = jnp.zeros(tokens_bt.shape, bool) if start_bt is None else start_bt
    return call(model, tokens_bt, carry, start_bt, key)


@jax.jit
def influence(model, x_btd, carry, start_bt):
    """How strongly the logits at t of row 0 depend on its embedded input at s, [t, s]."""
    direction_v = jax.random.normal(jax.random.key(0), (VOCAB,))

    def read(x_btd):
        with mock.patch.object(TransformerLM, "embed", lambda self, tokens: x_btd):
            logits, _ = model(jnp.zeros(x_btd.shape[:2], jnp.int32), carry, start_bt)
        return logits[0] @ direction_v

    return jnp.abs(jax.jacrev(read)(x_btd)[:, 0]).sum(axis=-1)


@pytest.fixture(scope="session")
def tiny() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        model=model,
        tokens=TOKENS,
        run=run,
        influence=influence,
        window=WINDOW,
        vocab=VOCAB,
        width=WIDTH,
    )
