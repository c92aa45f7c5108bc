"""One run on disk: its config, metrics, curves, claims and environment.

A workdir holds

    config.json      the resolved config, with experiment, variant and paper
    metrics.jsonl    one JSON object a log step
    checkpoints/     the states that the run can resume from
    results.json     claims, numbers and environment, once the run is complete
    figures/*.png
    report.html      one self-contained page
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import UsageError, is_main_process, nearest, on_main_process
from jaxlab.results.differences import differences, flatten, listed, matches
from jaxlab.results.environment import current_environment
from jaxlab.results.metrics import METRICS_FILE, read_metrics
from jaxlab.results.storage import plain, read_json_object, replace_json


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper, and whether this run supports it.

    Attributes:
      claim: the claim, in words.
      expected: the result that the paper suggests, e.g. `">= 0.95"`.
      measured: the result of this run: a number, or text with numbers.
      holds: whether `measured` is as expected. A claim that does not hold is recorded too.
    """

    claim: str
    expected: str
    measured: float | int | str | None
    holds: bool


@dataclasses.dataclass(frozen=True)
class Record:
    """Config, metrics, curves and environment of one run on disk.

    Make it with `Record.create`, to start or resume a run, or with `Record.open`, to read one. It
    is path-like: `pathlib.Path(record)` is the workdir.

    Attributes:
      workdir: the folder of the run.
      experiment: name of the study, e.g. `"block_recurrent"`.
      variant: name of the config variant, e.g. `"tiny"`.
      paper: the source, with its arXiv id.
      config: the resolved config as plain JSON values.
      read_only: whether it was made by `open`.
    """

    workdir: pathlib.Path
    experiment: str
    variant: str
    paper: str
    config: dict[str, Any]
    read_only: bool = False

    @classmethod
    def create(
        cls,
        workdir: str | os.PathLike[str],
        *,
        experiment: str,
        variant: str,
        paper: str,
        config: Mapping[str, Any],
        ignore: Sequence[str] = (),
    ) -> Record:
        """Starts a run in `workdir`, or resumes the run that is there.

        All processes must call it; the main one writes.

        Args:
          workdir: folder of the run, created if missing.
          experiment: name of the study.
          variant: name of the config variant.
          paper: the source, with its arXiv id.
          config: the resolved config; tuples become lists.
          ignore: dotted fields (`"train.steps"`, or `"train"` for all of it) that may differ from
            the run that is there. When one does, config.json takes the new value, and results.json
            is removed: it tells of the old one.

        Raises:
          UsageError: the folder cannot be created or written; the config has values that JSON
            cannot represent; the folder has a run with another experiment, variant or config.
        """
        record = cls(pathlib.Path(workdir), experiment, variant, paper, _plain_config(config))
        on_main_process(lambda: record._begin(ignore))
        return record

    @classmethod
    def open(cls, workdir: str | os.PathLike[str]) -> Record:
        """Opens the run in `workdir` for reading.

        Raises:
          UsageError: the folder is missing or has no run.
        """
        path = pathlib.Path(workdir) / "config.json"
        advice = "give the --workdir of a run"
        try:
            stored = read_json_object(path)
        except (FileNotFoundError, NotADirectoryError):
            problem = "has no config.json" if path.parent.is_dir() else "is not a folder"
            raise UsageError(f"workdir={os.fspath(workdir)!r} {problem}; {advice}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {os.fspath(path)!r} ({error}); {advice}") from None
        names = ("experiment", "variant", "paper", "config")
        missing = [name for name in names if name not in stored]
        if missing:
            raise UsageError(f"{os.fspath(path)!r} lacks {', '.join(missing)}; {advice}")
        fields = {name: stored[name] for name in names}
        return cls(pathlib.Path(workdir), **fields, read_only=True)

    def __fspath__(self) -> str:
        return os.fspath(self.workdir)

    @property
    def checkpoints_dir(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self.workdir / "checkpoints"

    @property
    def figures_dir(self) -> pathlib.Path:
        """Folder of the figures."""
        return self.workdir / "figures"

    @property
    def results_path(self) -> pathlib.Path:
        """File of claims and numbers, which exists once the run is complete."""
        return self.workdir / "results.json"

    @property
    def report_path(self) -> pathlib.Path:
        """File of the report."""
        return self.workdir / "report.html"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The current rows of metrics.jsonl; see `read_metrics`."""
        return read_metrics(self.workdir / METRICS_FILE)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns one metric over the run.

        Args:
          name: a metric, e.g. `"train/loss"`.

        Returns:
          steps int64 [n] and values float64 [n], in the order written; NaN for values that were
          not finite.

        Raises:
          UsageError: the run has no such metric.
        """
        rows = self.metrics
        points = [(row["step"], row[name]) for row in rows if name in row]
        if not points:
            known = sorted({key for row in rows for key in row} - {"step"})
            raise UsageError(
                f"no metric {name!r} in {os.fspath(self)!r}{nearest(name, known)}; "
                f"it has {', '.join(known) or 'none yet'}"
            )
        steps, values = zip(*points, strict=True)
        return np.array(steps, np.int64), np.array(values, np.float64)

    def median(self, name: str) -> float:
        """The median of one metric over the run, such as `"time/step_seconds"`; NaN without any."""
        values = [row[name] for row in self.metrics if row.get(name) is not None]
        return float(np.median(values)) if values else math.nan

    @property
    def complete(self) -> bool:
        """Whether the run has finished: results.json exists."""
        return self.results_path.exists()

    @property
    def results(self) -> dict[str, Any]:
        """The contents of results.json.

        Raises:
          UsageError: the run is not complete, or the file is damaged.
        """
        try:
            return read_json_object(self.results_path)
        except FileNotFoundError:
            raise UsageError(
                f"the run in {os.fspath(self)!r} has no results.json yet; let it finish first"
            ) from None
        except ValueError as error:
            raise UsageError(
                f"cannot read {os.fspath(self.results_path)!r} ({error}); "
                "remove it and run again on this workdir"
            ) from None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of a complete run."""
        return tuple(Claim(**claim) for claim in self.results["claims"])

    def environment(self) -> dict[str, Any]:
        """Returns the versions and devices of the results, or of this process until complete.

        Raises:
          UsageError: the record was opened for reading and the run is not complete.
        """
        if self.read_only or self.complete:
            return self.results["environment"]
        return current_environment()

    def write_results(self, claims: Iterable[Claim], numbers: Mapping[str, Any]) -> pathlib.Path:
        """Writes results.json atomically; from then on the run is complete.

        Only the main process writes.

        Args:
          claims: the paper's claims with their measured values, including those that do not hold.
          numbers: values by name; a value may be `{"value": ..., "command": ...}` with the command
            that reproduces it. NaN and infinity become `null`, since JSON has neither: one bad
            number must not cost the run its other results.

        Raises:
          UsageError: the record was opened for reading.
        """
        if self.read_only:
            raise UsageError(
                f"the record of {os.fspath(self)!r} was opened for reading; only its run may write "
                "results"
            )
        results = self._header() | {
            "claims": [dataclasses.asdict(claim) for claim in claims],
            "numbers": numbers,
            "environment": current_environment(),
        }
        return replace_json(self.results_path, results) if is_main_process() else self.results_path

    def _begin(self, ignore: Sequence[str]) -> None:
        _make_folder(self.workdir)
        if self._config_path.exists():
            changes = _differences(Record.open(self.workdir), self)
            _refuse(changes, ignore, os.fspath(self.workdir))
            if changes:
                self.results_path.unlink(missing_ok=True)
        replace_json(self._config_path, self._header() | {"config": self.config})

    @property
    def _config_path(self) -> pathlib.Path:
        return self.workdir / "config.json"

    def _header(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "variant": self.variant, "paper": self.paper}


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    for field, value in flatten(config).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"config field {field}={value!r} cannot be stored in config.json ({error}); use "
                "finite numbers, strings, booleans, None or tuples of them"
            ) from None
    return plain(config)


def _make_folder(workdir: pathlib.Path) -> None:
    advice = "give a --workdir that can be written"
    if re.match(r"[a-z0-9+.-]{2,}:/", os.fspath(workdir)):
        raise UsageError(
            f"workdir={os.fspath(workdir)!r} is a URL; give a folder, for example of a mounted "
            "bucket"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"workdir={os.fspath(workdir)!r} is or is in a file; {advice}") from None
    except OSError as error:
        raise UsageError(
            f"workdir={os.fspath(workdir)!r} cannot be created ({error.strerror}); {advice}"
        ) from None
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise UsageError(f"workdir={os.fspath(workdir)!r} cannot be written; {advice}")


def _differences(old: Record, new: Record) -> list[tuple[str, str]]:
    """Returns `(field, "field: old -> new")` for what differs; the paper's name may change."""
    sides = [{"experiment": side.experiment, "variant": side.variant} for side in (old, new)]
    return [*differences(*sides), *differences(old.config, new.config)]


def _refuse(changes: Sequence[tuple[str, str]], ignore: Sequence[str], workdir: str) -> None:
    refused = [line for field, line in changes if not matches(field, ignore)]
    if refused:
        raise UsageError(
            f"workdir={workdir!r} has a run with another config: {listed(refused)}; "
            "use another --workdir or change these back"
        )
