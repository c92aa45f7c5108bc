"""Accuracy by how far back the answer lies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxlab.core import Batch, Rules, UsageError, View, use_mesh, whole
from jaxlab.evals.placed import Placed


def accuracy_by_block(
    view: View | nnx.Module,
    batch: Batch,
    block: int,
    *,
    segment_length: int | None = None,
    before_segment: Callable[[View, Any], Any] | None = None,
) -> np.ndarray:
    """The share of targets to which a model gives the largest logit, for every block of a sequence.

    Args:
      view: the model or its view; called as `(tokens_bt, carry, start_bt) -> (logits_btv, carry)`,
        in evaluation mode on the devices of its parameters.
      batch: `inputs`, `targets`, `mask`, `start`, `position` [b, t], as made by a
        `jaxlab.data.RecallTask`.
      block: positions in a block.
      segment_length: positions that the model reads at once, passing its carry on; None: all.
      before_segment: `(view, carry) -> carry`, applied before every segment but the first, for
        example to reset the recurrent state.

    Returns:
      float64 [number of blocks]; NaN for a block without targets that count.

    Raises:
      UsageError: `block` or `segment_length` below 1, or a sequence that it does not divide.
    """
    length = batch["inputs"].shape[1]
    segment = length if segment_length is None else segment_length
    for name, size in (("block", block), ("segment_length", segment)):
        if size < 1 or length % size:
            raise UsageError(
                f"{name}={size}; expected a divisor of the sequence, which is {length}"
            )
    model, mask = Placed.of(view), np.asarray(batch["mask"])
    needed = {name: batch[name] for name in ("inputs", "targets", "start")}
    change = jax.jit(before_segment) if before_segment is not None else None
    parts, carry = [], None
    for at in range(0, length, segment):
        if at and change is not None:
            with use_mesh(model.mesh, model.rules):
                carry = change(model.view, carry)
        here = {name: array[:, at : at + segment] for name, array in needed.items()}
        part, carry = model.run(_hits, here, carry)
        parts.append(np.asarray(whole(part)))
    hits = np.concatenate(parts, axis=1)
    blocks = np.asarray(batch["position"])[mask] // block
    size = length // block
    counts = np.bincount(blocks, minlength=size)
    with np.errstate(invalid="ignore"):
        return np.bincount(blocks, hits[mask], size) / np.where(counts, counts, np.nan)


@functools.partial(jax.jit, static_argnums=0)
def _hits(rules: Rules, view: View, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
    logits_btv, carry = view(batch["inputs"], carry, batch["start"])
    return logits_btv.argmax(axis=-1) == batch["targets"], carry
