"""The metrics of a run: one JSON object per line, and the same scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.core import UsageError, WriteError
from jaxlab.results.storage import plain, replace_file

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"
"""The name of the metrics file in a workdir."""

TENSORBOARD_FOLDER = "tensorboard"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, in the order written.

    A row is `{"step": int, "split/name": float or None, ...}`; None is a value that was not finite.
    An incomplete last line, which a killed run can leave, is ignored. A missing file has no rows.

    Raises:
      UsageError: a line is not a JSON object with a `step`; names the file and the line.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def _parse(line: bytes, path: pathlib.Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "step" not in row:
        raise UsageError(
            f"{path.name} line {number} is {line[:60].decode(errors='replace')!r}, not a JSON "
            "object with a step; remove that line"
        )
    return row


def _dump(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard event files of a workdir.

    Every `write` writes one whole line before it returns. The file is strict JSON, which has no NaN
    or infinity: such values become `null` (TensorBoard gets them unchanged).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as workdir:
    ...     with MetricWriter(workdir, tensorboard=False) as writer:
    ...         writer.write(10, {"train/loss": 1.25})
    ...     read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    [{'step': 10, 'train/loss': 1.25}]
    """

    def __init__(self, workdir: str | os.PathLike[str], tensorboard: bool = True):
        """Opens the metrics of an existing folder (or `Record`); drops an incomplete last line."""
        self._path = pathlib.Path(workdir) / METRICS_FILE
        self._events_folder = self._path.with_name(TENSORBOARD_FOLDER) if tensorboard else None
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._file = open(self._path, "ab", buffering=0)
        self._cut_torn_line()
        if tensorboard:
            import tensorboardX  # noqa: F401  takes 0.1 s, which should not delay the first row

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row.

        Args:
          step: optimizer steps done.
          metrics: scalars by `split/name`: Python numbers or arrays with one element.

        Raises:
          UsageError: a name without a split, or a value that is not one number.
          WriteError: the disk is full; earlier rows are intact.
        """
        step = operator.index(step)
        scalars = {name: _scalar(name, value) for name, value in metrics.items()}
        self._append(_dump({"step": step, **plain(scalars)}), step)
        if self._events_folder is not None:
            events = self._open_events()
            for name, value in scalars.items():
                events.add_scalar(name, value, step)

    def truncate(self, step: int) -> None:
        """Removes every row after `step`, which a run that resumes from `step` writes again.

        The file is replaced atomically; TensorBoard is told to purge the same steps.
        """
        rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        self._file.close()
        replace_file(self._path, b"".join(map(_dump, rows)))
        self._file = open(self._path, "ab", buffering=0)
        self._close_events()
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the files; may be called twice."""
        self._file.close()
        self._close_events()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        # On a full disk, the error being raised says more than a second one from closing.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(WriteError):
            self.close()

    def _cut_torn_line(self) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)

    def _append(self, line: bytes, step: int) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            # If space runs out within a line, a part of it is written without an error; writing the
            # rest raises.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            good = "earlier rows and all checkpoints are intact"
            raise WriteError(f"the metrics of step {step}", self._path, error, good) from error

    def _open_events(self) -> SummaryWriter:
        if self._events is not None and not _is_written(self._events):
            # Without its thread, the queue would fill up and block training forever.
            self._events = None
            raise self._events_failed(OSError("its thread died"))
        if self._events is None:
            from tensorboardX import SummaryWriter

            # Event files are named after the second they are opened in, so a second file within
            # that second would replace the first.
            self._events = SummaryWriter(
                str(self._events_folder),
                purge_step=self._purge_step,
                flush_secs=30,
                filename_suffix=f".{time.time_ns()}",
            )
        return self._events

    def _close_events(self) -> None:
        events, self._events = self._events, None
        try:
            if events is not None and _is_written(events):
                events.close()
        except OSError as error:
            raise self._events_failed(error) from error

    def _events_failed(self, error: OSError) -> WriteError:
        assert self._events_folder is not None
        good = f"{METRICS_FILE} and all checkpoints are intact"
        return WriteError("TensorBoard events", self._events_folder, error, good)


def _is_written(events: SummaryWriter) -> bool:
    """Returns False if the thread that writes the event file has died, as on a full disk."""
    writer = getattr(getattr(events, "file_writer", None), "event_writer", None)
    worker = getattr(writer, "_worker", None)
    return worker is None or worker.is_alive()


class NoMetrics:
    """A writer that discards all rows, for processes other than the main one."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def truncate(self, step: int) -> None:
        """Does nothing."""

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


def _scalar(name: str, value: Any) -> int | float:
    if "/" not in name:
        raise UsageError(f"metric {name!r} has no split; name it like 'train/{name}'")
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "USOMmc":
        raise UsageError(f"metric {name!r} is {value!r}; expected one real number")
    number = array.reshape(())
    return int(number) if number.dtype.kind in "biu" else float(number)
