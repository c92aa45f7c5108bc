"""The block-recurrent cell and the attention layer that owns one (arXiv 2203.07852).

Symbols of the paper's layer and ours: tokens X `x_btd`, state C `c_brd` (r state vectors), keys and
values of tokens Ke, Ve and of the state Ks, Vs, window W `w`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import constrain
from jaxlab.nn.attention import Attention, Carry, blocks_by_head, head_scales, scale_queries
from jaxlab.nn.decode import RecurrentDecoding
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import RMSNorm, l2_normalise
from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED, attend_heads


class FixedGate(nnx.Module):
    """`c' = c * g + z * (1 - g)` with `g = sigmoid(bias_d)`, one learned vector for all inputs.

    The bias starts as N(bias, 0.1): with 0 about half of the state is kept a block.
    """

    def __init__(self, width: int, *, bias: float = 0.0, rngs: nnx.Rngs):
        start = bias + 0.1 * jax.random.normal(rngs.params(), (width,))
        self.bias = nnx.Param(start, axes=("embed",))

    def __call__(self, c_brd: jax.Array, z_brd: jax.Array, features: jax.Array) -> jax.Array:
        """State, candidate, and the features the candidate was made of (unused by this gate)."""
        gate = jax.nn.sigmoid(self.bias[...]).astype(c_brd.dtype)
        return c_brd * gate + z_brd * (1 - gate)


class SkipUpdate(nnx.Module):
    """The 'skip' configuration: `z = heads W_p`, `c' = gate(c, z)`, no MLP."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        gate: nnx.Module,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        heads = (num_heads, head_dim)
        self.output = projection(heads, width, ("heads", None, "embed"), dtype=dtype, rngs=rngs)
        self.gate = gate

    def __call__(self, c_brd: jax.Array, heads_brhk: jax.Array) -> jax.Array:
        """State [b, r, d] and what its heads read [b, r, 2h, k], to the next state."""
        return self.gate(c_brd, self.output(heads_brhk), heads_brhk)


class BlockRecurrentCell(nnx.Module):
    """r state vectors that read themselves and a block of tokens, and are updated by a gate.

    `Cn = rms(C) + ID`; `Ks, Vs, Qs, Qse` are projections of Cn, keys and queries L2-normalised;
    `u1 = attend(Qs, Ks, Vs)`, `u2 = attend(Qse, Ke, Ve)`; `C' = update(C, [u1, u2])`.
    No bias and no causal mask: a state sees every token of its block and the one before.

    Args:
      width: d. num_states: r. num_heads, head_dim: h, k, those of the token attention.
      update: maps (state [b, r, d], heads [b, r, 2h, k]) to the next state; by default the skip
        configuration with the fixed gate.
      head_scale: start of the learned scales of the logits.
    """

    def __init__(
        self,
        width: int,
        num_states: int,
        num_heads: int,
        head_dim: int,
        *,
        update: nnx.Module | None = None,
        head_scale: float = 1.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        normal = jax.random.normal
        shape, axes = (num_states, width), (None, "embed")
        # N(0, 0.1) and N(0, 1) as in the paper's code: states must differ, or they stay equal
        self.initial = nnx.Param(0.1 * normal(rngs.params(), shape), axes=axes)
        self.ids = nnx.Param(normal(rngs.params(), shape), axes=axes)
        self.norm = RMSNorm(width, dtype=dtype, rngs=rngs)
        heads, axes = (num_heads, head_dim), ("embed", "heads", None)
        self.query = projection(width, heads, axes, dtype=dtype, rngs=rngs)
        self.token_query = projection(width, heads, axes, dtype=dtype, rngs=rngs)
        self.key = projection(width, heads, axes, dtype=dtype, rngs=rngs)
        self.value = projection(width, heads, axes, dtype=dtype, rngs=rngs)
        self.scale = head_scales(num_heads, head_scale)
        self.token_scale = head_scales(num_heads, head_scale)
        if update is None:
            gate = FixedGate(width, rngs=rngs)
            update = SkipUpdate(width, 2 * num_heads, head_dim, gate, dtype=dtype, rngs=rngs)
        self.update = update
        self.num_states, self.width, self.dtype = num_states, width, dtype

    def keys_values(self, c_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the state for its readers, [h, b, r, k] each."""
        cn_brd = self._named(c_brd)
        return self._keys_values(cn_brd)

    def __call__(
        self, c_brd: jax.Array, k_hbsk: jax.Array, v_hbsk: jax.Array, bias_bs: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block.

        Args:
          c_brd: the state before the block.
          k_hbsk, v_hbsk: normalised keys, and values, of the tokens it reads, [h, b, s, k].
          bias_bs: 0 for tokens that are seen and `tiles.MASKED` for the others, [b, s].

        Returns:
          The state after the block, and the (keys, values) [h, b, r, k] of the state before it,
          which the tokens of the block read.
        """
        cn_brd = self._named(c_brd)
        keys, values = self._keys_values(cn_brd)
        own = scale_queries(self.query(cn_brd), self.scale).transpose(2, 0, 1, 3)
        read = scale_queries(self.token_query(cn_brd), self.token_scale).transpose(2, 0, 1, 3)
        heads_hbrk = jnp.concatenate(
            [attend_heads(own, keys, values), attend_heads(read, k_hbsk, v_hbsk, bias_bs)]
        )
        c_next_brd = self.update(c_brd, heads_hbrk.transpose(1, 2, 0, 3))
        return c_next_brd.astype(c_brd.dtype), (keys, values)

    def initial_state(self, batch_size: int) -> jax.Array:
        """The learned start of a document, [b, r, d]."""
        return jnp.broadcast_to(
            self.initial[...].astype(self.dtype), (batch_size, self.num_states, self.width)
        )

    def _named(self, c_brd: jax.Array) -> jax.Array:
        return self.norm(c_brd) + self.ids[...].astype(self.dtype)

    def _keys_values(self, cn_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys, values = l2_normalise(self.key(cn_brd)), self.value(cn_brd)
        return keys.transpose(2, 0, 1, 3), values.transpose(2, 0, 1, 3)


class BlockRecurrentAttention(RecurrentDecoding, nnx.Module):
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
        self.attention, self.cell = attention, cell
        heads = (attention.num_heads, attention.head_dim)
        self.state_query = projection(
            width, heads, ("embed", "heads", None), dtype=dtype, rngs=rngs
        )
        self.state_scale = head_scales(attention.num_heads, head_scale)

    def __call__(
        self, x_btd: jax.Array, segment: Segment | None = None, carry: Carry | None = None
    ) -> tuple[jax.Array, Carry]:
        """[b, t, d] and the carry of the last segment, to [b, t, d] and the next carry."""
        b, t, _ = x_btd.shape
        if segment is None:
            segment = Segment.of(jnp.zeros((b, t), bool))
        carry = self.init_carry(b) if carry is None else carry
        q, k, v = self.attention.heads(x_btd)
        window_bthk, after = self.attention.read(q, k, v, segment, carry)
        state, state_keys, state_values = self._scan(k, v, segment, carry)
        read_bthk = self._read_state(x_btd, state_keys, state_values, segment)
        out = self.attention.output(jnp.concatenate([window_bthk, read_bthk], axis=2))
        return out, {**after, "state": state}

    def init_carry(self, batch_size: int) -> Carry:
        """An empty window, and a state that is replaced by the initial one at the first start."""
        state = jnp.zeros((batch_size, self.cell.num_states, self.cell.width), self.cell.dtype)
        return {**self.attention.init_carry(batch_size), "state": state}

    def _scan(self, k, v, segment, carry):
        """The state after all blocks, and its keys and values before each, [j, h, b, r, k]."""
        b, w = k.shape[0], self.attention.window

        # The scan reads block after block: each device takes all of them, once, not in every turn.
        def every_block(x_jhbsk: jax.Array) -> jax.Array:
            return constrain(x_jhbsk, None, "heads", "batch", None, None)

        def blocks(x_bshk: jax.Array) -> jax.Array:
            return every_block(self.attention.key_blocks(x_bshk).transpose(2, 0, 1, 3, 4))

        old_k, old_v = carry["keys"].astype(k.dtype), carry["values"].astype(v.dtype)
        doc_jbw = constrain(
            segment.doc_bt.reshape(b, -1, w).swapaxes(0, 1), None, "batch", None
        )
        old = (blocks(old_k)[0], blocks(old_v)[0], segment.remembered(w))
        initial = self.cell.initial_state(b)

        def block(state, new):
            c_brd, old = state
            doc_bw = new[2]
            fresh_b = doc_bw[:, 0] != old[2][:, -1]
            c_brd = jnp.where(fresh_b[:, None, None], initial, c_brd)
            k_hbsk, v_hbsk = (jnp.concatenate([old[i], new[i]], axis=2) for i in range(2))
            doc_bs = jnp.concatenate([old[2], doc_bw], axis=1)
            bias_bs = jnp.where(doc_bs == doc_bw[:, -1:], 0.0, MASKED)
            c_next, read = self.cell(c_brd, k_hbsk, v_hbsk, bias_bs)
            split_b = doc_bw[:, 0] != doc_bw[:, -1]
            c_next = jnp.where(split_b[:, None, None], initial, c_next)
            return (c_next, new), read

        start = (carry["state"].astype(initial.dtype), old)
        xs = (blocks(k), blocks(v), doc_jbw)
        (state, _), (state_keys, state_values) = jax.lax.scan(block, start, xs)
        return state, every_block(state_keys), every_block(state_values)

    def state_queries(self, x_btd: jax.Array) -> jax.Array:
        """Queries [..., h, k] of tokens [..., d] for the state."""
        return scale_queries(self.state_query(x_btd), self.state_scale)

    def _read_state(self, x_btd, state_keys, state_values, segment) -> jax.Array:
        """Values [b, t, h, k] that tokens find in the state before their block."""
        w = self.attention.window
        q_bthk = self.state_queries(x_btd)
        q_hbjtk = blocks_by_head(q_bthk, w)
        h, b, j = q_hbjtk.shape[:3]

        def flat(x_jhbrk: jax.Array) -> jax.Array:
            x_hbjrk = x_jhbrk.transpose(1, 2, 0, 3, 4)
            return x_hbjrk.reshape(h, b * j, *x_hbjrk.shape[3:])

        q_hntk = q_hbjtk.reshape(h, b * j, w, -1)
        out_hntk = attend_heads(q_hntk, flat(state_keys), flat(state_values))
        out_bthk = out_hntk.reshape(q_hbjtk.shape).transpose(1, 2, 3, 0, 4).reshape(q_bthk.shape)
        doc_bjt = segment.doc_bt.reshape(b, j, w)
        same_bt = (doc_bjt == doc_bjt[:, :, :1]).reshape(b, j * w)
        return jnp.where(same_bt[:, :, None, None], out_bthk, 0)
