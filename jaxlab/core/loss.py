"""Batches, and losses that average exactly over uneven batches, micro-batches and shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.errors import UsageError

Batch = Mapping[str, jax.Array]
"""Arrays by documented key: `inputs`, `targets`, `mask`, `start`, `position`, `index`, `domain`."""

Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""`{name: (mean, weight)}` scalars; means over parts combine by their weights."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """The result of an objective.

    Attributes:
      value: float32 scalar, the mean to minimise.
      weight: float32 scalar, the number of tokens or examples in the mean. The mean over two
        batches is `(a.value * a.weight + b.value * b.weight) / (a.weight + b.weight)`.
      metrics: `{name: (mean, weight)}`, each with its own weight.
      carry: the recurrent state after the batch, or None for models without one.
    """

    value: jax.Array
    weight: jax.Array
    metrics: Metrics = dataclasses.field(default_factory=dict)
    carry: Any = None


Objective = Callable[[Callable[..., Any], Batch, Any, jax.Array | None], Loss]
"""`objective(model, batch, carry, key) -> Loss`, pure, for any callable `model`."""


def masked_mean(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of `values` where `mask` is true, and their number; both 0 for none.

    Args:
      values: float array.
      mask: bool or 0/1 array of the same shape. Where it is false, values may be anything, even
        NaN.

    Raises:
      UsageError: the shapes differ (broadcasting would give a wrong count).

    >>> import jax.numpy as jnp
    >>> [float(x) for x in masked_mean(jnp.array([1., 2., 9.]), jnp.array([True, True, False]))]
    [1.5, 2.0]
    """
    if values.shape != mask.shape:
        raise UsageError(
            f"mask of shape {mask.shape} for values of shape {values.shape}; expected the same"
        )
    total = jnp.where(mask != 0, values.astype(jnp.float32), 0.0).sum()
    weight = jnp.count_nonzero(mask).astype(jnp.float32)
    return total / jnp.maximum(weight, 1.0), weight


def add_metrics(sums: Metrics, metrics: Metrics) -> Metrics:
    """Adds `{name: (mean, weight)}` to running `{name: (sum, weight)}`, which may start empty."""
    added = dict(sums)
    for name, (mean, weight) in metrics.items():
        total, weights = sums.get(name, (0.0, 0.0))
        added[name] = (total + mean * weight, weights + weight)
    return added
