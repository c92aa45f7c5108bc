"""Masks that change during training: gradual pruning, and dropping and regrowing weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import Masks, Params, UsageError, named
from jaxlab.sparsity.densities import require_counts
from jaxlab.sparsity.selection import keep_largest

Growth = Literal["random", "gradient"]
"""By what weights grow."""


class MaskChange(Protocol):
    """When and how masks change; both methods run inside the training step."""

    def due(self, step: jax.Array) -> jax.Array:
        """Returns whether the masks change after `step` steps, a bool scalar."""
        ...

    def change(self, step: jax.Array, params: Params, grads: Params, masks: Masks) -> Masks:
        """Returns the new masks.

        Args:
          step: number of steps done, int32 scalar.
          params: the parameters before the next step; masked weights are zero.
          grads: the gradient of the loss with respect to all weights.
          masks: the current masks.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Gradual:
    """Gradual magnitude pruning (arXiv 1710.01878) to a given number of weights per kernel.

    With `p = clip((t - begin) / (end - begin), 0, 1)`, a kernel that will lose L weights has lost
    `floor(L (1 - (1 - p)^3))` after step t: each time the smallest in magnitude of the remaining
    ones. Pruned weights do not return.

    Attributes:
      kept: `{path: number of weights at the end}`, or a function of the parameters that returns it.
      begin: the step after which pruning begins, with all weights.
      end: the step after which pruning is complete.
      every: steps between two changes; must divide `end - begin`.

    Raises:
      UsageError: `begin` is not before `end`, or `every` does not divide.
    """

    kept: Mapping[str, int] | Callable[[Params], Mapping[str, int]]
    begin: int
    end: int
    every: int = 100

    def __post_init__(self):
        _require_every(self.every)
        if not 0 <= self.begin < self.end or (self.end - self.begin) % self.every:
            raise UsageError(
                f"gradual pruning from step {self.begin} to {self.end} every {self.every}; it "
                "takes a begin of 0 or more, a later end, and a multiple of every in between"
            )

    def due(self, step: jax.Array) -> jax.Array:
        """See `MaskChange`."""
        since = step - self.begin
        return (since > 0) & (since <= self.end - self.begin) & (since % self.every == 0)

    def change(self, step: jax.Array, params: Params, grads: Params, masks: Masks) -> Masks:
        """See `MaskChange`."""
        kept = self.kept(params) if callable(self.kept) else self.kept
        require_counts(params, kept)
        # A table of integers, since float32 cannot represent the counts of large kernels.
        number = (step - self.begin) // self.every
        rows = {path: jnp.asarray(self._counts(params[path].size, kept[path])) for path in masks}
        return {
            path: keep_largest({path: _size(params[path])}, rows[path][number], {path: mask})[path]
            for path, mask in masks.items()
        }

    def _counts(self, size: int, kept: int) -> np.ndarray:
        """Returns the number of weights after each change, int32 [changes + 1]."""
        changes = (self.end - self.begin) // self.every
        left = [changes - i for i in range(changes + 1)]
        # In integers: floor(L (changes^3 - left^3) / changes^3).
        lost = [(size - kept) * (changes**3 - rest**3) // changes**3 for rest in left]
        return np.asarray([size - number for number in lost], np.int32)


@dataclasses.dataclass(frozen=True)
class Regrow:
    """Drops kept weights of small magnitude and grows as many others in the same kernel.

    After step t, the fraction `drop / 2 (1 + cos(pi t / end))` of a kernel's kept weights with the
    smallest magnitude is dropped, and as many of all other weights, including those just dropped,
    grow: at random (SET, arXiv 1707.04780), or where the gradient is largest (RigL,
    arXiv 1911.11134). A weight that is dropped and regrown at once keeps its value; all other
    regrown weights start at zero.

    Attributes:
      by: `random` or `gradient`.
      drop: the initial fraction, in (0, 1).
      every: steps between two changes.
      end: the step from which on masks no longer change.
      seed: the seed of random growth.

    Raises:
      UsageError: a value out of range.
    """

    by: Growth
    end: int
    drop: float = 0.3
    every: int = 100
    seed: int = 0

    def __post_init__(self):
        _require_every(self.every)
        if self.by not in ("random", "gradient"):
            raise UsageError(f"by={self.by!r}; expected 'random' or 'gradient'")
        if not 0 < self.drop < 1:
            raise UsageError(f"drop={self.drop}; it takes a fraction above 0 and below 1")
        if self.end < 1:
            raise UsageError(f"end={self.end}; it takes a step of 1 or more")

    def due(self, step: jax.Array) -> jax.Array:
        """See `MaskChange`."""
        return (step > 0) & (step < self.end) & (step % self.every == 0)

    def change(self, step: jax.Array, params: Params, grads: Params, masks: Masks) -> Masks:
        """See `MaskChange`."""
        fraction = self.drop / 2 * (1 + jnp.cos(math.pi * step / self.end))
        key = named(jax.random.key(self.seed), "grow", step)
        changed = {}
        for path, mask in masks.items():
            count = mask.sum()
            moved = jnp.round(fraction * count).astype(count.dtype)
            left = keep_largest({path: _size(params[path])}, count - moved, masks)[path]
            scores = _size(grads[path])
            if self.by == "random":
                scores = jax.random.bits(named(key, path), mask.shape) >> 1
            changed[path] = left | keep_largest({path: scores}, moved, {path: ~left})[path]
        return changed


def _size(x: jax.Array) -> jax.Array:
    return jnp.abs(x.astype(jnp.float32))


def _require_every(every: int) -> None:
    if every < 1:
        raise UsageError(f"every={every}; masks change every 1 or more steps")
