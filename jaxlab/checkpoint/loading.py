"""Loading trained models from the checkpoints of a run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import jax
from flax import nnx

from jaxlab.checkpoint.checkpoints import FOLDER, Checkpoints
from jaxlab.core import Params, UsageError, View
from jaxlab.results import Record


def restore_params(folder: str | os.PathLike[str], step: int | None = None) -> Params:
    """Restores the parameters `{path: array}` of a run onto one device.

    Args:
      folder: a workdir, or its folder of checkpoints.
      step: which checkpoint; by default the newest readable one.

    Raises:
      UsageError: the folder or the checkpoint does not exist, or is not readable.
    """
    with _open_to_read(folder) as checkpoints:
        return checkpoints.restore_model(step=step)[0]


class FromConfig(Protocol):
    """A model class that can be built from its config as a plain dict."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> nnx.Module:
        """Builds the model."""
        ...


def load_model(
    workdir: str | os.PathLike[str],
    model_class: type[FromConfig],
    *,
    config: Mapping[str, Any] | None = None,
    step: int | Literal["best"] | None = None,
) -> Any:
    """Loads the trained model of a run, ready to call.

    Args:
      workdir: the run's folder, with `config.json` and `checkpoints/`.
      model_class: its `from_config(dict)` builds the model.
      config: the model's config; by default the section `model` of `config.json`.
      step: which checkpoint; `"best"` by the run's `train.best_metric`; by default the newest
        readable one.

    Raises:
      UsageError: there is no run or no such readable checkpoint, the config has no model, or the
        parameters do not fit the config.
    """
    if config is None:
        run_config = Record.open(workdir).config
        if "model" not in run_config:
            raise UsageError(
                f"the config of {os.fspath(workdir)!r} has the sections {sorted(run_config)} and "
                "no 'model'; pass config="
            )
        config = run_config["model"]
    view = View.abstract(lambda: model_class.from_config(config))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        (view.params, view.state),
    )
    with _open_to_read(workdir) as checkpoints:
        if step == "best":
            step = _best(checkpoints, workdir)
        params, state, _ = checkpoints.restore_model(params, state, step)
    return view.model(params, state)


def _best(checkpoints: Checkpoints, workdir: str | os.PathLike[str]) -> int:
    step = checkpoints.best_step()
    if step is None:
        raise UsageError(
            f"no checkpoint in {os.fspath(workdir)!r} was saved with a metric; train with "
            "keep_best and best_metric, or name a step"
        )
    return step


def _open_to_read(folder: str | os.PathLike[str]) -> Checkpoints:
    path = pathlib.Path(folder)
    path = path / FOLDER if (path / FOLDER).is_dir() else path
    if not path.is_dir():
        raise UsageError(f"no folder {os.fspath(folder)!r}; give the workdir of a trained run")
    return Checkpoints(path, read_only=True)
