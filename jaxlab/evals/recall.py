"""Accuracy by how far back the answer stands."""

from __future__ import annotations

import functools

import jax
import numpy as np

from jaxlab.core import Batch, Params, UsageError, View, whole


def accuracy_by_block(view: View, params: Params, batch: Batch, block: int) -> np.ndarray:
    """The part of the targets that a model ranks first, for every block of the sequence.

    Args:
      view: the model; called as `(tokens_bt, carry, start_bt) -> (logits_btv, carry)`.
      params: `{path: array}`.
      batch: `inputs`, `targets`, `mask`, `start`, `position` [b, t], such as a
        `jaxlab.data.RecallTask` makes.
      block: positions of a block.

    Returns:
      float64 [number of blocks]; NaN for a block without a target that counts.

    Raises:
      UsageError: `block` below 1, or a sequence that it does not divide.
    """
    length = batch["inputs"].shape[1]
    if block < 1 or length % block:
        raise UsageError(f"block={block}; expected a divisor of the sequence, which is {length}")
    mask = np.asarray(batch["mask"])
    needed = {name: batch[name] for name in ("inputs", "targets", "start")}
    hits = np.asarray(whole(_hits(view, params, needed)))
    blocks = np.asarray(batch["position"])[mask] // block
    size = length // block
    counts = np.bincount(blocks, minlength=size)
    with np.errstate(invalid="ignore"):
        return np.bincount(blocks, hits[mask], size) / np.where(counts, counts, np.nan)


@functools.partial(jax.jit, static_argnums=0)
def _hits(view: View, params: Params, batch: Batch) -> jax.Array:
    logits_btv, _ = view.apply(params, batch["inputs"], None, batch["start"])
    return logits_btv.argmax(axis=-1) == batch["targets"]
