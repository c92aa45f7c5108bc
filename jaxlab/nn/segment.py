"""What a layer must know about the segment it reads: which tokens belong to one document."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """Documents in a segment of t tokens that follows an earlier one.

    Attributes:
      doc_bt: int32 [b, t], 0 for the document that continues, one more after each start.
      length_b: int32 [b], tokens of that document seen before this segment; 0: there is none, and
        nothing that is remembered counts.
    """

    doc_bt: jax.Array
    length_b: jax.Array

    @classmethod
    def of(cls, start_bt: jax.Array, length_b: jax.Array | None = None) -> Segment:
        """From marks of document starts [b, t] and the length so far (default 0)."""
        if length_b is None:
            length_b = jnp.zeros(start_bt.shape[:1], jnp.int32)
        return cls(jnp.cumsum(start_bt.astype(jnp.int32), axis=1), length_b)

    def remembered(self, window: int) -> jax.Array:
        """Document numbers [b, window] of the last tokens before the segment; -1 for none."""
        age_s = jnp.arange(window, 0, -1)
        return jnp.where(age_s[None] <= self.length_b[:, None], 0, -1)

    def ages(self) -> jax.Array:
        """int32 [b, t], tokens before each token in its document, in earlier segments too."""
        doc_bt = self.doc_bt
        before_bt = jnp.concatenate([jnp.zeros_like(doc_bt[:, :1]), doc_bt[:, :-1]], axis=1)
        index_1t = jnp.arange(doc_bt.shape[1], dtype=jnp.int32)[None]
        start_bt = jnp.where(doc_bt != before_bt, index_1t, -self.length_b[:, None])
        return index_1t - jax.lax.cummax(start_bt, axis=1)

    def length_after(self) -> jax.Array:
        """int32 [b], tokens of the last document seen by the end of the segment."""
        in_segment = (self.doc_bt == self.doc_bt[:, -1:]).sum(axis=1, dtype=jnp.int32)
        return in_segment + jnp.where(self.doc_bt[:, -1] == 0, self.length_b, 0)
