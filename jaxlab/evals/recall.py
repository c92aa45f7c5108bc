"""Accuracy by how far back the answer stands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlab.core import Batch, Params, UsageError, View, whole


def accuracy_by_block(
    view: View,
    params: Params,
    batch: Batch,
    block: int,
    *,
    segment_length: int | None = None,
    before_segment: Callable[[Params, Any], Any] | None = None,
) -> np.ndarray:
    """The part of the targets that a model ranks first, for every block of the sequence.

    Args:
      view: the model; called as `(tokens_bt, carry, start_bt) -> (logits_btv, carry)`.
      params: `{path: array}`.
      batch: `inputs`, `targets`, `mask`, `start`, `position` [b, t], such as a
        `jaxlab.data.RecallTask` makes.
      block: positions of a block.
      segment_length: positions that the model reads at once, with its carry from one to the next;
        None: all.
      before_segment: `(params, carry) -> carry`, applied before every segment but the first, such
        as one that takes the recurrent state away.

    Returns:
      float64 [number of blocks]; NaN for a block without a target that counts.

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
    mask = np.asarray(batch["mask"])
    needed = {name: batch[name] for name in ("inputs", "targets", "start")}
    parts, carry = [], None
    for at in range(0, length, segment):
        if at and before_segment is not None:
            carry = before_segment(params, carry)
        here = {name: array[:, at : at + segment] for name, array in needed.items()}
        part, carry = _hits(view, params, here, carry)
        parts.append(np.asarray(whole(part)))
    hits = np.concatenate(parts, axis=1)
    blocks = np.asarray(batch["position"])[mask] // block
    size = length // block
    counts = np.bincount(blocks, minlength=size)
    with np.errstate(invalid="ignore"):
        return np.bincount(blocks, hits[mask], size) / np.where(counts, counts, np.nan)


@functools.partial(jax.jit, static_argnums=0)
def _hits(view: View, params: Params, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
    logits_btv, carry = view.apply(params, batch["inputs"], carry, batch["start"])
    return logits_btv.argmax(axis=-1) == batch["targets"], carry
