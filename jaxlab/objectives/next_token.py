"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import Batch, Loss, masked_mean


def next_token(
    model: Callable[..., Any], batch: Batch, carry: Any = None, key: jax.Array | None = None
) -> Loss:
    """Computes the mean cross-entropy of the next token, in nats, over the targets that count.

    Args:
      model: `(tokens_bt, carry, start_bt, key=) -> (logits_btv, carry)`.
      batch: `inputs`, `targets` int [b, t]; `mask` bool [b, t], true for targets that count;
        `start` bool [b, t], true where documents start.
      carry: the recurrent state before the batch, or None.
      key: the key for dropout, or None.

    Returns:
      A `Loss` whose weight is the number of targets, with the metric `accuracy` and the carry
      after the batch.
    """
    logits_btv, carry = model(batch["inputs"], carry, batch["start"], key=key)
    nats_bt = token_nats(logits_btv, batch["targets"])
    value, weight = masked_mean(nats_bt, batch["mask"])
    hits = masked_mean(logits_btv.argmax(axis=-1) == batch["targets"], batch["mask"])
    return Loss(value, weight, {"accuracy": hits}, carry)


def token_nats(logits_btv: jax.Array, targets_bt: jax.Array) -> jax.Array:
    """Computes the cross-entropy of each target, float32 [b, t], in nats."""
    logits_btv = logits_btv.astype(jnp.float32)
    picked = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_btv, axis=-1) - picked
