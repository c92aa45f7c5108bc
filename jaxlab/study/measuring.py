"""Measurements of trained models: every value is kept on disk, so that none is measured twice."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxlab.analysis import Interval, mean_over_seeds
from jaxlab.core import UsageError, View, from_main_process, nearest, on_main_process, to_dict
from jaxlab.results import Record, replace_json
from jaxlab.study.sharing import Unfinished, current_share, locked
from jaxlab.study.training import Training, fit

FILE = "measured.json"

Measurements = Mapping[str, Callable[[View], Any]]
"""By `split/name`: what measures it on a trained model, and returns plain JSON."""


class Rows(Mapping[str, Sequence[Mapping[str, Any]]]):
    """What was measured: by training, a row for each seed, with values by `split/name`.

    >>> rows = Rows({"a": [{"test/accuracy": 0.8}, {"test/accuracy": 0.9}],
    ...              "b": [{"test/accuracy": 0.7}, {"test/accuracy": 0.7}]})
    >>> print(rows.difference("a", "b", "test/accuracy"))
    +0.1500 [-0.4853, +0.7853]
    """

    def __init__(self, rows: Mapping[str, Sequence[Mapping[str, Any] | None]]):
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Sequence[Mapping[str, Any]]:
        if name not in self._rows:
            raise UsageError(f"no training {name!r} was measured{nearest(name, self._rows)}")
        missing = [key for key, rows in self._rows.items() if None in rows]
        if missing:
            raise Unfinished(len(missing), len(self._rows))
        return self._rows[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def derive(self, metric: str, function: Callable[[Mapping[str, Any]], Any]) -> Rows:
        """The rows with one more value in each, computed from the others."""
        return Rows(
            {
                name: [row if row is None else {**row, metric: function(row)} for row in rows]
                for name, rows in self._rows.items()
            }
        )

    def values_of(self, name: str, metric: str) -> list[Any]:
        """One value for each seed of a training; NaN where it was not finite."""
        rows = self[name]
        if metric not in rows[0]:
            raise UsageError(f"{name!r} has no {metric!r}{nearest(metric, rows[0])}")
        return [row[metric] for row in rows]

    def mean(self, name: str, metric: str) -> Interval:
        """The mean over seeds, with its 95% interval by Student's t."""
        return mean_over_seeds(self.values_of(name, metric))

    def difference(self, name: str, other: str, metric: str) -> Interval:
        """A training's values less another's, paired by seed: the mean with its 95% interval."""
        return self.contrast({name: 1, other: -1}, metric)

    def contrast(self, weights: Mapping[str, float], metric: str) -> Interval:
        """A weighted sum of several trainings' values, paired by seed: mean and 95% interval.

        `{a: 1, b: -1, c: -1, d: 1}` is a difference of differences.
        """
        values = [[w * v for v in self.values_of(name, metric)] for name, w in weights.items()]
        return mean_over_seeds([sum(of_seed) for of_seed in zip(*values, strict=True)])


def numbers_of(
    trainings: Sequence[Training], rows: Rows, baseline: str | None = None
) -> dict[str, Any]:
    """All that was measured, as numbers of `results.json`, by `split/name` and training.

    Args:
      trainings: those of the rows.
      rows: what was measured on them; values that are not scalars are left out.
      baseline: the training to which the others are compared, paired by seed.

    Returns:
      `trainings/group` and `trainings/x`; for each metric its mean with its 95% interval over
      seeds, `[mean, low, high]`; `..._by_seed`, every value; and, with a baseline,
      `..._over_<baseline>`, the mean difference with its interval.
    """
    names = [training.name for training in trainings]
    measured = {name: rows[name][0] for name in names}
    scalars = (m for row in measured.values() for m, v in row.items() if isinstance(v, float | int))
    numbers: dict[str, Any] = {
        "trainings/group": {training.name: training.group for training in trainings},
        "trainings/x": {training.name: training.x for training in trainings},
    }
    for metric in dict.fromkeys(scalars):
        having = [name for name in names if metric in measured[name]]
        numbers[metric] = {name: list(rows.mean(name, metric)) for name in having}
        numbers[f"{metric}_by_seed"] = {name: rows.values_of(name, metric) for name in having}
        if baseline in having:
            numbers[f"{metric}_over_{baseline}"] = {
                name: list(rows.difference(name, baseline, metric))
                for name in having
                if name != baseline
            }
    return numbers


def measure(
    trainings: Sequence[Training],
    record: Record,
    seeds: int,
    measurements: Callable[[Training], Measurements],
    settings: Any = None,
) -> Rows:
    """Trains every training with every seed, and measures what was trained.

    A value that is on disk is not measured again, and a training whose values are all there is not
    even read. With shares (`use_share`) each training is taken by one of them: call every `measure`
    of a study before you look at any rows, for rows that another share still measures raise
    `Unfinished` when they are looked at.

    Args:
      trainings: see `Training`; `settings.seed` is the first seed of each.
      record: of the study; `measured.json` in each training's folder keeps the values.
      seeds: the number of seeds.
      measurements: what is measured on a training, by `split/name`.
      settings: what else the values depend on, a config or plain JSON: where it differs from that
        of the values on disk, they are measured again.

    Raises:
      UsageError: a training on which nothing is measured.
      TrainingDiverged, WriteError, TrainingInterrupted: see `train.run_setup`.
    """
    share = current_share()
    units = [(training, index) for training in trainings for index in range(seeds)]
    for training, index in units if share is None else share.order(units):
        seeded, wanted = training.seeded(index), measurements(training)
        if not wanted:
            raise UsageError(f"nothing is measured on training {training.name}; use study.fit")
        if _row(seeded, record, wanted, settings) is not None:
            continue
        if share is None:
            _measure_one(seeded, record, wanted, settings)
            continue
        with locked(record.workdir / seeded.folder) as is_mine:
            if is_mine and _row(seeded, record, wanted, settings) is None:
                _measure_one(seeded, record, wanted, settings)
    return Rows(
        {
            training.name: [
                _row(training.seeded(index), record, measurements(training), settings)
                for index in range(seeds)
            ]
            for training in trainings
        }
    )


def _with_nan(value: Any) -> Any:
    """Plain JSON with NaN for `null`, which JSON has in its place."""
    if isinstance(value, dict):
        return {name: _with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def _measure_one(training: Training, record: Record, wanted: Measurements, settings: Any) -> None:
    view = fit(training, record)
    path = record.workdir / training.folder / FILE
    values = dict(from_main_process(lambda: _read(path, settings)))
    for name, function in wanted.items():
        if name not in values:
            values[name] = function(view)
            content = {"settings": to_dict(settings), "values": values}
            on_main_process(functools.partial(replace_json, path, content))


def _row(
    training: Training, record: Record, wanted: Measurements, settings: Any
) -> dict[str, Any] | None:
    """The values on disk; None unless all that are wanted are there."""
    path = record.workdir / training.folder / FILE
    values = from_main_process(lambda: _read(path, settings))
    if not values or not wanted.keys() <= values.keys():
        return None
    return {name: _with_nan(values[name]) for name in wanted}


def _read(path: pathlib.Path, settings: Any) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = dict(content["values"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"{str(path)!r} is damaged; remove it, and its training is measured again"
        ) from None
    return values if content.get("settings") == json.loads(json.dumps(to_dict(settings))) else {}
