"""Which parameters are kernels that may be pruned, and how their axes are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.core import UsageError, matches, natural_sort, nearest

PRUNABLE = ("*kernel",)
"""Patterns of the parameters that are pruned by default: no biases, scales, embeddings, tables."""

HEADS_LAST = ("*query/kernel", "*key/kernel", "*value/kernel", "*qkv/kernel")
"""Kernels of rank three [d, h, k] whose outputs are heads by their width."""

HEADS_FIRST = (
    "*out/kernel",
    "*output/kernel",
    "*up/kernel",
    "*linear/kernel",
    "*forget/kernel",
    "*take/kernel",
)
"""Kernels of rank three [h, k, d] whose inputs are heads by their width."""


def prunable(params: Mapping[str, Any], patterns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The paths of the kernels that are counted and masked, in natural order.

    Those are the parameters of rank two or more that fit a pattern.

    Args:
      params: `{path: array or shape}`.
      patterns: over the paths; by default `PRUNABLE`.

    Raises:
      UsageError: a pattern that fits no parameter of rank two or more, with the nearest path.

    >>> import jax
    >>> net = {'up/kernel': (4, 8), 'up/bias': (8,), 'table': (9, 4), 'conv/kernel': (3, 3, 4, 4)}
    >>> prunable({path: jax.ShapeDtypeStruct(shape, 'float32') for path, shape in net.items()})
    ('conv/kernel', 'up/kernel')
    """
    patterns = PRUNABLE if patterns is None else tuple(patterns)
    wide = [path for path, p in natural_sort(params).items() if len(p.shape) > 1]
    for pattern in patterns:
        if not any(matches(path, pattern) for path in wide):
            raise UsageError(
                f"pattern {pattern!r} fits no parameter of rank two or more{nearest(pattern, wide)}"
            )
    return tuple(path for path in wide if matches(path, patterns))


def kernel_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a kernel as `(*window, fan_in, fan_out)`; the window is that of a convolution.

    Dense kernels [in, out] and convolutions [..., in, out] (HWIO) are so already. Kernels of
    attention have three axes: [d, h, k] is (d, h k), by `HEADS_LAST`; [h, k, d] is (h k, d), by
    `HEADS_FIRST`. A stack of kernels [l, in, out] is taken for a convolution of width l.

    >>> kernel_shape('attention/query/kernel', (64, 4, 16))
    (64, 64)
    >>> kernel_shape('conv/kernel', (3, 3, 16, 32))
    (3, 3, 16, 32)
    """
    if len(shape) == 3 and matches(path, HEADS_LAST):
        return shape[0], shape[1] * shape[2]
    if len(shape) == 3 and matches(path, HEADS_FIRST):
        return shape[0] * shape[1], shape[2]
    return tuple(shape)


def num_inputs(path: str, shape: Sequence[int]) -> int:
    """How many weights of a kernel one output has: its fan-in, times the window."""
    return math.prod(kernel_shape(path, shape)[:-1])
