"""Statistics of masks per kernel: weights, density, units without inputs or outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.core import natural_sort, require_fitting_masks
from jaxlab.sparsity.kernels import kernel_shape, prunable


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """Statistics of one kernel.

    Attributes:
      path: the path of the kernel.
      size: number of weights.
      kept: number of weights kept.
      num_inputs, num_outputs: number of units (features, channels) on each side.
      unread_inputs: inputs without a weight.
      empty_outputs: outputs without a weight, which are constant.
    """

    path: str
    size: int
    kept: int
    num_inputs: int
    num_outputs: int
    unread_inputs: int
    empty_outputs: int

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return self.kept / self.size


@dataclasses.dataclass(frozen=True)
class MaskReport:
    """Statistics of all kernels; `str` formats them as a table.

    Attributes:
      kernels: one report per kernel, in natural order.
    """

    kernels: tuple[KernelReport, ...]

    @property
    def size(self) -> int:
        """Number of weights in all kernels."""
        return sum(kernel.size for kernel in self.kernels)

    @property
    def kept(self) -> int:
        """Number of weights kept in all kernels."""
        return sum(kernel.kept for kernel in self.kernels)

    @property
    def density(self) -> float:
        """The fraction of all weights kept."""
        return self.kept / self.size

    @property
    def empty_units(self) -> int:
        """Number of outputs without inputs in all kernels."""
        return sum(kernel.empty_outputs for kernel in self.kernels)

    def __str__(self) -> str:
        width = max([len(kernel.path) for kernel in self.kernels] + [len("kernel")])
        lines = [f"{'kernel':<{width}}  {'kept':>11} {'of':>11} density  empty outputs"]
        for kernel in self.kernels:
            lines.append(
                f"{kernel.path:<{width}}  {kernel.kept:>11,} {kernel.size:>11,} "
                f"{kernel.density:>7.4f}  {kernel.empty_outputs:,} of {kernel.num_outputs:,}"
            )
        lines.append(f"{'all':<{width}}  {self.kept:>11,} {self.size:>11,} {self.density:>7.4f}")
        return "\n".join(lines)


def mask_report(masks: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> MaskReport:
    """Counts the weights and units that masks keep in each kernel.

    Args:
      masks: `{path: bool array}`.
      params: `{path: array or shape}`, whose other kernels count as dense.

    Raises:
      UsageError: a mask without a parameter.

    >>> report = mask_report({'a/kernel': np.array([[True, False], [True, False]])})
    >>> report.density, report.empty_units
    (0.5, 1)
    """
    if params is not None:
        require_fitting_masks(params, masks)
        dense = {path for path in prunable(params) if path not in masks}
        masks = natural_sort({**masks, **{p: np.ones(params[p].shape, bool) for p in dense}})
    return MaskReport(tuple(_kernel(path, np.asarray(mask)) for path, mask in masks.items()))


def _kernel(path: str, mask: np.ndarray) -> KernelReport:
    *window, inputs, outputs = kernel_shape(path, mask.shape)
    mask_wio = mask.reshape(math.prod(window), inputs, outputs)
    return KernelReport(
        path=path,
        size=mask.size,
        kept=int(mask.sum()),
        num_inputs=inputs,
        num_outputs=outputs,
        unread_inputs=int((~mask_wio.any(axis=(0, 2))).sum()),
        empty_outputs=int((~mask_wio.any(axis=(0, 1))).sum()),
    )
