"""Prunable kernels, and the meaning of their axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.core import UsageError, matches, natural_sort, nearest

PRUNABLE = ("*kernel",)
"""Patterns of the parameters to prune by default: no biases, scales, embeddings or tables."""

HEADS_LAST = ("*query/kernel", "*key/kernel", "*value/kernel", "*qkv/kernel")
"""Kernels of rank three [d, h, k], whose outputs are heads times head width."""

HEADS_FIRST = (
    "*out/kernel",
    "*output/kernel",
    "*up/kernel",
    "*linear/kernel",
    "*forget/kernel",
    "*take/kernel",
)
"""Kernels of rank three [h, k, d], whose inputs are heads times head width."""


def prunable(params: Mapping[str, Any], patterns: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the paths of the kernels that are counted and masked, in natural order.

    These are the parameters of rank two or more that match a pattern.

    Args:
      params: `{path: array or shape}`.
      patterns: patterns of paths; None: `PRUNABLE`.

    Raises:
      UsageError: a pattern matches no parameter of rank two or more.

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
                f"pattern {pattern!r} matches no parameter of rank two or more"
                f"{nearest(pattern, wide)}"
            )
    return tuple(path for path in wide if matches(path, patterns))


def kernel_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of a kernel as `(*window, fan_in, fan_out)`, the window of a convolution.

    Dense kernels [in, out] and convolutions [..., in, out] (HWIO) already have this form. Attention
    kernels have three axes: [d, h, k] becomes (d, h k) by `HEADS_LAST`, and [h, k, d] becomes
    (h k, d) by `HEADS_FIRST`. A stack of kernels [l, in, out] is treated as a convolution of
    width l.

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
    """Returns the number of weights per output of a kernel: its fan-in times the window."""
    return math.prod(kernel_shape(path, shape)[:-1])
