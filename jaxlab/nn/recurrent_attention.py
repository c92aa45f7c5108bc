"""Attention layers beside a recurrent state (arXiv 2203.07852): one owns it, others may read it.

Symbols: tokens X `x_btd`, state C `c_brd` (r state vectors), keys and values of tokens Ke, Ve and
of the state Ks, Vs, window W `w`, block of w tokens `j`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError, constrain
from jaxlab.nn.attention import Attention, Carry, blocks_by_head, head_scales, scale_queries
from jaxlab.nn.cpu.compiled_attention import Reading, attend_readings
from jaxlab.nn.decode import RecurrentDecoding, StateReadingDecoding
from jaxlab.nn.initialisers import projection
from jaxlab.nn.recurrent_cell import BlockRecurrentCell
from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED, attend_heads

STATE_KEYS = ("state_keys", "state_values")
UNROLLED = 8
"""So many blocks that are read by compiled code, whose programs are short, are not made a loop."""


class StateReadingAttention(StateReadingDecoding, nnx.Module):
    """Sliding-window attention whose tokens also read the state of another layer.

    Token heads `a1` (window) and `a2` (state before the block) share one output projection. The
    state comes with the carry, as its keys and values `state_keys`, `state_values` [h, b, r, k]:
    one state for each call, which therefore reads one block.

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
        heads = (attention.num_heads, attention.head_dim)
        self.state_query = projection(
            width,
            heads,
            ("embed", "heads", None),
            kernel=attention.kernel,
            dtype=dtype,
            rngs=rngs,
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

        Without a carry there is no state, and the tokens find nothing in it. `key` turns dropout
        of the window's weights on; what is read of the state is not dropped.

        Raises:
          UsageError: a state for more than one block.
        """
        segment = segment_of(x_btd, segment)
        carry = {} if carry is None else carry
        window = {name: carry[name] for name in carry if name not in STATE_KEYS}
        q, k, v = self.attention.heads(x_btd)
        window_bthk, after = self.attention.read(q, k, v, segment, window or None, key=key)
        if STATE_KEYS[0] in carry:
            if x_btd.shape[1] != self.attention.window:
                raise UsageError(
                    f"{x_btd.shape[1]} tokens read one state; give blocks of "
                    f"window={self.attention.window}, each with the state before it"
                )
            keys, values = (carry[name][None] for name in STATE_KEYS)
            read_bthk = self.read_state(x_btd, keys, values, segment)
        else:
            read_bthk = jnp.zeros_like(window_bthk)
        return self.output(window_bthk, read_bthk), after

    @property
    def attention_dropout(self) -> float:
        """Rate at which weights of the window are dropped, where a key is given."""
        return self.attention.attention_dropout

    def init_carry(self, batch_size: int) -> Carry:
        """An empty window."""
        return self.attention.init_carry(batch_size)

    def output(self, window_bthk: jax.Array, read_bthk: jax.Array) -> jax.Array:
        """[..., t, d] of what the two kinds of heads found, [..., t, h, k] each."""
        return self.attention.output(jnp.concatenate([window_bthk, read_bthk], axis=-2))

    def state_queries(self, x_btd: jax.Array) -> jax.Array:
        """Queries [..., h, k] of tokens [..., d] for the state."""
        return scale_queries(self.state_query(x_btd), self.state_scale)

    def read_state(
        self, x_btd: jax.Array, state_keys: jax.Array, state_values: jax.Array, segment: Segment
    ) -> jax.Array:
        """Values [b, t, h, k] that tokens find in the state before their block.

        `state_keys`, `state_values` are of the states before each block, [j, h, b, r, k]. Tokens
        of a document that starts inside a block find nothing.
        """
        w = self.attention.window
        q_bthk = self.state_queries(x_btd)
        q_hbjtk = blocks_by_head(q_bthk, w)
        h, b, j = q_hbjtk.shape[:3]

        def flat(x_jhbrk: jax.Array) -> jax.Array:
            x_hbjrk = x_jhbrk.transpose(1, 2, 0, 3, 4)
            return x_hbjrk.reshape(h, b * j, *x_hbjrk.shape[3:])

        q_hntk = q_hbjtk.reshape(h, b * j, w, -1)
        out_hntk = attend_heads(
            q_hntk, flat(state_keys), flat(state_values), kernel=self.attention.kernel
        )
        out_bthk = out_hntk.reshape(q_hbjtk.shape).transpose(1, 2, 3, 0, 4).reshape(q_bthk.shape)
        return jnp.where(self._reads_state(segment)[:, :, None, None], out_bthk, 0)

    def _reads_state(self, segment: Segment) -> jax.Array:
        """Which tokens [b, t] are of the document that their block starts with."""
        b, t = segment.doc_bt.shape
        doc_bjt = segment.doc_bt.reshape(b, -1, self.attention.window)
        return (doc_bjt == doc_bjt[:, :, :1]).reshape(b, t)


class BlockRecurrentAttention(RecurrentDecoding, StateReadingAttention):
    """Sliding-window attention whose tokens also read, and write, a recurrent state.

    Token heads `a1` (window) and `a2` (state before the block) share one output projection. The
    blocks of a segment are read in order by a scan that holds only the state; everything else
    runs for all blocks at once.

    A document should start where a block starts: then its state is exactly the initial one. One
    that starts inside a block reads no state before, and leaves nothing in it until, the next
    block.

    Args:
      attention: the token attention, with a window and `extra_heads` equal to its heads.
      cell: the recurrent cell.
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

        `key` turns dropout of the window's weights on; nothing that is read of the state, or
        written to it, is dropped.
        """
        segment = segment_of(x_btd, segment)
        carry = self.init_carry(x_btd.shape[0]) if carry is None else carry
        if self.attention.kernel == self.cell.kernel == "compiled":
            return self._call_compiled(x_btd, segment, carry)
        q, k, v = self.attention.heads(x_btd)
        window_bthk, after = self.attention.read(q, k, v, segment, carry, key=key)
        state, read = self.scan_states(k, v, segment, carry)
        # The readers take the state of all blocks at once.
        state_keys, state_values = (constrain(x, None, "heads", "batch", None, None) for x in read)
        read_bthk = self.read_state(x_btd, state_keys, state_values, segment)
        return self.output(window_bthk, read_bthk), {**after, "state": state}

    def _call_compiled(
        self, x_btd: jax.Array, segment: Segment, carry: Carry
    ) -> tuple[jax.Array, Carry]:
        """The same with one pass over window and state, and one over state and tokens a block."""
        q, k, v = self.attention.projections(x_btd)
        window, after = self.attention.reading(q, k, v, segment, carry)
        state, (keys_jbrhk, values_jbrhk) = self._scan(
            self.cell.read_compiled, k, v, segment, carry
        )
        state_last = jnp.where(self._reads_state(segment), self.cell.num_states - 1, -1)
        own = Reading(
            self.state_query(x_btd),
            (keys_jbrhk,),
            (values_jbrhk,),
            0,
            state_last,
            scale=jnp.abs(self.state_scale[...]),
            unit=(True,),
        )
        return self.attention.output(attend_readings(window, own)), {**after, "state": state}

    def init_carry(self, batch_size: int) -> Carry:
        """An empty window, and a state that is replaced by the initial one at the first start."""
        state = jnp.zeros((batch_size, self.cell.num_states, self.cell.width), self.cell.dtype)
        return {**self.attention.init_carry(batch_size), "state": state}

    def state_before(self, segment: Segment, carry: Carry) -> tuple[jax.Array, jax.Array]:
        """Keys and values [h, b, r, k] of the state that the first block of a segment reads."""
        initial = self.cell.initial_state(segment.doc_bt.shape[0])
        fresh_b = segment.doc_bt[:, 0] != segment.remembered(1)[:, 0]
        state = carry["state"].astype(initial.dtype)
        return self.cell.keys_values(jnp.where(fresh_b[:, None, None], initial, state))

    def scan_states(
        self,
        k: jax.Array,
        v: jax.Array,
        segment: Segment,
        carry: Carry,
        cell: Callable[..., tuple[jax.Array, Any]] | None = None,
    ) -> tuple[jax.Array, Any]:
        """The state after all blocks of a segment, and what the cell returned for each.

        Args:
          k, v: normalised keys, and values, of the tokens, [b, t, kv heads, k].
          segment: documents; one that starts at a block has the initial state there.
          carry: as in the call.
          cell: called in place of the layer's own, with the same arguments.

        Returns:
          The state [b, r, d]; by default the keys and values before each block, [j, h, b, r, k].
        """
        cell = self.cell if cell is None else cell

        def of_heads(old_bwhk: jax.Array, new_bwhk: jax.Array) -> jax.Array:
            x_bshk = jnp.concatenate([old_bwhk, new_bwhk], axis=1)
            return self.attention.shared(x_bshk.transpose(2, 0, 1, 3))

        def read(c_brd, keys, values, unit, bias_bs):
            del unit  # all are normalised
            return cell(c_brd, of_heads(*keys), of_heads(*values), bias_bs)

        return self._scan(read, k, v, segment, carry)

    def _scan(
        self,
        read: Callable[..., tuple[jax.Array, Any]],
        k: jax.Array,
        v: jax.Array,
        segment: Segment,
        carry: Carry,
    ) -> tuple[jax.Array, Any]:
        """`scan_states` by a function with the arguments of `BlockRecurrentCell.read_compiled`."""
        b, w = k.shape[0], self.attention.window

        # The scan reads block after block: each device takes all of them, once, not in every turn.
        def blocks(x_bshk: jax.Array) -> jax.Array:
            x_jbwhk = x_bshk.reshape(b, -1, w, *x_bshk.shape[2:]).swapaxes(0, 1)
            return constrain(x_jbwhk, None, "batch", None, "heads", None)

        def with_before(before: jax.Array, x_j: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.concatenate([before[None].astype(x_j.dtype), x_j[:-1]]), x_j

        doc_jbw = constrain(segment.doc_bt.reshape(b, -1, w).swapaxes(0, 1), None, "batch", None)
        initial = self.cell.initial_state(b)

        def block(c_brd, xs):
            keys, values, (old_doc_bw, doc_bw), unit = xs
            fresh_b = doc_bw[:, 0] != old_doc_bw[:, -1]
            c_brd = jnp.where(fresh_b[:, None, None], initial, c_brd)
            doc_bs = jnp.concatenate([old_doc_bw, doc_bw], axis=1)
            bias_bs = jnp.where(doc_bs == doc_bw[:, -1:], 0.0, MASKED)
            c_next, found = read(c_brd, keys, values, unit, bias_bs)
            split_b = doc_bw[:, 0] != doc_bw[:, -1]
            return jnp.where(split_b[:, None, None], initial, c_next), found

        # The keys before the first block come with the carry, normalised.
        unit_j2 = np.full((doc_jbw.shape[0], 2), self.attention.scale is not None, np.int32)
        unit_j2[0, 0] = 0
        xs = (
            with_before(carry["keys"], blocks(k)),
            with_before(carry["values"], blocks(v)),
            with_before(segment.remembered(w), doc_jbw),
            unit_j2,
        )
        num_blocks, compiled = unit_j2.shape[0], self.cell.kernel == "compiled"
        # The last block stays outside of the scan: what it leaves in the state often has no
        # gradient, as when the carry goes on in the next step, and is then not gone back through.
        in_scan = 0 if compiled and num_blocks <= UNROLLED else num_blocks - 1
        state, found = carry["state"].astype(initial.dtype), []
        if in_scan:
            # Plain tiles choose for themselves what they keep.
            scanned = jax.checkpoint(block, policy=keep_products) if compiled else block
            state, first = jax.lax.scan(scanned, state, jax.tree.map(lambda x: x[:in_scan], xs))
            found.append(first)
        for i in range(in_scan, num_blocks):
            state, one = block(state, jax.tree.map(lambda x, i=i: x[i], xs))
            found.append(jax.tree.map(lambda x: x[None], one))
        return state, jax.tree.map(lambda *x: jnp.concatenate(x), *found)


def keep_products(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: products and kernels are kept, all else is computed again.

    What is cheap to compute would cost more memory, and time to write and read it, if it were kept
    for every block. It keeps the logits of plain attention too: use it where there are none.
    """
    return primitive.name in ("dot_general", "matmul", "compiled_matmul", "ffi_call")


def segment_of(x_btd: jax.Array, segment: Segment | None) -> Segment:
    """The segment, by default that of fresh documents which fill the rows."""
    return Segment.of(jnp.zeros(x_btd.shape[:2], bool)) if segment is None else segment
