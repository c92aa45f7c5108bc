"""Softmax attention in tiles: the one inner product of queries, keys and values of the house.

A tile is a few queries against the keys that they may see, small enough to stay in the cache.
On a CPU tiles run one after another; on an accelerator they run as one batch. In the backward
pass the weights of a tile are computed again, so no [t, s] array outlives its tile.

Letters: t queries, s keys, k width of a head, h heads, n independent problems.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e9  # added to the logits of keys that must not be seen
FLOOR = -1000.0  # a key with this logit and a zero value always exists: an empty row gives zero
TILE = 128  # queries of a tile; 128 x 640 float32 weights fit a core's cache

_tiled = functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names("attend_values", "attend_total"),
)


def attend(
    q_tk: jax.Array,
    k_ks: jax.Array,
    v_ks: jax.Array,
    bias_ts: jax.Array | None = None,
    seen_ts: jax.Array | None = None,
) -> jax.Array:
    """Attention of one head over one set of keys; queries come already scaled.

    Keys and values lie with their width first: both this product and its derivatives then
    run without a transposed copy of the weights.

    Args:
      q_tk: queries [t, k].
      k_ks: keys [k, s].
      v_ks: values [k, s].
      bias_ts: added to the logits, [t, s]; `MASKED` hides a key.
      seen_ts: bool [t, s], which keys a query may see.

    Returns:
      [t, k] in the dtype of the values; a query that sees no key gives zero.
    """
    logits_ts = jnp.einsum("tk,ks->ts", q_tk, k_ks, preferred_element_type=jnp.float32)
    if bias_ts is not None:
        logits_ts += bias_ts
    if seen_ts is not None:
        logits_ts = jnp.where(seen_ts, logits_ts, MASKED)
    top_t1 = jnp.maximum(logits_ts.max(axis=-1, keepdims=True), FLOOR)
    top_t1 = jax.lax.stop_gradient(top_t1)
    weights_ts = jnp.exp(logits_ts - top_t1)
    total_t1 = weights_ts.sum(axis=-1, keepdims=True) + jnp.exp(FLOOR - top_t1)
    values_tk = jnp.einsum(
        "ts,ks->tk", weights_ts.astype(v_ks.dtype), v_ks, preferred_element_type=jnp.float32
    )
    values_tk = checkpoint_name(values_tk, "attend_values")
    total_t1 = checkpoint_name(total_t1, "attend_total")
    return (values_tk / total_t1).astype(v_ks.dtype)


def tile_size(num_queries: int, most: int = TILE) -> int:
    """The largest divisor of `num_queries` that is at most `most`.

    >>> tile_size(512), tile_size(96), tile_size(8)
    (128, 96, 8)
    """
    return next(size for size in range(min(most, num_queries), 0, -1) if num_queries % size == 0)


def over(function: Callable[..., Any], *arrays: Any) -> Any:
    """Applies `function` to every leading index: in sequence on a CPU, at once elsewhere."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda xs: function(*xs), arrays)
    return jax.vmap(function)(*arrays)


def attend_heads(
    q_hntk: jax.Array, k_hnks: jax.Array, v_hnks: jax.Array, bias_ns: jax.Array | None = None
) -> jax.Array:
    """Attention of all queries over all keys, tile by tile, for h heads times n problems.

    Args:
      q_hntk: scaled queries [h, n, t, k].
      k_hnks: keys [h, n, k, s].
      v_hnks: values [h, n, k, s].
      bias_ns: added to the logits of a key, [n, s]; `MASKED` hides it.

    Returns:
      [h, n, t, k].
    """
    t = q_hntk.shape[2]
    size = tile_size(t)

    def one(q_tk: jax.Array, k_ks: jax.Array, v_ks: jax.Array, *bias_s: jax.Array) -> jax.Array:
        bias_1s = bias_s[0][None] if bias_s else None
        tiles = [attend(q_tk[i : i + size], k_ks, v_ks, bias_1s) for i in range(0, t, size)]
        return jnp.concatenate(tiles, axis=0)

    biases = () if bias_ns is None else (bias_ns,)
    return over(lambda *xs: over(_tiled(one), *xs, *biases), q_hntk, k_hnks, v_hnks)


def attend_blocks(
    q_hnjtk: jax.Array,
    k_hnjks: jax.Array,
    v_hnjks: jax.Array,
    bias_hts: jax.Array,
    doc_njt: jax.Array | None = None,
    doc_njs: jax.Array | None = None,
) -> jax.Array:
    """Attention of every block of w queries over the previous block and its own.

    Args:
      q_hnjtk: scaled queries of blocks 0..j-1, [h, n, j, w, k].
      k_hnjks: keys of blocks -1..j-1, [h, n, j + 1, k, w].
      v_hnjks: values of the same.
      bias_hts: [h, size, w + size] for `size = tile_size(w)` queries and the keys from w before the
        first of them: relative position bias, `MASKED` outside the window. The same for every tile.
      doc_njt: document numbers of queries [n, j, w]; a query sees the keys of its own document.
        None: there is only one.
      doc_njs: document numbers of keys [n, j + 1, w].

    Returns:
      [h, n, j, w, k].
    """
    w = q_hnjtk.shape[3]
    size = bias_hts.shape[1]

    def block(q_tk, old_k, new_k, old_v, new_v, docs, bias_ts):
        k_ks = jnp.concatenate([old_k, new_k], axis=1)
        v_ks = jnp.concatenate([old_v, new_v], axis=1)
        tiles = []
        for i in range(0, w, size):
            keys = slice(i, i + w + size)
            seen_ts = None
            if docs is not None:
                seen_ts = docs[0][i : i + size, None] == docs[1][None, keys]
            tiles.append(
                attend(q_tk[i : i + size], k_ks[:, keys], v_ks[:, keys], bias_ts, seen_ts)
            )
        return jnp.concatenate(tiles, axis=0)

    def flat(x: jax.Array) -> jax.Array:  # blocks of all problems in one row
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    docs = None
    if doc_njt is not None:
        keys_njs = jnp.concatenate([doc_njs[:, :-1], doc_njs[:, 1:]], axis=2)
        docs = (doc_njt.reshape(-1, w), keys_njs.reshape(-1, 2 * w))

    def head(q, old_k, new_k, old_v, new_v, bias_ts):
        body = _tiled(lambda *xs: block(*xs[:5], xs[5] if docs is not None else None, bias_ts))
        return over(body, q, old_k, new_k, old_v, new_v, *(() if docs is None else (docs,)))

    k_old, k_new = flat(k_hnjks[:, :, :-1]), flat(k_hnjks[:, :, 1:])
    v_old, v_new = flat(v_hnjks[:, :, :-1]), flat(v_hnjks[:, :, 1:])
    out = over(head, flat(q_hnjtk), k_old, k_new, v_old, v_new, bias_hts)
    return out.reshape(q_hnjtk.shape)
