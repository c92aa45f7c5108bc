"""Softmax attention in tiles: the one place where queries meet keys and values.

A tile is a few queries and the keys that they may see, small enough for a core's cache. On one CPU
device tiles run one after another; elsewhere they run as one batch, with the program of one tile.
The backward pass computes the weights of a tile again, so no [t, s] array outlives its tile.

Letters: t queries, s keys, k width of a head, h heads, n independent problems, j blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.products import matmul

MASKED = -1e9  # added to the logits of keys that must not be seen
FLOOR = -1000.0  # the logit of a key with value zero that every query sees, if it sees no other
TILE = 128  # queries of a tile; 128 x 640 float32 weights fit a core's cache

_tiled = functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names(
        "attend_top", "attend_total", "attend_values"
    ),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """The weights of a softmax that dropout keeps and divides by `share`; the others become zero.

    Attributes:
      mask: bool [..., s, t], true for weights that are kept.
      share: their expected share, 1 - rate.
    """

    mask: jax.Array
    share: float = dataclasses.field(metadata={"static": True})

    def tile(self, first: int, num_keys: int, num_queries: int) -> Kept:
        """The part of [w, w] for queries from `first` on and keys from w before it on, modulo w."""
        keys = jnp.concatenate([self.mask, self.mask])[first : first + num_keys]
        return Kept(keys[:, first : first + num_queries], self.share)


def attend(
    q_tk: jax.Array,
    k_sk: jax.Array,
    v_sk: jax.Array,
    bias_st: jax.Array | None = None,
    seen_st: jax.Array | None = None,
    kept: Kept | None = None,
) -> jax.Array:
    """Attention of one head over one set of keys; queries come already scaled.

    Weights have a row for each key: there are more keys than queries, and a product of many rows
    with a few columns runs fastest.

    Args:
      q_tk: queries [t, k].
      k_sk: keys [s, k].
      v_sk: values [s, k].
      bias_st: added to the logits, [s, t]; `MASKED` hides a key.
      seen_st: bool [s, t], which keys a query may see.
      kept: which weights dropout keeps, [s, t]; None: all.

    Returns:
      [t, k] in the dtype of the values; a query that sees no key gives zero.
    """
    logits_st = matmul(k_sk, q_tk, transpose_y=True)
    if bias_st is not None:
        logits_st += bias_st
    if seen_st is not None:
        logits_st = jnp.where(seen_st, logits_st, MASKED)
    top_1t = jnp.maximum(logits_st.max(axis=0, keepdims=True), FLOOR)
    top_1t = checkpoint_name(jax.lax.stop_gradient(top_1t), "attend_top")
    weights_st = jnp.exp(logits_st - top_1t)
    total_1t = weights_st.sum(axis=0, keepdims=True) + jnp.exp(FLOOR - top_1t)
    if kept is not None:  # dropped after the softmax: the sum is over all weights
        weights_st, total_1t = jnp.where(kept.mask, weights_st, 0), total_1t * kept.share
    values_kt = matmul(v_sk, weights_st.astype(v_sk.dtype), transpose_x=True)
    values_kt = checkpoint_name(values_kt, "attend_values")
    total_1t = checkpoint_name(total_1t, "attend_total")
    return (values_kt / total_1t).T.astype(v_sk.dtype)


def tile_size(num_queries: int, most: int = TILE) -> int:
    """The largest divisor of `num_queries` that is at most `most`.

    >>> tile_size(512), tile_size(96), tile_size(8)
    (128, 96, 8)
    """
    return next(size for size in range(min(most, num_queries), 0, -1) if num_queries % size == 0)


def attend_all(
    q_hbtk: jax.Array,
    k_hbsk: jax.Array,
    v_hbsk: jax.Array,
    bias_hst: jax.Array,
    seen_bst: jax.Array | None,
    kept: Kept,
) -> jax.Array:
    """Attention of all queries over all keys as one tile, with dropout of its weights.

    Args:
      q_hbtk: scaled queries [h, b, t, k].
      k_hbsk, v_hbsk: keys and values [h, b, s, k].
      bias_hst: added to the logits, [h, s, t]; `MASKED` hides a key.
      seen_bst: bool [b, s, t], which keys a query may see; None: all.
      kept: [h, s, t], the same for every row.

    Returns:
      [h, b, t, k].
    """
    head = jax.vmap(_tiled(attend), in_axes=(0, 0, 0, None, 0, None))
    return jax.vmap(head, in_axes=(0, 0, 0, 0, None, 0))(
        q_hbtk, k_hbsk, v_hbsk, bias_hst, seen_bst, kept
    )


def attend_heads(
    q_hntk: jax.Array,
    k_hnsk: jax.Array,
    v_hnsk: jax.Array,
    bias_ns: jax.Array | None = None,
) -> jax.Array:
    """Attention of all queries over all keys, tile by tile, for h heads times n problems.

    Args:
      q_hntk: scaled queries [h, n, t, k].
      k_hnsk: keys [h, n, s, k].
      v_hnsk: values [h, n, s, k].
      bias_ns: added to the logits of a key, [n, s]; `MASKED` hides it.

    Returns:
      [h, n, t, k].
    """
    t = q_hntk.shape[2]
    size = tile_size(t) if on_one_cpu_device() else t

    def one(q_tk: jax.Array, k_sk: jax.Array, v_sk: jax.Array, *bias_s: jax.Array) -> jax.Array:
        bias_s1 = bias_s[0][:, None] if bias_s else None
        tiles = [attend(q_tk[i : i + size], k_sk, v_sk, bias_s1) for i in range(0, t, size)]
        return jnp.concatenate(tiles, axis=0)

    arrays: tuple[jax.Array, ...] = (q_hntk, k_hnsk, v_hnsk)
    shared: tuple[jax.Array, ...] = () if bias_ns is None else (bias_ns,)
    if not on_one_cpu_device():
        head = jax.vmap(_tiled(one))
        return jax.vmap(head, in_axes=(0, 0, 0, *(None for _ in shared)))(*arrays, *shared)
    h, n = q_hntk.shape[:2]
    arrays = tuple(x.reshape(h * n, *x.shape[2:]) for x in arrays)
    shared = tuple(jnp.tile(x, (h, 1)) for x in shared)
    return jax.lax.map(lambda xs: _tiled(one)(*xs), (*arrays, *shared)).reshape(q_hntk.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readable:
    """Keys and values of tokens, and the documents that the tokens belong to.

    Attributes:
      k: keys [..., s, k].
      v: values [..., s, k].
      docs: document numbers [..., s], without an axis for heads; None: all are of one document.
    """

    k: jax.Array
    v: jax.Array
    docs: jax.Array | None = None


def attend_blocks(
    q_hnjtk: jax.Array,
    blocks: Readable,
    before: Readable,
    bias_hst: jax.Array,
    kept: Kept | None = None,
) -> jax.Array:
    """Attention of every block of w queries over the previous block and its own.

    On one CPU device the blocks of a row are read in order, and each hands its keys to the next: no
    array holds the keys twice.

    Args:
      q_hnjtk: scaled queries of blocks 0..j-1, [h, n, j, w, k].
      blocks: keys and values of the same tokens, [h, n, j, w, k]; a query sees the keys of its
        own document.
      before: those of the block before the first, [h, n, w, k].
      bias_hst: [h, w + size, size] for `size = tile_size(w)` queries and the keys from w before the
        first of them: relative position bias, `MASKED` outside the window. All tiles share it.
      kept: which weights dropout keeps, [h, w, w], for every row and block; None: all. Keys of one
        index in the block and in the one before share a row: no query sees both.

    Returns:
      [h, n, j, w, k].
    """
    if not on_one_cpu_device():
        make_axes: Any = Readable  # of numbers in place of arrays
        of_head = make_axes(0, 0, None)
        head = jax.vmap(_attend_row, in_axes=(0, 0, 0, None, None))
        return jax.vmap(head, in_axes=(0, of_head, of_head, 0, 0))(
            q_hnjtk, blocks, before, bias_hst, kept
        )
    h, n = q_hnjtk.shape[:2]

    def flat(x: Readable) -> Readable:  # each head of each row is a problem of its own
        k, v = (a.reshape(h * n, *a.shape[2:]) for a in (x.k, x.v))
        docs = None if x.docs is None else jnp.tile(x.docs, (h,) + (1,) * (x.docs.ndim - 1))
        return Readable(k, v, docs)

    q = q_hnjtk.reshape(h * n, *q_hnjtk.shape[2:])
    problems = (q, flat(blocks), flat(before)) + jax.tree.map(
        lambda x: jnp.repeat(x, n, axis=0), (bias_hst, kept)
    )
    return jax.lax.map(lambda xs: _attend_row(*xs), problems).reshape(q_hnjtk.shape)


def _attend_row(
    q_jtk: jax.Array, blocks: Readable, before: Readable, bias_st: jax.Array, kept: Kept | None
) -> jax.Array:
    """`attend_blocks` of one head and one row."""
    w, size = q_jtk.shape[1], bias_st.shape[1]

    @_tiled
    def block(
        q_tk: jax.Array, old: Readable, new: Readable, bias_st: jax.Array, kept: Kept | None
    ) -> jax.Array:
        def piece(x: Readable, i: int) -> Readable:
            return jax.tree.map(lambda a: a[i * size : (i + 1) * size], x)

        read = [piece(x, i) for x in (old, new) for i in range(w // size)]
        tiles = []
        for i in range(w // size):
            last = i + w // size
            seen = jax.tree.map(lambda *x: jnp.concatenate(x), *read[i : last + 1])
            mask_st = None
            if seen.docs is not None and (docs_t := read[last].docs) is not None:
                mask_st = seen.docs[:, None] == docs_t[None]
            queries = slice(i * size, (i + 1) * size)
            weights = None if kept is None else kept.tile(i * size, w + size, size)
            tiles.append(attend(q_tk[queries], seen.k, seen.v, bias_st, mask_st, weights))
        return jnp.concatenate(tiles, axis=0)

    if on_one_cpu_device():
        return jax.lax.scan(
            lambda old, xs: (xs[1], block(xs[0], old, xs[1], bias_st, kept)),
            before,
            (q_jtk, blocks),
        )[1]
    old = jax.tree.map(_moved_on, before, blocks)
    return jax.vmap(block, in_axes=(0, 0, 0, None, None))(q_jtk, old, blocks, bias_st, kept)


def _moved_on(first: jax.Array, blocks_j: jax.Array) -> jax.Array:
    """`first`, then all blocks but the last; as a rotation, so that devices swap only borders."""
    is_first = jnp.arange(blocks_j.shape[0]).reshape(-1, *(1,) * first.ndim) == 0
    return jnp.where(is_first, first[None], jnp.roll(blocks_j, 1, axis=0))
