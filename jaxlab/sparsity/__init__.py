"""Which weights count: densities, masks, pruning, capacity; sparsity as a change of training."""

from __future__ import annotations

from jaxlab.sparsity import masks as masks
from jaxlab.sparsity.capacity import CapacityMatch as CapacityMatch
from jaxlab.sparsity.capacity import capacity_matched as capacity_matched
from jaxlab.sparsity.config import SparsityConfig as SparsityConfig
from jaxlab.sparsity.config import make_masks as make_masks
from jaxlab.sparsity.config import num_weights as num_weights
from jaxlab.sparsity.config import start_sparse as start_sparse
from jaxlab.sparsity.densities import densities as densities
from jaxlab.sparsity.densities import layer_densities as layer_densities
from jaxlab.sparsity.kernels import kernel_shape as kernel_shape
from jaxlab.sparsity.kernels import prunable as prunable
from jaxlab.sparsity.mask_report import MaskReport as MaskReport
from jaxlab.sparsity.mask_report import mask_report as mask_report
from jaxlab.sparsity.pruning import Gradual as Gradual
from jaxlab.sparsity.pruning import MaskChange as MaskChange
from jaxlab.sparsity.pruning import Regrow as Regrow
from jaxlab.sparsity.selection import keep_largest as keep_largest
from jaxlab.sparsity.sparse_init import rescale as rescale
from jaxlab.sparsity.sparse_init import sparse_init as sparse_init
from jaxlab.sparsity.sparsify import SparseState as SparseState
from jaxlab.sparsity.sparsify import masks_of as masks_of
from jaxlab.sparsity.sparsify import sparsify as sparsify

__all__ = [
    "CapacityMatch",
    "Gradual",
    "MaskChange",
    "MaskReport",
    "Regrow",
    "SparseState",
    "SparsityConfig",
    "capacity_matched",
    "densities",
    "keep_largest",
    "kernel_shape",
    "layer_densities",
    "make_masks",
    "mask_report",
    "masks",
    "masks_of",
    "num_weights",
    "prunable",
    "rescale",
    "sparse_init",
    "sparsify",
    "start_sparse",
]
