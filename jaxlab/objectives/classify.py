"""Classification of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import Batch, Loss, masked_mean
from jaxlab.data import unit_images


def classify(
    model: Callable[..., Any], batch: Batch, carry: Any = None, key: jax.Array | None = None
) -> Loss:
    """Computes the mean cross-entropy of the label, in nats.

    Args:
      model: `images_bhwc -> logits_bc`, for images in [0, 1].
      batch: `inputs` [b, h, w, c], uint8 levels or floats in [0, 1] (see `data.unit_images`);
        `targets`, int [b] labels or float [b, c] probabilities (as from `augment.mixup`); and
        optionally `mask` bool [b], true for rows that count.
      carry: returned unchanged.
      key: not used.

    Returns:
      A `Loss` whose weight is the number of rows that count, with the metric `accuracy` (of the
      most likely label).
    """
    logits_bc = model(unit_images(batch["inputs"]))
    targets = batch["targets"]
    nats_b = label_nats(logits_bc, targets)
    mask = batch.get("mask", jnp.ones(nats_b.shape, bool))
    value, weight = masked_mean(nats_b, mask)
    labels = targets if targets.ndim == 1 else targets.argmax(axis=-1)
    hits = masked_mean(logits_bc.argmax(axis=-1) == labels, mask)
    return Loss(value, weight, {"accuracy": hits}, carry)


def label_nats(logits_bc: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the cross-entropy of each row, float32 [b], in nats.

    Args:
      logits_bc: [b, c].
      targets: int [b] labels, or float [b, c] probabilities.
    """
    log_probs_bc = jax.nn.log_softmax(logits_bc.astype(jnp.float32))
    if targets.ndim == 1:
        return -jnp.take_along_axis(log_probs_bc, targets[:, None], axis=-1)[:, 0]
    return -(targets * log_probs_bc).sum(axis=-1)
