"""From logits to a token: temperature, top-k, nucleus."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxlab.core import UsageError


def filter_logits(
    logits_bv: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
) -> jax.Array:
    """Logits whose softmax is the distribution to draw from; `-inf` for tokens that are cut.

    Temperature is applied first, then `top_k`, then `top_p` to what is left. Tokens that tie with
    the last one kept are kept too.

    Args:
      logits_bv: float [..., v].
      temperature: above 0; logits are divided by it.
      top_k: keep this many largest; None, or more than there are: all.
      top_p: keep the fewest largest whose probabilities sum to at least this (nucleus sampling,
        arXiv 1904.09751), in (0, 1].

    Returns:
      float32 [..., v].

    >>> filter_logits(jnp.array([2.0, 1.0, 0.0, 1.5]), top_k=2).tolist()
    [2.0, -inf, -inf, 1.5]
    """
    logits_bv = logits_bv.astype(jnp.float32) / temperature
    if top_k is None and top_p is None:
        return logits_bv
    size = logits_bv.shape[-1] if top_k is None else min(top_k, logits_bv.shape[-1])
    ranked_bk = jax.lax.top_k(logits_bv, size)[0]
    lowest_b1 = ranked_bk[..., -1:]
    if top_p is not None:
        share_bk = jax.nn.softmax(ranked_bk, axis=-1)
        needed_bk = jnp.cumsum(share_bk, axis=-1) - share_bk < top_p
        lowest_b1 = jnp.where(needed_bk, ranked_bk, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_bv >= lowest_b1, logits_bv, -jnp.inf)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p"],
    meta_fields=["top_k", "num_valid"],
)
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Under jit, only `top_k` and `num_valid` are static.

    Attributes:
      temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.
      top_k, top_p: see `filter_logits`.
      num_valid: only ids below it are drawn; the others have no meaning. None: all.
    """

    temperature: float | jax.Array = 1.0
    top_k: int | None = None
    top_p: float | jax.Array | None = None
    num_valid: int | None = None

    def draw(self, logits_bv: jax.Array, key: jax.Array) -> jax.Array:
        """Draws tokens, int32 [b], from logits [b, v]."""
        if self.num_valid is not None:
            invalid_1v = jnp.arange(logits_bv.shape[-1])[None] >= self.num_valid
            logits_bv = jnp.where(invalid_1v, -jnp.inf, logits_bv)
        greedy = jnp.equal(self.temperature, 0)
        temperature = jnp.where(greedy, 1.0, self.temperature)
        filtered_bv = filter_logits(logits_bv, temperature, self.top_k, self.top_p)
        drawn_b = jax.random.categorical(key, filtered_bv)
        return jnp.where(greedy, logits_bv.argmax(axis=-1), drawn_b).astype(jnp.int32)

    def check(self, vocab_size: int) -> None:
        """Checks the numbers.

        Raises:
          UsageError: a number out of range.
        """
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature={self.temperature} must be 0 (greedy) or positive")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        for name in ("top_k", "num_valid"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= vocab_size:
                raise UsageError(f"{name}={value} must lie in 1..{vocab_size}, or be None for all")
