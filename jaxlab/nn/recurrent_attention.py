"""Attention layers beside a recurrent state (arXiv 2203.07852): one owns it, others can read it.

Symbols: tokens X `x_btd`, state C `c_brd` (r state vectors), keys and values of tokens Ke, Ve and
of the state Ks, Vs, window W `w`, block of w tokens `j`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError, constrain
from jaxlab.nn.attention import Attention, Carry, head_scales
from jaxlab.nn.decode import RecurrentDecoding, StateReadingDecoding
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import scale_queries
from jaxlab.nn.reading import Heads, KeySet, SetReading
from jaxlab.nn.recurrent_cell import BlockRecurrentCell
from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED

STATE_KEYS = ("state_keys", "state_values")


class StateReadingAttention(StateReadingDecoding, nnx.Module):
    """Sliding-window attention whose tokens also read the state of another layer.

    Token heads `a1` (window) and `a2` (state before the block) share one output projection. The
    state comes with the carry, as its normalised keys and its values `state_keys`, `state_values`
    [b, r, h, k]: one state for each call, which therefore reads one block.

    Args:
      attention: the token attention, with a window and `extra_heads` equal to its heads.
    """

    def __init__(
        self,
        attention: Attention,
        width: int,
        *,
        head_scale: float = 1.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.attention = attention
        heads, axes = (attention.num_heads, attention.head_dim), ("embed", "heads", None)
        self.state_query = projection(
            width, heads, axes, backend=attention.backend, dtype=dtype, rngs=rngs
        )
        self.state_scale = head_scales(attention.num_heads, head_scale)

    def __call__(
        self,
        x_btd: jax.Array,
        segment: Segment | None = None,
        carry: Carry | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        """One block [b, w, d] and a carry with the state to read, to [b, w, d] and the next carry.

        Without a carry there is no state, and the tokens find nothing in it. `key` switches dropout
        of the window's weights on; what is read of the state is not dropped.

        Raises:
          UsageError: a state for more than one block.
        """
        segment = segment_of(x_btd, segment)
        carry = {} if carry is None else carry
        window = {name: carry[name] for name in carry if name not in STATE_KEYS}
        heads = Heads(*self.attention.heads(x_btd))
        reading, after = self.attention.reading(heads, segment, window or None, key=key)
        backend = self.attention.backend
        if STATE_KEYS[0] not in carry:
            window_bthk = backend.read(reading)
            return self.output(window_bthk, jnp.zeros_like(window_bthk)), after
        if x_btd.shape[1] != self.attention.window:
            raise UsageError(
                f"{x_btd.shape[1]} tokens read one state; give blocks of "
                f"window={self.attention.window}, each with the state before it"
            )
        keys, values = (carry[name] for name in STATE_KEYS)
        state = SetReading(
            self.state_queries(x_btd),
            KeySet((keys,), (values,), (False,)),
            reads=self._reads_state(segment),
        )
        return self.attention.output(backend.read(reading, state)), after

    @property
    def attention_dropout(self) -> float:
        """Rate at which weights of the window are dropped, if a key is given."""
        return self.attention.attention_dropout

    def init_carry(self, batch_size: int) -> Carry:
        """An empty window."""
        return self.attention.init_carry(batch_size)

    def output(self, window_bthk: jax.Array, read_bthk: jax.Array) -> jax.Array:
        """[..., t, d] from what the two kinds of heads found, [..., t, h, k] each."""
        return self.attention.output(jnp.concatenate([window_bthk, read_bthk], axis=-2))

    def state_queries(self, x_btd: jax.Array) -> jax.Array:
        """Scaled queries [..., h, k] of tokens [..., d] for the state."""
        return scale_queries(self.state_query(x_btd), self.state_scale)

    def _reads_state(self, segment: Segment) -> jax.Array:
        """Which tokens [b, t] belong to the document that their block starts with."""
        b, t = segment.doc_bt.shape
        doc_bjt = segment.doc_bt.reshape(b, -1, self.attention.window)
        return (doc_bjt == doc_bjt[:, :, :1]).reshape(b, t)


class BlockRecurrentAttention(RecurrentDecoding, StateReadingAttention):
    """Sliding-window attention whose tokens also read, and write, a recurrent state.

    Token heads `a1` (window) and `a2` (state before the block) share one output projection. A scan
    reads the blocks of a segment in order and carries only the state; everything else runs for all
    blocks at once.

    A document should start where a block starts: then its state is exactly the initial one. The
    tokens of a document that starts inside a block read no state before the next block, and leave
    nothing in it.

    Args:
      attention: the token attention, with a window and `extra_heads` equal to its heads.
      cell: the recurrent cell, with the backend of the attention.

    Raises:
      UsageError: parts with different backends.
    """

    def __init__(
        self,
        attention: Attention,
        cell: BlockRecurrentCell,
        width: int,
        *,
        head_scale: float = 1.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(attention, width, head_scale=head_scale, dtype=dtype, rngs=rngs)
        if attention.backend != cell.backend:
            raise UsageError(
                f"the attention has backend {attention.backend.name!r} and the cell "
                f"{cell.backend.name!r}; give both the same"
            )
        self.cell = cell

    def __call__(
        self,
        x_btd: jax.Array,
        segment: Segment | None = None,
        carry: Carry | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        """[b, t, d] and the carry of the last segment, to [b, t, d] and the next carry.

        `key` switches dropout of the window's weights on; nothing that is read of the state, or
        written to it, is dropped.
        """
        segment = segment_of(x_btd, segment)
        carry = self.init_carry(x_btd.shape[0]) if carry is None else carry
        backend, heads = self.attention.backend, self.attention.projected(x_btd)
        reading, after = self.attention.reading(heads, segment, carry, key=key)
        state, read = self.scan_states(heads, segment, carry)
        # The readers take the states before all blocks at once.
        keys, values = (constrain(x, None, "batch", None, "heads", None) for x in read)
        q_bthk, scale = backend.queries(self.state_query(x_btd), self.state_scale)
        of_state = SetReading(
            q_bthk,
            KeySet((keys,), (values,), (backend.normalises,)),
            scale,
            reads=self._reads_state(segment),
        )
        out_btd = self.attention.output(backend.read(reading, of_state))
        return out_btd, {**after, "state": state}

    def init_carry(self, batch_size: int) -> Carry:
        """An empty window, and a state that the first document start sets to the initial one."""
        state = jnp.zeros((batch_size, self.cell.num_states, self.cell.width), self.cell.dtype)
        return {**self.attention.init_carry(batch_size), "state": state}

    def state_before(self, segment: Segment, carry: Carry) -> tuple[jax.Array, jax.Array]:
        """Keys and values [b, r, h, k] of the state that the first block of a segment reads."""
        initial = self.cell.initial_state(segment.doc_bt.shape[0])
        fresh_b = segment.doc_bt[:, 0] != segment.remembered(1)[:, 0]
        state = carry["state"].astype(initial.dtype)
        return self.cell.keys_values(jnp.where(fresh_b[:, None, None], initial, state))

    def scan_states(
        self,
        heads: Heads,
        segment: Segment,
        carry: Mapping[str, jax.Array],
        cell: Callable[..., tuple[jax.Array, Any]] | None = None,
    ) -> tuple[jax.Array, Any]:
        """The state after all blocks of a segment, and what the cell returned for each block.

        Args:
          heads: of the tokens, from `Attention.projected` or `Attention.heads`.
          segment: documents; one that starts at a block has the initial state there.
          carry: as in the call.
          cell: called in place of the layer's own, with the same arguments.

        Returns:
          The state [b, r, d]; by default the keys and values before each block, [j, b, r, h, k].
        """
        cell = self.cell if cell is None else cell
        b = heads.k.shape[0]
        w = self.attention.require_blocks(heads.k.shape[1])

        # The scan reads block after block: each device takes all of them once, not in every turn.
        def blocks(x_bshk: jax.Array) -> jax.Array:
            x_jbwhk = x_bshk.reshape(b, -1, w, *x_bshk.shape[2:]).swapaxes(0, 1)
            return constrain(x_jbwhk, None, "batch", None, "heads", None)

        def with_before(before: jax.Array, x_j: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.concatenate([before[None].astype(x_j.dtype), x_j[:-1]]), x_j

        doc_jbw = constrain(segment.doc_bt.reshape(b, -1, w).swapaxes(0, 1), None, "batch", None)
        initial = self.cell.initial_state(b)

        def block(c_brd, xs):
            tokens, (old_doc_bw, doc_bw) = xs
            fresh_b = doc_bw[:, 0] != old_doc_bw[:, -1]
            c_brd = jnp.where(fresh_b[:, None, None], initial, c_brd)
            doc_bs = jnp.concatenate([old_doc_bw, doc_bw], axis=1)
            bias_bs = jnp.where(doc_bs == doc_bw[:, -1:], 0.0, MASKED)
            c_next, found = cell(c_brd, tokens, bias_bs)
            split_b = doc_bw[:, 0] != doc_bw[:, -1]
            return jnp.where(split_b[:, None, None], initial, c_next), found

        unit_j2 = np.full((doc_jbw.shape[0], 2), heads.unit, np.int32)
        unit_j2[0, 0] = 0  # the keys before the first block come with the carry, normalised
        tokens = KeySet(
            with_before(carry["keys"], blocks(heads.k)),
            with_before(carry["values"], blocks(heads.v)),
            unit_j2,
        )
        xs = (tokens, with_before(segment.remembered(w), doc_jbw))
        return self.attention.backend.scan(block, carry["state"].astype(initial.dtype), xs)


def segment_of(x_btd: jax.Array, segment: Segment | None) -> Segment:
    """The segment; by default each row is one new document."""
    return Segment.of(jnp.zeros(x_btd.shape[:2], bool)) if segment is None else segment
