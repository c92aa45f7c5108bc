"""The block-recurrent cell (arXiv 2203.07852).

Symbols of the paper's layer and ours: tokens X `x_btd`, state C `c_brd` (r state vectors), keys and
values of tokens Ke, Ve and of the state Ks, Vs, window W `w`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.attention import head_scales
from jaxlab.nn.backend import PLAIN, Backend
from jaxlab.nn.broadcast import lift
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import RMSNorm, l2_normalise, scale_queries
from jaxlab.nn.reading import KeySet, SetReading
from jaxlab.nn.state_update import SkipUpdate


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
      backend: computes the products and reads; an `update` that is given has its own.
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
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        normal = jax.random.normal
        shape, axes = (num_states, width), (None, "embed")
        # N(0, 0.1) and N(0, 1) as in the paper's code: states that start equal would stay equal.
        self.initial = nnx.Param(0.1 * normal(rngs.params(), shape), axes=axes)
        self.ids = nnx.Param(normal(rngs.params(), shape), axes=axes)
        self.norm = RMSNorm(width, dtype=dtype, rngs=rngs)
        heads, head_axes = (num_heads, head_dim), ("embed", "heads", None)
        how = {"backend": backend, "dtype": dtype, "rngs": rngs}
        self.query = projection(width, heads, head_axes, **how)
        self.token_query = projection(width, heads, head_axes, **how)
        self.key = projection(width, heads, head_axes, **how)
        self.value = projection(width, heads, head_axes, **how)
        self.scale = head_scales(num_heads, head_scale)
        self.token_scale = head_scales(num_heads, head_scale)
        if update is None:
            update = SkipUpdate(width, 2 * num_heads, head_dim, **how)
        self.update: Any = update
        self.num_states, self.width, self.backend, self.dtype = num_states, width, backend, dtype

    def keys_values(self, c_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalised keys, and values, of the state for its readers, [b, r, h, k] each."""
        cn_brd = self._named(c_brd)
        return l2_normalise(self.key(cn_brd)), self.value(cn_brd)

    def queries(self, c_brd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scaled queries of the state for itself and for tokens, [b, r, h, k] each."""
        cn_brd = self._named(c_brd)
        return (
            scale_queries(self.query(cn_brd), self.scale),
            scale_queries(self.token_query(cn_brd), self.token_scale),
        )

    def __call__(
        self, c_brd: jax.Array, tokens: KeySet, bias_bs: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block.

        Args:
          c_brd: the state before the block.
          tokens: keys and values of the tokens that the state reads.
          bias_bs: 0 for tokens that are seen and `tiles.MASKED` for the others, [b, s].

        Returns:
          The state after the block, and the keys, as `Backend.keys` gives them, and values
          [b, r, h, k] of the state before it, which the tokens of the block read.
        """
        cn_brd, backend = self._named(c_brd), self.backend
        own, own_scale = backend.queries(self.query(cn_brd), self.scale)
        of_tokens, token_scale = backend.queries(self.token_query(cn_brd), self.token_scale)
        cn_brd = self._named(c_brd)
        keys, values = backend.keys(self.key(cn_brd)), self.value(cn_brd)
        state = KeySet((keys,), (values,), (backend.normalises,))
        heads_brhk = backend.read(
            SetReading(own, state, own_scale),
            SetReading(of_tokens, tokens, token_scale, bias_bs),
        )
        c_next_brd = self.update(c_brd, heads_brhk)
        return c_next_brd.astype(c_brd.dtype), (keys, values)

    def initial_state(self, batch_size: int) -> jax.Array:
        """The learned start of a document, [b, r, d]."""
        initial_1rd = self.initial[...].astype(self.dtype)[None]
        return jnp.broadcast_to(initial_1rd, (batch_size, self.num_states, self.width))

    def _named(self, c_brd: jax.Array) -> jax.Array:
        return self.norm(c_brd) + lift(self.ids[...].astype(self.dtype), 3)
