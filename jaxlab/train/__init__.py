"""Training: state, one step, one loop, optimizers, hooks, what ends or changes a run."""

from __future__ import annotations

from jaxlab.train.config import MAY_CHANGE as MAY_CHANGE
from jaxlab.train.config import TrainConfig as TrainConfig
from jaxlab.train.hooks import Evaluate as Evaluate
from jaxlab.train.hooks import Hook as Hook
from jaxlab.train.hooks import SaveCheckpoint as SaveCheckpoint
from jaxlab.train.hooks import Writer as Writer
from jaxlab.train.intervention import Intervention as Intervention
from jaxlab.train.logs import LogMetrics as LogMetrics
from jaxlab.train.loop import Run as Run
from jaxlab.train.loop import Seconds as Seconds
from jaxlab.train.loop import fit as fit
from jaxlab.train.optimizers import OptimizerConfig as OptimizerConfig
from jaxlab.train.optimizers import build as build_optimizer
from jaxlab.train.optimizers import schedule as schedule
from jaxlab.train.pacing import Pacing as Pacing
from jaxlab.train.pacing import pacing_for as pacing_for
from jaxlab.train.pacing import reuse_memory as reuse_memory
from jaxlab.train.progress import ProgressBar as ProgressBar
from jaxlab.train.recovery import StopOnSpike as StopOnSpike
from jaxlab.train.setup import Setup as Setup
from jaxlab.train.setup import batch_shapes as batch_shapes
from jaxlab.train.setup import make_setup as make_setup
from jaxlab.train.state import Build as Build
from jaxlab.train.state import StatePlan as StatePlan
from jaxlab.train.state import TrainState as TrainState
from jaxlab.train.state import init_state as init_state
from jaxlab.train.state import plan_state as plan_state
from jaxlab.train.step import Step as Step
from jaxlab.train.step import make_step as make_step
from jaxlab.train.step import metric_names as metric_names
from jaxlab.train.stopping import StopOnNaN as StopOnNaN
from jaxlab.train.stopping import StopOnSignal as StopOnSignal
from jaxlab.train.stopping import TrainingDiverged as TrainingDiverged
from jaxlab.train.stopping import TrainingInterrupted as TrainingInterrupted
from jaxlab.train.training import run_setup as run_setup
from jaxlab.train.training import run_training as run_training
from jaxlab.train.watchdog import Watchdog as Watchdog

__all__ = [
    "Build",
    "Evaluate",
    "Hook",
    "Intervention",
    "LogMetrics",
    "MAY_CHANGE",
    "OptimizerConfig",
    "Pacing",
    "ProgressBar",
    "Run",
    "SaveCheckpoint",
    "Seconds",
    "Setup",
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
    "batch_shapes",
    "build_optimizer",
    "fit",
    "init_state",
    "make_setup",
    "make_step",
    "metric_names",
    "pacing_for",
    "plan_state",
    "reuse_memory",
    "run_setup",
    "run_training",
    "schedule",
]
