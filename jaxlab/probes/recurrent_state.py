"""What a recurrent state does: how much its gates keep, how sharply it reads, how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, View, as_view
from jaxlab.nn import Attention, BlockRecurrentAttention, Heads, Segment
from jaxlab.nn.reading import blocks_by_head
from jaxlab.nn.tiles import MASKED

Statistics = dict[str, jax.Array]


def state_statistics(
    view: View | nnx.Module, tokens_bt: jax.Array, carry: Any, start_bt: jax.Array
) -> dict[str, Statistics]:
    """Statistics of every recurrent layer of a stack while it reads one segment.

    The model reads the segment block by block in evaluation mode, so that the attention weights of
    only one block are in memory, and layers may read a state above them. Works under jit. During
    training, `watch=` writes the values of such a function every `watch_every` steps.

    Args:
      view: a stack or its view, called as `(tokens_bt, carry, start_bt)`. Its carry is laid out as
        in `models.TransformerLM`, and its recurrent layers do not run inside a scan over layers.
      tokens_bt, carry, start_bt: the arguments of the call; t is a multiple of the windows.

    Returns:
      `{path of the layer: scalars}`, over all rows, blocks, states and heads:
        kept, kept_low, kept_high: mean, 5% and 95% quantile of the share of the state that the
          (last) gate keeps, in [0, 1]. taken: mean of the share of the candidate that it takes.
        norm: root mean square of the state after a block. change: norm of its change in a block
          divided by its norm.
        entropy_self, entropy_tokens, entropy_read, entropy_window: entropy of the weights with
          which states read states, states read tokens, tokens read states, and tokens read their
          window, divided by the entropy of uniform weights: 1 reads a plain mean, 0 a single place.
          The last is over tokens that see two or more; NaN if there are none.

    Raises:
      UsageError: a model without a recurrent layer; tokens that are not whole windows; a recurrent
        layer inside a scan.

    >>> from jaxlab.models import TransformerLM, TransformerLMConfig
    >>> config = TransformerLMConfig(
    ...     width=32, depth=2, num_heads=2, window=8, recurrent_layers=(-1,), num_states=4)
    >>> model = TransformerLM(config, rngs=nnx.Rngs(0))
    >>> tokens, start = jnp.zeros((1, 16), jnp.int32), jnp.zeros((1, 16), bool)
    >>> statistics = state_statistics(model, tokens, model.init_carry(1), start)
    >>> round(float(statistics["blocks/1/attention"]["kept"]), 1)    # a fixed gate starts half open
    0.5
    """
    view = as_view(view).evaluating()
    layers = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(view.model())
        if isinstance(module, BlockRecurrentAttention)
    }
    if not layers:
        raise UsageError("the model has no recurrent layer; set recurrent_layers, e.g. -2")
    for layer in layers.values():
        layer.attention.require_blocks(tokens_bt.shape[1])
    norms = {path: path.rpartition("/")[0] + "/attention_norm" for path in layers}
    size = math.lcm(*(layer.attention.window for layer in layers.values()))

    def read(carry, xs):
        tokens_bw, start_bw = xs
        taps = view.taps((tokens_bw, carry, start_bw), ["", *norms.values()])
        segment = Segment.of(start_bw, carry["length"])
        by_layer = {
            path: layer_statistics(
                layer, taps[norms[path]], segment, carry["blocks"][path.split("/")[-2]]
            )
            for path, layer in layers.items()
        }
        return taps[""][1], by_layer

    def parts(x_bt: jax.Array) -> jax.Array:
        return x_bt.reshape(x_bt.shape[0], -1, size).swapaxes(0, 1)

    _, by_layer = jax.lax.scan(read, carry, (parts(tokens_bt), parts(start_bt)))
    return {path: averages(arrays) for path, arrays in by_layer.items()}


def averages(arrays: Statistics) -> Statistics:
    """The scalars of `state_statistics` from the arrays of `layer_statistics`."""
    low, high = jnp.quantile(arrays["kept"], jnp.array([0.05, 0.95]))
    seeing = arrays.pop("seeing").sum()
    entropy_window = arrays.pop("entropy_window").sum() / seeing
    return {name: x.mean() for name, x in arrays.items()} | {
        "entropy_window": entropy_window,
        "kept_low": low,
        "kept_high": high,
    }


def layer_statistics(
    layer: BlockRecurrentAttention,
    x_btd: jax.Array,
    segment: Segment,
    carry: Mapping[str, jax.Array],
) -> Statistics:
    """`state_statistics` of one layer, from its normalised input [b, t, d].

    The arrays are still to be averaged; `entropy_window` is a sum over heads and `seeing` tokens.
    """
    cell = layer.cell
    heads = Heads(*layer.attention.heads(x_btd))

    def by_head(x_brhk: jax.Array) -> jax.Array:
        return x_brhk.transpose(2, 0, 1, 3)

    def watched(c_brd, key_set, bias_bs):
        c_next_brd, _ = cell(c_brd, key_set, bias_bs)
        read = [by_head(x) for x in cell.keys_values(c_brd)]
        own, tokens = (by_head(x) for x in cell.queries(c_brd))
        k_hbsk, v_hbsk = key_set.by_head(len(tokens))
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
            "entropy_tokens": entropy(to_tokens) / jnp.log(seen_b)[None, :, None],
        }

    _, arrays = layer.scan_states(heads, segment, carry, cell=watched)
    q_hbjtk = blocks_by_head(layer.state_queries(x_btd), layer.attention.window)
    state_keys = arrays.pop("read")[0].transpose(1, 2, 0, 3, 4)
    arrays["entropy_read"] = entropy(weights(q_hbjtk, state_keys)) / jnp.log(cell.num_states)
    arrays["entropy_window"], arrays["seeing"] = window_entropy(
        layer.attention, heads, segment, carry
    )
    return arrays


def window_entropy(
    attention: Attention,
    heads: Heads,
    segment: Segment,
    carry: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Entropy of the weights with which tokens read their window, divided by that of uniform ones.

    Args:
      heads: the result of `attention.heads`.
      segment, carry: as in the call of the attention.

    Returns:
      The sum over all heads and all tokens that see two tokens or more, and its number of terms.
      Only one tile of weights, [h, b, size, w + size], is in memory at a time.
    """
    window = {name: carry[name] for name in ("keys", "values")}
    reading, _ = attention.reading(heads, segment, window)
    q_hbjtk, blocks, before, bias_hst = reading.tiles()
    (h, b, j, w), size = q_hbjtk.shape[:4], bias_hst.shape[2]
    k_hbsk = jnp.concatenate([before.k, blocks.k.reshape(h, b, j * w, -1)], axis=2)
    doc_bs = jnp.concatenate([segment.remembered(w), segment.doc_bt], axis=1)
    q_hbtk = q_hbjtk.reshape(h, b, j * w, -1)
    inside_ts = bias_hst[0].T > MASKED / 2

    def tile(first):
        def cut(x, axis, start, length):
            return jax.lax.dynamic_slice_in_dim(x, start, length, axis)

        doc_bt = cut(doc_bs, 1, first + w, size)
        same_bts = doc_bt[:, :, None] == cut(doc_bs, 1, first, w + size)[:, None]
        seen_bts = inside_ts[None] & same_bts
        q, k = cut(q_hbtk, 2, first, size), cut(k_hbsk, 2, first, w + size)
        logits = jnp.einsum("hbtk,hbsk->hbts", q, k, preferred_element_type=jnp.float32)
        logits += bias_hst.swapaxes(1, 2)[:, None]
        entropy_hbt = entropy(jax.nn.softmax(jnp.where(seen_bts[None], logits, MASKED), axis=-1))
        count_bt = seen_bts.sum(axis=-1)
        several_bt = count_bt > 1
        uniform_bt = jnp.log(jnp.maximum(count_bt, 2))
        shares_hbt = jnp.where(several_bt[None], entropy_hbt / uniform_bt[None], 0)
        return shares_hbt.sum(), h * several_bt.sum()

    return jax.lax.map(tile, jnp.arange(0, j * w, size))


def weights(q: jax.Array, k: jax.Array, bias_bs: jax.Array | None = None) -> jax.Array:
    """Softmax weights [..., queries, keys] of scaled queries, in float32."""
    logits = jnp.einsum("...tk,...sk->...ts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits if bias_bs is None else logits + bias_bs[None, :, None], axis=-1)


def entropy(weights: jax.Array) -> jax.Array:
    """Entropy of the last axis, in nats."""
    return -jax.scipy.special.xlogy(weights, weights).sum(axis=-1)


def rms(x_brd: jax.Array) -> jax.Array:
    """Root mean square of the states of a row, [b], in float32."""
    return jnp.sqrt(jnp.square(x_brd.astype(jnp.float32)).mean(axis=(1, 2)))


def state_metrics(
    view: View | nnx.Module, tokens_bt: jax.Array, start_bt: jax.Array
) -> dict[str, jax.Array]:
    """`state_statistics` of one segment without a past, as metrics: `state_<layer>/<statistic>`.

    Args:
      view: a stack or its view. Its `init_carry(rows)` makes the carry, and its layers have paths
        such as `blocks/1/attention`.
      tokens_bt, start_bt: a segment, on the devices of the view.

    >>> from jaxlab.models import TransformerLM, TransformerLMConfig
    >>> config = TransformerLMConfig(
    ...     width=32, depth=1, num_heads=2, window=8, recurrent_layers=(-1,), num_states=4)
    >>> view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    >>> metrics = state_metrics(view, jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8), bool))
    >>> round(float(metrics["state_0/kept"]), 1)    # a fixed gate starts half open
    0.5
    """
    return _state_metrics(as_view(view), tokens_bt, start_bt)


@jax.jit
def _state_metrics(view: View, tokens_bt: jax.Array, start_bt: jax.Array) -> dict[str, jax.Array]:
    carry = view.apply(view.params, tokens_bt.shape[0], method="init_carry")
    statistics = state_statistics(view, tokens_bt, carry, start_bt)
    return {
        f"state_{path.split('/')[1]}/{name}": value
        for path, values in statistics.items()
        for name, value in values.items()
    }
