"""Checkpoints: saving and restoring a run, and loading its trained model."""

from __future__ import annotations

from jaxlab.checkpoint.checkpoints import Checkpoints as Checkpoints
from jaxlab.checkpoint.checkpoints import Restored as Restored
from jaxlab.checkpoint.loading import load_model as load_model
from jaxlab.checkpoint.loading import restore_params as restore_params

__all__ = ["Checkpoints", "Restored", "load_model", "restore_params"]
