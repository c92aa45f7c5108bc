"""Block-recurrent attention as an RNN cell: one call, one block of tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.attention import Attention, split_width
from jaxlab.nn.backend import PLAIN, Backend
from jaxlab.nn.position import T5Bias
from jaxlab.nn.recurrent_attention import BlockRecurrentAttention
from jaxlab.nn.recurrent_cell import BlockRecurrentCell
from jaxlab.nn.segment import Segment


class BlockRecurrentRNNCell(nnx.RNNCellBase):
    """The recurrent layer of arXiv 2203.07852 with the calls of a Flax RNN cell.

    Its input is a block of `window` vectors. Its carry holds the state, the keys and values of the
    block before, and the number of vectors read. `nnx.RNN` runs it over blocks [b, j, w, d].

    Args:
      width: d. window: w. num_heads: h, which divides the width. num_states: r.
      update: of the state, see `BlockRecurrentCell`; it reads 2h heads of width d / h.
      head_scale: start of the learned scales of the logits; 8 suits Adam, 1 Adafactor.
      backend: reads and projects, see `Attention`; an `update` that is given has its own.

    Raises:
      UsageError: a width that does not divide by the heads.

    >>> cell = BlockRecurrentRNNCell(32, window=8, num_heads=2, num_states=4, rngs=nnx.Rngs(0))
    >>> blocks = jax.random.normal(jax.random.key(0), (3, 5, 8, 32))
    >>> nnx.RNN(cell)(blocks).shape
    (3, 5, 8, 32)
    """

    def __init__(
        self,
        width: int,
        window: int,
        num_heads: int,
        num_states: int,
        *,
        update: nnx.Module | None = None,
        head_scale: float = 8.0,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        head_dim = split_width(width, num_heads)
        attention = Attention(
            width,
            num_heads,
            head_dim,
            window=window,
            normalise=True,
            head_scale=head_scale,
            position=T5Bias(num_heads, rngs=rngs),
            extra_heads=num_heads,
            backend=backend,
            dtype=dtype,
            rngs=rngs,
        )
        cell = BlockRecurrentCell(
            width,
            num_states,
            num_heads,
            head_dim,
            update=update,
            head_scale=head_scale,
            backend=backend,
            dtype=dtype,
            rngs=rngs,
        )
        self.layer = BlockRecurrentAttention(
            attention, cell, width, head_scale=head_scale, dtype=dtype, rngs=rngs
        )

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """The carry and a block [b, w, d] to the next carry and the block's outputs [b, w, d]."""
        segment = Segment.of(jnp.zeros(inputs.shape[:2], bool), carry["length"])
        outputs, layer = self.layer(inputs, segment, carry["layer"])
        return {"length": segment.length_after(), "layer": layer}, outputs

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Any:
        """The carry of rows that have read nothing yet, for inputs of this shape [b, w, d].

        The state starts at its learned value, whatever `rngs` and `carry_init` are.
        """
        del rngs, carry_init
        rows = input_shape[0]
        return {"length": jnp.zeros((rows,), jnp.int32), "layer": self.layer.init_carry(rows)}

    @property
    def num_feature_axes(self) -> int:
        """Two: the tokens of a block, and their width."""
        return 2
