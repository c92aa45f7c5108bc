"""Batches in host memory: their type, and the rows of the global batch that a process reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from jaxlab.core import UsageError

NumpyBatch = dict[str, npt.NDArray[Any]]
"""A batch in host memory: NumPy arrays by key."""


def checked_rows(batch_size: int, rows: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the rows of the global batch to read: `rows`, or all if None.

    Raises:
        UsageError: a batch size below 1, or rows that are out of range or not ascending.
    """
    require_positive(batch_size=batch_size)
    rows = tuple(range(batch_size) if rows is None else rows)
    with_bounds = [-1, *rows, batch_size]
    if not rows or any(a >= b for a, b in zip(with_bounds, with_bounds[1:], strict=False)):
        raise UsageError(
            f"rows={rows}; expected rows of a batch of {batch_size}, ascending from 0 to "
            f"{batch_size - 1}"
        )
    return rows


def require_positive(**sizes: int) -> None:
    """Raises a UsageError that names the first of `sizes` below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name}={value}; expected at least 1")


def require_not_negative(**values: int) -> None:
    """Raises a UsageError that names the first of `values` below 0."""
    for name, value in values.items():
        if value < 0:
            raise UsageError(f"{name}={value}; expected 0 or more")
