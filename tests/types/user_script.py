"""A user's script, checked for types and not run: what the public names promise to a checker."""

from __future__ import annotations

from typing import assert_type

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab import core, models, objectives


def loss_of_a_language_model(tokens_bt: jax.Array) -> jax.Array:
    """The gradient's norm of a small model, as README computes it."""
    config = models.TransformerLMConfig(width=64, depth=3, num_heads=2, window=32)
    model = models.TransformerLM(config, rngs=nnx.Rngs(0))
    view = core.View.of(model)
    assert_type(view, core.View)
    assert_type(view.params, dict[str, jax.Array])
    assert_type(view.num_params, int)

    batch = {"inputs": tokens_bt, "targets": tokens_bt, "mask": tokens_bt == 0}
    loss = objectives.next_token(view.bind(view.params), batch)
    assert_type(loss, core.Loss)
    assert_type(loss.value, jax.Array)
    gradient = jax.grad(lambda params: objectives.next_token(view.bind(params), batch).value)
    return sum((jnp.vdot(g, g) for g in gradient(view.params).values()), jnp.zeros(()))
