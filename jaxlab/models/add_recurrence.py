"""Adds recurrent layers to a decoder that was trained without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.models.transformer_lm import TransformerLM


def add_recurrence(
    model: TransformerLM,
    layers: Sequence[int] = (-2,),
    *,
    rngs: nnx.Rngs,
    window: int | None = None,
    **changes: Any,
) -> TransformerLM:
    """A copy of a trained model some of whose layers own a recurrent state (arXiv 2203.07852).

    It starts with the logits of the model: the rows of the output projection that take in what
    tokens read of the state are zero. The first steps of training change them; from then on
    gradients reach the cell.

    Args:
      model: any `TransformerLM` whose `layers` are plain attention.
      layers: those that get a state; negative from the end.
      rngs: for the new parameters.
      window: for a model with full attention, the length of a block. Texts of up to one window give
        the same logits; what is further back only the state can carry.
      changes: other fields of the config, such as `num_states`, `gate`, `update`.

    Returns:
      A new model; the old one is unchanged.

    Raises:
      UsageError: layers that have a state already or do not exist, full attention without a
        `window`, learned positions, a change that would alter what the model computes.

    >>> from jaxlab.models import TransformerLMConfig
    >>> config = TransformerLMConfig(width=32, depth=2, num_heads=2, window=8)
    >>> trained = TransformerLM(config, rngs=nnx.Rngs(0))
    >>> grown = add_recurrence(trained, (-1,), num_states=4, rngs=nnx.Rngs(1))
    >>> tokens = jnp.arange(16)[None]
    >>> bool(jnp.allclose(grown(tokens)[0], trained(tokens)[0], atol=1e-5))
    True
    """
    old = model.config
    allowed = (
        "num_states",
        "gate",
        "gate_bias",
        "update",
        "dropout_rate",
        "attention_dropout",
        "scan_layers",
        "remat",
    )
    for name in changes:
        if name not in allowed:
            raise UsageError(
                f"{name}={changes[name]!r} would change the trained model; add_recurrence takes "
                f"window, {', '.join(allowed)}"
            )
    if window is not None and old.window is not None and window != old.window:
        raise UsageError(f"window={window}, but the model was trained with window={old.window}")
    if old.window is None:
        changes |= {"window": window, "include_self": True}
    config = dataclasses.replace(old, recurrent_layers=(*old.recurrent_layers, *layers), **changes)
    new = {layer % old.depth for layer in layers}
    for layer in sorted(new):
        if old.slots()[layer] != "attention":
            raise UsageError(f"layer {layer} has a state already; choose among plain layers")
    view = View.of(TransformerLM(config, rngs=rngs))
    params = dict(view.params)
    for path, value in View.of(model).params.items():
        parts = path.split("/")
        if parts[0] == "blocks" and int(parts[1]) in new and parts[2] == "attention":
            path = "/".join([*parts[:3], *parts[2:]])  # the old attention is now a part
            if parts[3] == "output":
                value = jnp.concatenate([value, jnp.zeros_like(value)])
        params[path] = value
    return cast(TransformerLM, view.model(params))
