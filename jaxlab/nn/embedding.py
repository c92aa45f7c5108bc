"""A table of embeddings whose rows are padded, so that devices can share them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Embedding(nnx.Module):
    """Token ids to vectors: rows of a table that starts as N(0, 1).

    The parameter has rows of zeros after the real ones, up to a multiple: 260 rows do not divide
    over eight devices, 384 do. Only `table` reads the parameter and it drops them, so their
    gradient is zero, and they stay zero.

    Args:
      vocab_size: v. width: d.
      multiple: the number of rows is rounded up to a multiple of it; 1 for no padding.
      dtype: of the output; the parameter is float32.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        multiple: int = 1,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init_vd = jax.random.normal(rngs.params(), (vocab_size, width), jnp.float32)
        padding = -vocab_size % multiple
        self.embedding = nnx.Param(
            jnp.pad(init_vd, ((0, padding), (0, 0))), axes=("vocab", "embed"), padding=padding
        )
        self.vocab_size, self.dtype = vocab_size, dtype

    def table(self) -> jax.Array:
        """The real rows [v, d], in the dtype of the output.

        Logits are products with these rows. Slicing the table rather than the logits lets devices
        that share it exchange a few rows, and each computes the logits of its own.
        """
        return self.embedding[: self.vocab_size].astype(self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Ids [...] to [..., d]; NaN for an id that is not in the table."""
        return jnp.take(self.table(), tokens, axis=0)
