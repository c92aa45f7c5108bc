"""Decoding token by token, from rings of keys and values whose size is the same for any length.

The mixers of this room inherit these methods. A ring of R tokens holds the token at position p in
slot `p mod R`, so the position alone says what each slot holds. Keys are stored unrotated.

Letters: s slots of a ring, n heads of keys and values, k width of a head, r states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError
from jaxlab.nn.position import Rotary
from jaxlab.nn.reading import KeySet
from jaxlab.nn.tiles import FLOOR, MASKED

if TYPE_CHECKING:
    from jaxlab.nn.attention import Attention
    from jaxlab.nn.recurrent_cell import BlockRecurrentCell

Cache = dict[str, jax.Array]

ROUND = 128  # caches of full attention are rounded up to it, so that near lengths compile once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far the rows of a decoder are.

    Attributes:
      position_b: int32 [b], tokens read since a border between blocks.
      length_b: int32 [b], tokens read of the current document.
    """

    position_b: jax.Array
    length_b: jax.Array

    def slot(self, room: int) -> jax.Array:
        """The slot [b] of the next token in a ring of `room` tokens."""
        return self.position_b % room

    def distances(self, room: int) -> jax.Array:
        """How many tokens ago each slot was written, [b, room]; 0 for that of the next token."""
        return (self.position_b[:, None] - jnp.arange(room)[None]) % room


class RingDecoding:
    """Decoding of `Attention`: the cache holds `keys` and `values`, [b, n, s, k] each."""

    if TYPE_CHECKING:  # what `Attention` brings along
        causal: bool
        include_self: bool
        window: int | None
        num_kv_heads: int
        head_dim: int
        position: Any
        dtype: Any
        heads: Any
        output: Any
        _bias: Any

    def init_cache(self, batch_size: int, max_length: int | None = None) -> Cache:
        """An empty ring: one window, or `max_length` tokens of full attention.

        Raises:
          UsageError: attention that is not causal, or full attention without `max_length`.
        """
        if not self.causal:
            raise UsageError("bidirectional attention (causal=False) does not decode")
        room = self.room
        if room is None:
            if max_length is None:
                raise UsageError("attention without a window needs max_length to decode")
            room = -(-max_length // ROUND) * ROUND
        return self.ring(batch_size, room)

    @property
    def room(self) -> int | None:
        """Tokens that a ring must hold: the window and the token itself; None: all of them."""
        return None if self.window is None else self.window + (0 if self.include_self else 1)

    def ring(self, batch_size: int, room: int) -> Cache:
        """An empty ring of `room` tokens."""
        shape = (batch_size, self.num_kv_heads, room, self.head_dim)
        return {"keys": jnp.zeros(shape, self.dtype), "values": jnp.zeros(shape, self.dtype)}

    def cache_of(self, carry: Cache, room: int | None = None) -> Cache:
        """The cache, by default of one window, that continues after a segment, at position 0.

        Raises:
          UsageError: attention without a window, which carries nothing.
        """
        if self.window is None:
            raise UsageError("attention without a window has no carry")
        before = (room or self.room or 0) - self.window
        return {
            name: jnp.pad(carry[name].swapaxes(1, 2), ((0, 0), (0, 0), (before, 0), (0, 0)))
            for name in ("keys", "values")
        }

    def fill(self, cache: Cache, carry: Cache, count_b: jax.Array) -> Cache:
        """Writes the first `count_b` tokens of a block, from its carry, from position 0 on."""

        def put(ring_bnsk: jax.Array, new_bshk: jax.Array) -> jax.Array:
            new_bnsk = new_bshk.swapaxes(1, 2)[:, :, : ring_bnsk.shape[2]]
            size = new_bnsk.shape[2]
            taken_bs = jnp.arange(size)[None] < count_b[:, None]
            first = jnp.where(taken_bs[:, None, :, None], new_bnsk, ring_bnsk[:, :, :size])
            return ring_bnsk.at[:, :, :size].set(first.astype(ring_bnsk.dtype))

        return {**cache, **{name: put(cache[name], carry[name]) for name in ("keys", "values")}}

    def reset(self, cache: Cache, rows_b: jax.Array) -> Cache:
        """Nothing to do: the length of these rows, 0, hides everything in the ring."""
        del rows_b
        return cache

    def step(self, x_bd: jax.Array, cursor: Cursor, cache: Cache) -> tuple[jax.Array, Cache]:
        """The next token of each row, [b, d] to [b, d], and the cache with it."""
        q_bhk, k_bnk, v_bnk = self.heads(x_bd)
        values_bhk, cache = self.read_ring(q_bhk, k_bnk, v_bnk, cursor, cache)
        return self.output(values_bhk), cache

    def read_ring(
        self, q_bhk: jax.Array, k_bnk: jax.Array, v_bnk: jax.Array, cursor: Cursor, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Values [b, h, k] that one query a row finds, and the cache with its key and value."""
        cache = put_token(cache, k_bnk, v_bnk, cursor)
        keys, room = cache["keys"], cache["keys"].shape[2]
        distance_bs = cursor.distances(room)
        if isinstance(self.position, Rotary):  # the query is at 0 and needs no rotation
            keys = self.position(keys.swapaxes(1, 2), -distance_bs).swapaxes(1, 2)
        nearest = 0 if self.include_self else 1
        seen_bs = (distance_bs >= nearest) & (distance_bs < nearest + (self.window or room))
        seen_bs &= distance_bs <= cursor.length_b[:, None]
        bias_hbs = jnp.take(self._bias(np.arange(room)), distance_bs, axis=1)
        bias_bhs = jnp.where(seen_bs[None], bias_hbs, MASKED).swapaxes(0, 1)
        return attend_one(q_bhk, keys, cache["values"], bias_bhs), cache


class StateReadingDecoding:
    """Decoding of `StateReadingAttention`: a ring of one window.

    For a step, the cache also holds `state_keys`, `state_values` [b, h, r, k] of the state to read.
    """

    if TYPE_CHECKING:  # what `StateReadingAttention` brings along
        attention: Attention
        state_queries: Any
        output: Any

    def init_cache(self, batch_size: int, max_length: int | None = None) -> Cache:
        """An empty ring; `max_length` has no influence."""
        return self.attention.init_cache(batch_size, max_length)

    def cache_of(self, carry: Cache) -> Cache:
        """The cache that continues after a segment, whose end is position 0."""
        return self.attention.cache_of(carry)

    def fill(self, cache: Cache, carry: Cache, count_b: jax.Array) -> Cache:
        """Writes the first `count_b` tokens of a block."""
        return self.attention.fill(cache, carry, count_b)

    def reset(self, cache: Cache, rows_b: jax.Array) -> Cache:
        """Nothing to do, see `RingDecoding`."""
        return self.attention.reset(cache, rows_b)

    def step(self, x_bd: jax.Array, cursor: Cursor, cache: Cache) -> tuple[jax.Array, Cache]:
        """The next token of each row, [b, d] to [b, d], and the ring with it."""
        ring = {name: cache[name] for name in ("keys", "values")}
        return self.read_both(x_bd, cursor, ring, cache["state_keys"], cache["state_values"])

    def read_both(
        self,
        x_bd: jax.Array,
        cursor: Cursor,
        ring: Cache,
        state_keys: jax.Array,
        state_values: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """What one token a row, [b, d], finds in ring and state, and the ring with the token."""
        window_bhk, ring = self.attention.read_ring(*self.attention.heads(x_bd), cursor, ring)
        state_bhk = attend_one(self.state_queries(x_bd), state_keys, state_values)
        return self.output(window_bhk, state_bhk), ring


class RecurrentDecoding:
    """Decoding of `BlockRecurrentAttention`.

    The cache holds a ring of two windows, which the state reads when a block is full, the `state`
    [b, r, d], and its keys and values `state_keys`, `state_values` [b, h, r, k] for the tokens.
    """

    if TYPE_CHECKING:  # what `BlockRecurrentAttention` brings along
        attention: Any
        cell: BlockRecurrentCell
        read_both: Any

    def init_cache(self, batch_size: int, max_length: int | None = None) -> Cache:
        """An empty ring and the initial state; `max_length` has no influence."""
        del max_length
        ring = self.attention.ring(batch_size, 2 * self.attention.window)
        return {**ring, **self._with_readout(self.cell.initial_state(batch_size))}

    def cache_of(self, carry: Cache) -> Cache:
        """The cache that continues after a segment, whose end is position 0."""
        ring = self.attention.cache_of(carry, 2 * self.attention.window)
        return {**ring, **self._with_readout(carry["state"])}

    def fill(self, cache: Cache, carry: Cache, count_b: jax.Array) -> Cache:
        """Writes the first `count_b` tokens of a block; the state stays that before the block."""
        return self.attention.fill(cache, carry, count_b)

    def reset(self, cache: Cache, rows_b: jax.Array) -> Cache:
        """Gives the rows the initial state."""
        initial = self.cell.initial_state(rows_b.shape[0])
        return self._replace_state(cache, rows_b, lambda: initial)

    def step(self, x_bd: jax.Array, cursor: Cursor, cache: Cache) -> tuple[jax.Array, Cache]:
        """The next token of each row, [b, d] to [b, d]; a full block updates the row's state."""
        out_bd, cache = self.read_both(
            x_bd, cursor, cache, cache["state_keys"], cache["state_values"]
        )
        full_b = (cursor.position_b + 1) % self.attention.window == 0
        return out_bd, self._replace_state(cache, full_b, lambda: self._next_state(cursor, cache))

    def _next_state(self, cursor: Cursor, cache: Cache) -> jax.Array:
        distance_bs = cursor.distances(cache["keys"].shape[2])
        bias_bs = jnp.where(distance_bs <= cursor.length_b[:, None], 0.0, MASKED)
        keys, values = (cache[name].swapaxes(1, 2) for name in ("keys", "values"))
        tokens = KeySet((keys,), (values,), (False,))
        return self.cell(cache["state"], tokens, bias_bs)[0]

    def _replace_state(self, cache: Cache, rows_b: jax.Array, state: Callable[[], Any]) -> Cache:
        """The cache with `state()` in these rows; computes nothing if there are none."""
        old = {name: cache[name] for name in ("state", "state_keys", "state_values")}

        def replace() -> Cache:
            return self._with_readout(jnp.where(rows_b[:, None, None], state(), old["state"]))

        return {**cache, **jax.lax.cond(rows_b.any(), replace, lambda: old)}

    def _with_readout(self, state_brd: jax.Array) -> Cache:
        keys, values = (x.swapaxes(1, 2) for x in self.cell.keys_values(state_brd))
        return {"state": state_brd, "state_keys": keys, "state_values": values}


def attend_one(
    q_bhk: jax.Array, k_bnsk: jax.Array, v_bnsk: jax.Array, bias_bhs: jax.Array | None = None
) -> jax.Array:
    """`attend` for one query a row and head, [b, h, k], whose products are too small for tiles."""
    b, n, _, k = k_bnsk.shape
    q_bngk = q_bhk.reshape(b, n, -1, k)
    logits = jnp.einsum("bngk,bnsk->bngs", q_bngk, k_bnsk, preferred_element_type=jnp.float32)
    if bias_bhs is not None:
        logits += bias_bhs.reshape(logits.shape)
    top = jnp.maximum(logits.max(axis=-1, keepdims=True), FLOOR)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True) + jnp.exp(FLOOR - top)
    values_bngk = jnp.einsum(
        "bngs,bnsk->bngk", weights.astype(v_bnsk.dtype), v_bnsk, preferred_element_type=jnp.float32
    )
    return (values_bngk / total).astype(v_bnsk.dtype).reshape(q_bhk.shape)


def put_token(cache: Cache, k_bnk: jax.Array, v_bnk: jax.Array, cursor: Cursor) -> Cache:
    """The cache with the key and value of the next token in their slot."""
    rows_b, slot_b = jnp.arange(k_bnk.shape[0]), cursor.slot(cache["keys"].shape[2])

    def put(ring_bnsk: jax.Array, new_bnk: jax.Array) -> jax.Array:
        return ring_bnsk.at[rows_b, :, slot_b].set(
            new_bnk.astype(ring_bnsk.dtype), unique_indices=True
        )

    return {**cache, "keys": put(cache["keys"], k_bnk), "values": put(cache["values"], v_bnk)}
