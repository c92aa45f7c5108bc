"""What a layer must know of the segment it reads: which tokens belong to one document."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """Documents in a segment of t tokens that follows an earlier one.

    Attributes:
      doc_bt: int32 [b, t], 0 for the document that was going on, one more after each start.
      length_b: int32 [b], tokens of the going-on document seen before this segment; 0 means that
        there is none, and everything remembered is void.
    """

    doc_bt: jax.Array
    length_b: jax.Array

    @classmethod
    def of(cls, start_bt: jax.Array, length_b: jax.Array | None = None) -> Segment:
        """From marks of document starts [b, t] and the length so far (none: 0)."""
        if length_b is None:
            length_b = jnp.zeros(start_bt.shape[:1], jnp.int32)
        return cls(jnp.cumsum(start_bt.astype(jnp.int32), axis=1), length_b)

    def remembered(self, window: int) -> jax.Array:
        """Document numbers [b, window] of the last tokens before the segment; -1 for none."""
        age_s = jnp.arange(window, 0, -1)
        return jnp.where(age_s <= self.length_b[:, None], 0, -1)

    def ages(self) -> jax.Array:
        """int32 [b, t], tokens of its own document before each token, of earlier segments too."""
        doc_bt = self.doc_bt
        before_bt = jnp.concatenate([jnp.zeros_like(doc_bt[:, :1]), doc_bt[:, :-1]], axis=1)
        index_t = jnp.arange(doc_bt.shape[1], dtype=jnp.int32)
        start_bt = jnp.where(doc_bt != before_bt, index_t, -self.length_b[:, None])
        return index_t - jax.lax.cummax(start_bt, axis=1)

    def length_after(self) -> jax.Array:
        """int32 [b], tokens of the last document seen when the segment is over."""
        in_segment = (self.doc_bt == self.doc_bt[:, -1:]).sum(axis=1, dtype=jnp.int32)
        return in_segment + jnp.where(self.doc_bt[:, -1] == 0, self.length_b, 0)
