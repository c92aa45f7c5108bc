"""What queries read: the window of a segment, or sets of keys. Layers say it, backends do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED, Kept, Readable, tile_size
from jaxlab.nn.toeplitz import by_distance

Scale = jax.Array | None


@dataclasses.dataclass(frozen=True)
class Heads:
    """Queries, keys and values of a layer's heads.

    Attributes:
      q: queries [b, t, h, k].
      k, v: keys and values [b, s, g, k]; g divides h, and neighbouring query heads share one.
      scale: float32 [h]. `Backend.read` still has to divide queries by their length and multiply
        them by it; None: they are scaled.
      unit: whether `Backend.read` still has to divide the keys by their length.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    scale: Scale = None
    unit: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeySet:
    """Keys and values, in one piece or in two that follow each other.

    Attributes:
      keys: [b, s, g, k] each. Or one array [j, b, s, g, k]: a set for each of j blocks of queries.
      values: of the same shapes.
      unit: int or bool [pieces], the pieces of keys that `Backend.read` still has to divide by
        their length.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    unit: Any

    @property
    def num_keys(self) -> int:
        """How many keys a query can see."""
        return sum(x.shape[-3] for x in self.keys)

    def by_head(self, num_heads: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values with a head for each query head: [h, b, s, k], or [h, b, j, s, k]."""

        def whole(pieces: tuple[jax.Array, ...]) -> jax.Array:
            x = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-3)
            order = (2, 0, 1, 3) if x.ndim == 4 else (3, 1, 0, 2, 4)
            return share_heads(x.transpose(order), num_heads)

        return whole(self.keys), whole(self.values)


@dataclasses.dataclass(frozen=True)
class SetReading:
    """Queries that see every key of a set.

    Attributes:
      q: queries [b, t, h, k], as `Backend.queries` returned them.
      read: what they read.
      scale: see `Heads`.
      bias: float32 [b, s], added to the logits of a key: 0, or `tiles.MASKED` to hide it. Not
        differentiated. Only for keys [b, s, g, k].
      reads: bool [b, t]; a query that does not read gives zero. None: all read.
    """

    q: jax.Array
    read: KeySet
    scale: Scale = None
    bias: jax.Array | None = None
    reads: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class WindowReading:
    """Tokens of a segment that see those of their own document in a sliding window.

    Attributes:
      heads: of the tokens. With rotary positions, queries and keys are already rotated.
      old_k, old_v: keys, normalised, and values [b, w, g, k] of the window before the segment.
      segment: the documents.
      bias: maps distances, an integer array, to a relative bias [h, ...]; None: no bias.
      include_self: whether the window of w tokens includes the token itself.
      kept: the weights that dropout keeps, [h, w, w]; None: all.
    """

    heads: Heads
    old_k: jax.Array
    old_v: jax.Array
    segment: Segment
    bias: Callable[[np.ndarray], jax.Array] | None
    include_self: bool
    kept: Kept | None = None

    @property
    def window(self) -> int:
        """w, the tokens that a token sees."""
        return self.old_k.shape[1]

    @property
    def nearest(self) -> int:
        """The smallest distance in the window."""
        return 0 if self.include_self else 1

    def window_bias(self, distances: np.ndarray) -> jax.Array:
        """The bias [h, ...] inside the window, `MASKED` outside."""
        inside = (distances >= self.nearest) & (distances < self.nearest + self.window)
        shape = (self.heads.q.shape[2], *distances.shape)
        bias = jnp.zeros(shape, jnp.float32) if self.bias is None else self.bias(distances)
        return jnp.where(inside[None], bias, MASKED)

    def tiles(self) -> tuple[jax.Array, Readable, Readable, jax.Array]:
        """The first four arguments of `tiles.attend_blocks`, from heads that are scaled."""
        w, (b, _, h, _) = self.window, self.heads.q.shape
        size = tile_size(w)
        bias_hst = by_distance(self.window_bias(np.arange(1 - size, w + size)), w + size)

        def blocks(x_bshk: jax.Array) -> jax.Array:
            return share_heads(blocks_by_head(x_bshk, w), h)

        docs = self.segment.doc_bt.reshape(b, -1, w)
        own = Readable(blocks(self.heads.k), blocks(self.heads.v), docs)
        old = Readable(
            blocks(self.old_k)[:, :, 0], blocks(self.old_v)[:, :, 0], self.segment.remembered(w)
        )
        return blocks_by_head(self.heads.q, w), own, old, bias_hst


def blocks_by_head(x_bthk: jax.Array, window: int) -> jax.Array:
    """[b, t, h, k] to blocks [h, b, j, w, k]."""
    b, t, h, k = x_bthk.shape
    return x_bthk.reshape(b, t // window, window, h, k).transpose(3, 0, 1, 2, 4)


def share_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Repeats the key or value heads, on the first axis, for the query heads that share them."""
    times = num_heads // x.shape[0]
    return x if times == 1 else jnp.repeat(x, times, axis=0)
