"""What a recurrent state does: how much its gates keep, how sharply it reads, how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import Params, UsageError, View
from jaxlab.nn import BlockRecurrentAttention, Segment
from jaxlab.nn.attention import blocks_by_head

Statistics = dict[str, jax.Array]


def state_statistics(
    view: View, params: Params, tokens_bt: jax.Array, carry: Any, start_bt: jax.Array
) -> dict[str, Statistics]:
    """Statistics of every recurrent layer of a stack while it reads one segment.

    Works under jit. In a training, `run_training(watch=lambda state: ...)` writes what a function
    of the state gives every `watch_every` steps.

    Args:
      view: of a stack called as `(tokens_bt, carry, start_bt)` whose carry is laid out as that of
        `models.TransformerLM`, and whose layers do not run inside a scan over blocks.
      params: `{path: array}`.
      tokens_bt, carry, start_bt: the arguments of the call.

    Returns:
      `{path of the layer: scalars}`, over all rows, blocks, states and heads:
        kept, kept_low, kept_high: mean, 5% and 95% quantile of what the (last) gate keeps of the
          state, in [0, 1]. taken: mean of what it takes in of the candidate.
        norm: root mean square of the state after a block. change: norm of its change in a block
          over its own norm.
        entropy_self, entropy_tokens, entropy_read: of the weights with which states read states,
          states read tokens, and tokens read states, over that of uniform weights: 1 reads a plain
          mean, 0 one place.

    Raises:
      UsageError: a model without a recurrent layer.

    >>> from jaxlab.models import TransformerLM, TransformerLMConfig
    >>> config = TransformerLMConfig(
    ...     width=32, depth=2, num_heads=2, window=8, recurrent_layers=(-1,), num_states=4)
    >>> model = TransformerLM(config, rngs=nnx.Rngs(0))
    >>> tokens, start = jnp.zeros((1, 16), jnp.int32), jnp.zeros((1, 16), bool)
    >>> view = View.of(model)
    >>> found = state_statistics(view, view.params, tokens, model.init_carry(1), start)
    >>> round(float(found["blocks/1/attention"]["kept"]), 1)    # a fixed gate starts half open
    0.5
    """
    model = view.model(params)
    layers = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, BlockRecurrentAttention)
    }
    if not layers:
        raise UsageError("the model has no recurrent layer; set recurrent_layers, e.g. -2")
    norms = {path: path.rpartition("/")[0] + "/attention_norm" for path in layers}
    taps = view.taps((tokens_bt, carry, start_bt), norms.values(), params=params)
    segment = Segment.of(start_bt, carry["length"])
    return {
        path: layer_statistics(
            layer, taps[norms[path]], segment, carry["blocks"][path.split("/")[-2]]
        )
        for path, layer in layers.items()
    }


def layer_statistics(
    layer: BlockRecurrentAttention, x_btd: jax.Array, segment: Segment,
    carry: Mapping[str, jax.Array],
) -> Statistics:
    """`state_statistics` of one layer, from its normalised input [b, t, d]."""
    cell = layer.cell
    _, k, v = layer.attention.heads(x_btd)

    def watched(c_brd, k_hbsk, v_hbsk, bias_bs):
        c_next_brd, read = cell(c_brd, k_hbsk, v_hbsk, bias_bs)
        own, tokens = cell.queries(c_brd)
        to_self, to_tokens = weights(own, read[0]), weights(tokens, k_hbsk, bias_bs)
        heads = jnp.concatenate([to_self @ read[1], to_tokens @ v_hbsk])
        kept, taken = cell.update.gate_values(
            c_brd, heads.transpose(1, 2, 0, 3).astype(c_brd.dtype)
        )
        seen_b = (bias_bs == 0).sum(axis=1)
        return c_next_brd, {
            "read": read,
            "kept": kept,
            "taken": taken,
            "norm": rms(c_next_brd),
            "change": rms(c_next_brd - c_brd) / rms(c_brd),
            "entropy_self": entropy(to_self) / jnp.log(to_self.shape[-1]),
            "entropy_tokens": entropy(to_tokens) / jnp.log(seen_b)[:, None],
        }

    _, found = layer.scan_states(k, v, segment, carry, cell=watched)
    q_hbjtk = blocks_by_head(layer.state_queries(x_btd), layer.attention.window)
    state_keys = found.pop("read")[0].transpose(1, 2, 0, 3, 4)
    found["entropy_read"] = entropy(weights(q_hbjtk, state_keys)) / jnp.log(cell.num_states)
    low, high = jnp.quantile(found["kept"], jnp.array([0.05, 0.95]))
    return {name: x.mean() for name, x in found.items()} | {"kept_low": low, "kept_high": high}


def weights(q: jax.Array, k: jax.Array, bias_bs: jax.Array | None = None) -> jax.Array:
    """Softmax weights [..., queries, keys] of scaled queries, in float32."""
    logits = jnp.einsum("...tk,...sk->...ts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits if bias_bs is None else logits + bias_bs[:, None], axis=-1)


def entropy(weights: jax.Array) -> jax.Array:
    """Entropy of the last axis, in nats."""
    return -jax.scipy.special.xlogy(weights, weights).sum(axis=-1)


def rms(x_brd: jax.Array) -> jax.Array:
    """Root mean square of the states of a row, [b], in float32."""
    return jnp.sqrt(jnp.square(x_brd.astype(jnp.float32)).mean(axis=(1, 2)))
