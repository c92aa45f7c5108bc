"""The pre-norm transformer block, made from a mixer of tokens and a position-wise layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import constrain, named
from jaxlab.nn.decode import Cursor
from jaxlab.nn.norm import RMSNorm
from jaxlab.nn.segment import Segment


class Block(nnx.Module):
    """`y = x + mixer(norm(x))`, `x' = y + mlp(norm(y))`.

    Args:
      mixer: takes (x_btd, segment, carry) and returns (y_btd, carry), like any attention of this
        room. If its `attention_dropout` is above 0, it also gets a `key` when there is one.
      mlp: takes and returns x_btd.
      norm: makes both norms, called as `norm(width, dtype=dtype, rngs=rngs)`.
      dropout_rate: on the input of the mixer and the output of `mlp`, if a key is given.
    """

    def __init__(
        self,
        width: int,
        mixer: nnx.Module,
        mlp: nnx.Module,
        *,
        norm: Callable[..., nnx.Module] = RMSNorm,
        dropout_rate: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = norm(width, dtype=dtype, rngs=rngs)
        self.attention: Any = mixer
        self.mlp_norm = norm(width, dtype=dtype, rngs=rngs)
        self.mlp = mlp
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        x_btd: jax.Array,
        segment: Segment | None = None,
        carry: Any = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """[b, t, d] to [b, t, d], and the carry after the segment. `key` switches dropout on."""
        keys = (None, None) if key is None else (named(key, "attention"), named(key, "mlp"))
        drops = getattr(self.attention, "attention_dropout", 0.0) > 0
        how = {"key": named(key, "weights")} if key is not None and drops else {}
        mixed, carry = self.attention(
            dropout(self.attention_norm(x_btd), self.dropout_rate, keys[0]), segment, carry, **how
        )
        x_btd = constrain(x_btd + mixed, "batch", "length", None)
        out = dropout(self.mlp(self.mlp_norm(x_btd)), self.dropout_rate, keys[1])
        return constrain(x_btd + out, "batch", "length", None), carry

    def step(self, x_bd: jax.Array, cursor: Cursor, cache: Any) -> tuple[jax.Array, Any]:
        """The next token of each row, [b, d] to [b, d], and the cache with it."""
        mixed, cache = self.attention.step(self.attention_norm(x_bd), cursor, cache)
        x_bd = constrain(x_bd + mixed, "batch", None)
        return constrain(x_bd + self.mlp(self.mlp_norm(x_bd)), "batch", None), cache


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and divides the rest by 1 - rate; without a key, returns x."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
