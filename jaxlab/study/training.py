"""The trainings of a study: named, checked before the first step of any, trained or read."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxlab.core import (
    Objective,
    Params,
    UsageError,
    View,
    all_devices,
    from_main_process,
    local_rows,
    make_mesh,
    platform,
    to_dict,
)
from jaxlab.data import Stream
from jaxlab.results import Record
from jaxlab.train import MAY_CHANGE, Intervention, Setup, TrainConfig, make_setup, run_setup
from jaxlab.train.state import TrainState

_dry_run: contextvars.ContextVar[bool] = contextvars.ContextVar("dry_run", default=False)

SETUPS = 64
"""Setups that are remembered: the trainings of one config share one, and its programs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """One training of a study, by name; `seeded` gives the same training with another seed.

    It is known by its own settings (`identity`), not by those of the study: a grid or a number of
    seeds grows without starting again.

    Attributes:
      name: its folder in the workdir, such as `text/recurrent`; below it each seed has a folder.
      model: a config whose `build(rngs)` makes the model.
      objective: `objective(model, batch, carry, key) -> Loss`.
      batch: shapes [b, ...] of a batch by name, with `settings.batch_size` rows.
      stream: `stream(settings, rows)` opens the data: batches with this process's rows.
      settings: how it is trained, seed included.
      data: what tells its data from other data: a config, or plain JSON.
      interventions: what changes the training; see `jaxlab.train.Intervention`.
      group: the curve that it is a point of, and `x` its place there, for figures.
      x: see `group`.
      tokens_per_step: targets in one step, for rates.
      has_carry: whether the model's `init_carry(rows)` makes a recurrent state for the objective.
      evaluate: `evaluate(view)` gives a row of metrics every `settings.eval_every` steps.
      watch: the same every `settings.watch_every` steps, for instruments that cost little.
    """

    name: str
    model: Any
    objective: Objective
    batch: Mapping[str, jax.ShapeDtypeStruct]
    stream: Callable[[TrainConfig, tuple[int, ...]], Stream]
    settings: TrainConfig
    data: Any = None
    interventions: tuple[Intervention, ...] = ()
    group: str = ""
    x: float | None = None
    tokens_per_step: int | None = None
    has_carry: bool = False
    evaluate: Callable[[View], Mapping[str, Any]] | None = None
    watch: Callable[[View], Mapping[str, Any]] | None = None

    def seeded(self, index: int) -> Training:
        """The training with the seed `settings.seed + index`."""
        settings = dataclasses.replace(self.settings, seed=self.settings.seed + index)
        return dataclasses.replace(self, settings=settings)

    @property
    def folder(self) -> str:
        """Its folder in the workdir, with the seed."""
        return f"{self.name}/seed{self.settings.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other trainings, as plain JSON."""
        sections = {
            "model": self.model,
            "train": self.settings,
            "data": self.data,
            "interventions": self.interventions,
        }
        return {name: to_dict(section) for name, section in sections.items()}

    @property
    def params(self) -> Params:
        """The shapes of the model's parameters, by path."""
        return _abstract(self.model).params

    @property
    def setup(self) -> Setup:
        """The training, planned on the present devices; one for all seeds, where they can share.

        Raises:
          UsageError: sizes that do not fit each other or the devices, or batches that the model
            does not take.
        """
        identity = self.identity
        if not any(each.seeds_step() for each in self.interventions):
            del identity["train"]["seed"]
        shapes = {name: str(x) for name, x in self.batch.items()}
        try:
            text = json.dumps([identity, shapes], sort_keys=True)
        except TypeError as error:
            raise UsageError(
                f"the settings of training {self.name} cannot be kept as JSON ({error}); use "
                "numbers, strings, booleans, None, or tuples, dicts and configs of them"
            ) from None
        return _setup(_Key(text, self.objective, tuple(all_devices()), platform(), self))


@dataclasses.dataclass(frozen=True)
class _Key:
    identity: str
    objective: Objective
    devices: tuple[Any, ...]
    platform: str
    training: Training = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=SETUPS)
def _abstract(model: Any) -> View:
    """The model of a config, in shapes; no mesh is asked."""
    return View.abstract(lambda: model.build(nnx.Rngs(0)))


@functools.lru_cache(maxsize=SETUPS)
def _setup(key: _Key) -> Setup:
    training = key.training

    def init_carry(rows: int) -> Any:
        view = _abstract(training.model)
        return view.apply(view.params, rows, method="init_carry")

    return make_setup(
        training.settings,
        build=training.model.build,
        objective=training.objective,
        batch=training.batch,
        init_carry=init_carry if training.has_carry else None,
        interventions=training.interventions,
        tokens_per_step=training.tokens_per_step,
    )


@contextlib.contextmanager
def use_dry_run() -> Iterator[None]:
    """Within this context trainings are only described, and `is_dry_run()` says so."""
    token = _dry_run.set(True)
    try:
        yield
    finally:
        _dry_run.reset(token)


def is_dry_run() -> bool:
    """Whether trainings are only described: shapes may then stand for data that are not there."""
    return _dry_run.get()


def check(trainings: Sequence[Training], record: Record | None = None) -> None:
    """Builds and plans every training and looks at its data, before the first step of any.

    Args:
      trainings: all of the study.
      record: of the study; what is in the folders of its trainings must be theirs.

    Raises:
      UsageError: names that are not unique; sizes that do not fit each other, the devices or the
        data; a folder that holds a training with other settings. It names the training.
    """
    names = collections.Counter(training.name for training in trainings)
    for name, count in names.items():
        if count > 1 or not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", name):
            raise UsageError(
                f"the study has {count} training(s) with the name {name!r}; names are folders, "
                "each given once, of letters, digits and ._+-/"
            )
    seen: set[str] = set()
    for training in trainings:
        try:
            training.setup  # noqa: B018  planned and remembered
            data = json.dumps([to_dict(training.data), training.settings.batch_size])
            if data not in seen:
                seen.add(data)
                _check_data(training)
            if record is not None:
                _check_folders(training, record)
        except UsageError as error:
            raise UsageError(f"training {training.name}: {error}") from error


def fit(training: Training, record: Record) -> View:
    """Trains in a folder of the study's workdir, or reads what was trained there.

    The folder gets `config.json`, `metrics.jsonl` and `checkpoints/`.

    Returns:
      The view of the trained model, with its arrays on the devices of the mesh.

    Raises:
      UsageError, TrainingDiverged, WriteError, TrainingInterrupted: see `train.run_setup`.
    """
    setup, settings = training.setup, training.settings
    rows = local_rows(settings.batch_size, setup.mesh, setup.rules)

    def of_state(
        measure: Callable[[View], Mapping[str, Any]] | None,
    ) -> Callable[[TrainState], Mapping[str, Any]] | None:
        if measure is None:
            return None
        return lambda state: jax.device_get(measure(setup.trained(state)))

    view, _ = run_setup(
        setup,
        stream=training.stream(settings, rows),
        workdir=create_record(training, record),
        config=settings,
        evaluate=of_state(training.evaluate),
        watch=of_state(training.watch),
        description=training.folder,
    )
    return view


def create_record(training: Training, record: Record) -> Record:
    """The record of one training, in its folder of the study's workdir.

    Raises:
      UsageError: the folder holds a training with other settings.
    """
    return Record.create(
        record.workdir / training.folder,
        experiment=record.experiment,
        variant=training.name,
        paper=record.paper,
        config=training.identity,
        ignore=[f"train.{field}" for field in MAY_CHANGE],
    )


def open_record(training: Training, record: Record) -> Record:
    """The record of one training, to read its metrics and curves.

    Raises:
      UsageError: it has not begun.
    """
    return Record.open(record.workdir / training.folder)


def describe(trainings: Iterable[Training], pod: Any = None) -> list[str]:
    """Size, memory, sharding and length of trainings, from shapes alone.

    Up to six are described each, of more the first and the one with the most parameters.

    Args:
      trainings: of a study.
      pod: devices to compile for, within `core.use_devices`: the first of up to six trainings,
        else the one with the most parameters.
    """
    trainings = list(trainings)
    if not trainings:
        return []
    chosen = trainings
    if len(trainings) > 6:
        largest = max(trainings, key=lambda each: each.setup.view.num_params)
        chosen = list(dict.fromkeys((trainings[0], largest)))
    compiled = chosen[0] if chosen is trainings else chosen[-1]
    lines = [] if chosen is trainings else [f"{len(trainings)} trainings, of these two:"]
    for training in chosen:
        described = training.setup.describe(pod if training is compiled else None)
        lines += [f"{training.name}:", *(f"  {line}" for line in described)]
    return lines


def _check_data(training: Training) -> None:
    mesh = make_mesh(training.settings.mesh)
    rows = local_rows(training.settings.batch_size, mesh)
    batch = next(training.stream(training.settings, rows), None)
    if batch is None:
        raise UsageError("its data hold no batch; give a stream without end")
    for name, expected in training.batch.items():
        if name not in batch:
            raise UsageError(f"its data have {sorted(batch)} and no {name!r}")
        given = np.asarray(batch[name])
        if given.shape != (len(rows), *expected.shape[1:]) or given.dtype != expected.dtype:
            raise UsageError(
                f"{name!r} of its data is {given.dtype}{list(given.shape)} for {len(rows)} rows; "
                f"it was planned for {expected.dtype}{list(expected.shape)}"
            )


def _check_folders(training: Training, record: Record) -> None:
    def existing() -> list[int]:
        folders = (record.workdir / training.name).glob("seed*/config.json")
        seeds = (path.parent.name.removeprefix("seed") for path in folders)
        return sorted(int(seed) for seed in seeds if seed.isdecimal())

    for seed in from_main_process(existing):
        settings = dataclasses.replace(training.settings, seed=seed)
        create_record(dataclasses.replace(training, settings=settings), record)
