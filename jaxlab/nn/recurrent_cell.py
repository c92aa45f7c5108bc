"""The block-recurrent cell (arXiv 2203.07852).

Symbols of the paper's layer and ours: tokens X `x_btd`, state C `c_brd` (r state vectors), keys and
values of tokens Ke, Ve and of the state Ks, Vs, window W `w`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.attention import head_scales, scale_queries
from jaxlab.nn.cpu.compiled_attention import Reading, attend_readings
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import RMSNorm, l2_normalise
from jaxlab.nn.state_update import SkipUpdate
from jaxlab.nn.tiles import attend_heads


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
      kernel: what the heads read with, see `tiles.attend_heads`, and what computes the products.

    Raises:
      UsageError: an unknown kernel.
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
        kernel: Literal["plain", "pallas", "compiled"] = "plain",
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
        how = {"kernel": kernel, "dtype": dtype, "rngs": rngs}
        self.query = projection(width, heads, axes, **how)
        self.token_query = projection(width, heads, axes, **how)
        self.key = projection(width, heads, axes, **how)
        self.value = projection(width, heads, axes, **how)
        self.scale = head_scales(num_heads, head_scale)
        self.token_scale = head_scales(num_heads, head_scale)
        if update is None:
            update = SkipUpdate(width, 2 * num_heads, head_dim, **how)
        self.update = update
        self.num_states, self.width, self.kernel, self.dtype = num_states, width, kernel, dtype

    def queries(self, c_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scaled queries of the state for itself and for tokens, [h, b, r, k] each."""
        cn_brd = self._named(c_brd)
        own = scale_queries(self.query(cn_brd), self.scale)
        read = scale_queries(self.token_query(cn_brd), self.token_scale)
        return own.transpose(2, 0, 1, 3), read.transpose(2, 0, 1, 3)

    def keys_values(self, c_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the state for its readers, [h, b, r, k] each."""
        cn_brd = self._named(c_brd)
        keys, values = l2_normalise(self.key(cn_brd)), self.value(cn_brd)
        return keys.transpose(2, 0, 1, 3), values.transpose(2, 0, 1, 3)

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
        queries, (keys, values) = self.queries(c_brd), self.keys_values(c_brd)
        heads_hbrk = jnp.concatenate(
            [
                attend_heads(queries[0], keys, values, kernel=self.kernel),
                attend_heads(queries[1], k_hbsk, v_hbsk, bias_bs, kernel=self.kernel),
            ]
        )
        c_next_brd = self.update(c_brd, heads_hbrk.transpose(1, 2, 0, 3))
        return c_next_brd.astype(c_brd.dtype), (keys, values)

    def read_compiled(
        self,
        c_brd: jax.Array,
        keys: tuple[jax.Array, jax.Array],
        values: tuple[jax.Array, jax.Array],
        unit: jax.Array,
        bias_bs: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block as the call computes it, by one pass of compiled code over state and tokens.

        Args:
          c_brd: the state before the block.
          keys, values: of the block of tokens before, and of this one, [b, w, kv heads, k] each.
          unit: int32 [2], which of the two have keys that are not normalised yet.
          bias_bs: as in the call.

        Returns:
          The state after the block, and the keys, not normalised, and values [b, r, h, k] of the
          state before it.
        """
        cn_brd = self._named(c_brd)
        own_keys, own_values = self.key(cn_brd), self.value(cn_brd)
        heads_brhk = attend_readings(
            Reading(
                self.query(cn_brd),
                (own_keys,),
                (own_values,),
                0,
                self.num_states - 1,
                scale=jnp.abs(self.scale[...]),
                unit=(True,),
            ),
            Reading(
                self.token_query(cn_brd),
                keys,
                values,
                0,
                bias_bs.shape[1] - 1,
                mask=bias_bs,
                scale=jnp.abs(self.token_scale[...]),
                unit=unit,
            ),
        )
        c_next_brd = self.update(c_brd, heads_brhk)
        return c_next_brd.astype(c_brd.dtype), (own_keys, own_values)

    def initial_state(self, batch_size: int) -> jax.Array:
        """The learned start of a document, [b, r, d]."""
        return jnp.broadcast_to(
            self.initial[...].astype(self.dtype), (batch_size, self.num_states, self.width)
        )

    def _named(self, c_brd: jax.Array) -> jax.Array:
        return self.norm(c_brd) + self.ids[...].astype(self.dtype)
