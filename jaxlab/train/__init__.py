"""Training: state, one step, one loop, optimizers, checkpoints, hooks, the command line."""

from __future__ import annotations

from jaxlab.train import masks as masks
from jaxlab.train.capacity import CapacityMatch as CapacityMatch
from jaxlab.train.capacity import capacity_matched as capacity_matched
from jaxlab.train.checkpoints import Checkpoints as Checkpoints
from jaxlab.train.checkpoints import Restored as Restored
from jaxlab.train.command_line import main as main
from jaxlab.train.connect import connect as connect
from jaxlab.train.densities import densities as densities
from jaxlab.train.densities import layer_densities as layer_densities
from jaxlab.train.hooks import Evaluate as Evaluate
from jaxlab.train.hooks import Hook as Hook
from jaxlab.train.hooks import SaveCheckpoint as SaveCheckpoint
from jaxlab.train.hooks import Writer as Writer
from jaxlab.train.host import keep_place as keep_place
from jaxlab.train.host import return_memory as return_memory
from jaxlab.train.host import reuse_memory as reuse_memory
from jaxlab.train.kernels import kernel_shape as kernel_shape
from jaxlab.train.kernels import prunable as prunable
from jaxlab.train.loading import load_model as load_model
from jaxlab.train.loading import restore_params as restore_params
from jaxlab.train.logs import LogMetrics as LogMetrics
from jaxlab.train.loop import Run as Run
from jaxlab.train.loop import Seconds as Seconds
from jaxlab.train.loop import fit as fit
from jaxlab.train.mask_report import MaskReport as MaskReport
from jaxlab.train.mask_report import mask_report as mask_report
from jaxlab.train.optimizers import OptimizerConfig as OptimizerConfig
from jaxlab.train.optimizers import build as build_optimizer
from jaxlab.train.optimizers import schedule as schedule
from jaxlab.train.pods import Pod as Pod
from jaxlab.train.progress import ProgressBar as ProgressBar
from jaxlab.train.pruning import Gradual as Gradual
from jaxlab.train.pruning import MaskChange as MaskChange
from jaxlab.train.pruning import Regrow as Regrow
from jaxlab.train.recovery import StopOnSpike as StopOnSpike
from jaxlab.train.repeat import python_command as python_command
from jaxlab.train.repeat import repeat_command as repeat_command
from jaxlab.train.repeat import values_of as values_of
from jaxlab.train.repeat import with_command as with_command
from jaxlab.train.selection import keep_largest as keep_largest
from jaxlab.train.sparse_init import rescale as rescale
from jaxlab.train.sparse_init import sparse_init as sparse_init
from jaxlab.train.sparsify import SparseState as SparseState
from jaxlab.train.sparsify import masks_of as masks_of
from jaxlab.train.sparsify import sparsify as sparsify
from jaxlab.train.sparsity import SparsityConfig as SparsityConfig
from jaxlab.train.sparsity import make_masks as make_masks
from jaxlab.train.sparsity import start_sparse as start_sparse
from jaxlab.train.state import Build as Build
from jaxlab.train.state import StatePlan as StatePlan
from jaxlab.train.state import TrainState as TrainState
from jaxlab.train.state import init_state as init_state
from jaxlab.train.state import plan_state as plan_state
from jaxlab.train.step import Step as Step
from jaxlab.train.step import make_eval as make_eval
from jaxlab.train.step import make_step as make_step
from jaxlab.train.step import metric_names as metric_names
from jaxlab.train.stopping import StopOnNaN as StopOnNaN
from jaxlab.train.stopping import StopOnSignal as StopOnSignal
from jaxlab.train.stopping import TrainingDiverged as TrainingDiverged
from jaxlab.train.stopping import TrainingInterrupted as TrainingInterrupted
from jaxlab.train.training import MAY_CHANGE as MAY_CHANGE
from jaxlab.train.training import TrainConfig as TrainConfig
from jaxlab.train.training import describe as describe
from jaxlab.train.training import run_training as run_training
from jaxlab.train.watchdog import Watchdog as Watchdog

__all__ = [
    "MAY_CHANGE",
    "Build",
    "CapacityMatch",
    "Checkpoints",
    "Evaluate",
    "Gradual",
    "Hook",
    "LogMetrics",
    "MaskChange",
    "MaskReport",
    "OptimizerConfig",
    "Pod",
    "ProgressBar",
    "Regrow",
    "Restored",
    "Run",
    "SaveCheckpoint",
    "Seconds",
    "SparseState",
    "SparsityConfig",
    "StatePlan",
    "Step",
    "StopOnNaN",
    "StopOnSignal",
    "StopOnSpike",
    "TrainConfig",
    "TrainState",
    "TrainingDiverged",
    "TrainingInterrupted",
    "Watchdog",
    "Writer",
    "build_optimizer",
    "capacity_matched",
    "connect",
    "densities",
    "describe",
    "fit",
    "init_state",
    "keep_largest",
    "keep_place",
    "kernel_shape",
    "layer_densities",
    "load_model",
    "main",
    "make_eval",
    "make_masks",
    "make_step",
    "mask_report",
    "masks",
    "masks_of",
    "metric_names",
    "plan_state",
    "prunable",
    "python_command",
    "repeat_command",
    "rescale",
    "restore_params",
    "return_memory",
    "reuse_memory",
    "run_training",
    "schedule",
    "sparse_init",
    "sparsify",
    "start_sparse",
    "values_of",
    "with_command",
]
