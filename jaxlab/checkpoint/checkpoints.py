"""Checkpoints of a run: saved while training goes on, whole or not at all, restored exactly."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import jax

from jaxlab import __version__
from jaxlab.checkpoint.contents import (
    by_path,
    carry_has_other_rows,
    checksums,
    leaves_of,
    params_targets,
    part,
    require_same_leaves,
)
from jaxlab.checkpoint.failures import QuietErrors, cause_of, close_failed, remove_folders
from jaxlab.checkpoint.joined import join, joined_paths, split
from jaxlab.checkpoint.joined import targets as targets_of
from jaxlab.checkpoint.manager import open_manager
from jaxlab.core import (
    Params,
    UsageError,
    WriteError,
    gather,
    nearest,
    num_processes,
    on_main_process,
)

log = logging.getLogger(__name__)

FOLDER = "checkpoints"


class Saveable(Protocol):
    """What can be saved, such as a `jaxlab.train.TrainState`."""

    @property
    def step(self) -> Any:
        """An integer scalar, the step of the checkpoint."""
        ...

    def items(self) -> dict[str, Any]:
        """The arrays by item (`ARRAY_ITEMS`), as trees."""
        ...

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> Self:
        """The inverse of `items`."""
        ...


S = TypeVar("S", bound=Saveable)


class Restored(NamedTuple, Generic[S]):
    """The content of a checkpoint.

    Attributes:
      state: with the shapes, dtypes and shardings of the target. Its carry is None if it was saved
        with another number of rows.
      data_state: the position in the data, as plain JSON.
      meta: what the caller saved with it.
    """

    state: S
    data_state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder, by step.

    Each holds `params` and `model_state`, which make the model; `train` (step, optimizer state,
    key, metric sums); `carry`, which is separate because it depends on the batch; and, as JSON,
    `data` and `meta`.

    Args:
      folder: created if missing, unless `read_only`.
      keep_last: how many of the newest to keep; one is deleted only after its successor is
        complete.
      keep_every: also keep those of steps that are multiples of this.
      keep_best: also keep this many of the best by `best_metric`; those saved without it don't
        count.
      best_metric: a metric, as `split/name`.
      best_mode: whether lower (`min`) or higher (`max`) is better.
      read_only: never write, delete or move anything.

    Raises:
      UsageError: a number to keep below 1; `keep_best` without a metric or a metric without it; an
        unknown mode; a folder that cannot be created.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        keep_best: int | None = None,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        read_only: bool = False,
    ):
        numbers = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}; expected 1 or more")
        if (keep_best is None) != (best_metric is None):
            raise UsageError(
                f"keep_best={keep_best} and best_metric={best_metric!r}; give both, e.g. 1 and "
                "'held_out/bits_per_byte', or neither"
            )
        if best_mode not in ("min", "max"):
            raise UsageError(f"best_mode={best_mode!r}; it takes 'min' or 'max'")
        self._metric, self._sign = best_metric, -1.0 if best_mode == "min" else 1.0
        self.folder = pathlib.Path(folder).absolute()
        self._read_only = read_only
        if not read_only:
            on_main_process(lambda: _make_folder(self.folder))
        self._open = functools.partial(
            open_manager, self.folder, keep_last, keep_every, keep_best, read_only
        )
        self._manager = self._open()
        self._saving: int | None = None
        self._failed = False
        self._quiet = contextlib.ExitStack()
        if not read_only:
            self._quiet.enter_context(QuietErrors())

    def save(
        self,
        state: Saveable,
        data_state: Any = None,
        meta: Mapping[str, Any] | None = None,
        measured: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves the state under its step; the files are written while the next steps run.

        It waits for the save before, and for `state` to be computed and, on accelerators, copied
        to the host. With several processes all of them call it, and each writes its part of the
        arrays.

        Args:
          state: may be donated as soon as this returns.
          data_state: the position in the data that belongs to it, as plain JSON.
          meta: identifies the run, as plain JSON; the version is added.
          measured: metrics by `split/name`, including `best_metric` where it is known.

        Raises:
          WriteError: the disk is full or fails, now or in the save before; see `wait`.
        """
        from orbax.checkpoint import args

        self.wait()
        step = int(state.step)
        rank = self._rank(measured or {}, step)
        items = state.items()
        leaves = by_path(items)
        joined = joined_paths(leaves)
        own = {
            "caller": dict(meta or {}) | {"jaxlab": __version__},
            "leaves": leaves_of(items),
            "joined": joined,
            "checksums": checksums(leaves),
        }
        arrays = _in_items(join(leaves, joined))
        self._saving = step
        with self._writing():
            # Orbax returns when it holds numpy arrays of the state. On CPUs they share its memory,
            # and XLA then computes a step that donates it elsewhere.
            self._manager.save(
                step,
                args=args.Composite(
                    **{name: args.StandardSave(item) for name, item in arrays.items()},
                    data=args.JsonSave({"state": data_state}),
                    meta=args.JsonSave(own),
                ),
                # The manager ranks from worst to best by this.
                metrics=None if rank is None else {"rank": rank},
            )

    def prepare(self, state: Saveable) -> None:
        """Compiles what `save` computes of such a state, so that no step waits for it later."""
        leaves = by_path(state.items())
        checksums(leaves)
        join(leaves, joined_paths(leaves))

    def restore(self, target: S) -> Restored[S] | None:
        """Restores the newest readable checkpoint.

        Newer, unreadable ones are renamed to `unreadable-<step>`, with a warning for each.

        Args:
          target: arrays or `jax.ShapeDtypeStruct` with shardings; see `StatePlan.abstract`.

        Returns:
          Its content, or None if there is no checkpoint.

        Raises:
          UsageError: the checkpoint is of another config (names the parameter that differs), or no
            checkpoint is readable.
        """
        newest = self._newest(lambda step: self._restore(step, target))
        if newest is None:
            return None
        step, restored = newest
        self._set_aside([late for late in self._steps() if late > step])
        return restored

    def restore_model(
        self,
        params: Params | None = None,
        model_state: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> tuple[Params, dict[str, Any], dict[str, Any]]:
        """Restores the model alone, for use without an optimizer.

        Args:
          params: targets; by default the parameters in the checkpoint, on one device.
          model_state: targets for the model's other variables; without it they are not restored.
          step: which checkpoint; by default the newest readable one.

        Returns:
          params, model state, meta.

        Raises:
          UsageError: the checkpoint does not exist, is not readable, or is of another config.
        """

        def read(step: int) -> tuple[Params, dict[str, Any], dict[str, Any]]:
            meta = self._json(step, "meta")
            targets: dict[str, Mapping[str, Any]] = {
                "params": params_targets(meta["leaves"]) if params is None else params
            }
            if model_state:
                targets["model_state"] = model_state
            require_same_leaves(part(meta["leaves"], *targets), targets, step)
            items = self._arrays(step, meta, targets)
            return items["params"], items.get("model_state", {}), meta["caller"]

        steps = self._steps()
        if step is not None and step not in steps:
            raise UsageError(f"no checkpoint of step {step} in {self._where()}; it has {steps}")
        newest = self._newest(read, steps if step is None else [step])
        if newest is None:
            raise UsageError(f"no checkpoint in {self._where()}; train there first")
        return newest[1]

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return max(self._steps(), default=None)

    def best_step(self) -> int | None:
        """The step of the best checkpoint by the metric it was saved with, or None."""
        ranks = {step: self._manager.metrics(step) for step in self._steps()}
        known = {step: rank["rank"] for step, rank in ranks.items() if rank}
        return max(known, key=lambda step: known[step], default=None)

    def set_aside_newest(self, label: str) -> bool:
        """Renames the newest checkpoint to `<label>-<step>`, so that the one before is the newest.

        Returns:
          False if it is the only one, which stays.
        """
        if len(self._steps()) < 2:
            return False
        self._set_aside(self._steps()[-1:], label)
        return True

    def wait(self) -> None:
        """Waits until the save in progress is on disk.

        Raises:
          WriteError: it could not be written. Its partial files are removed; earlier checkpoints
            stay.
        """
        with self._writing():
            self._manager.wait_until_finished()
        self._saving = None

    def check(self) -> None:
        """Raises the error of the last save, as `wait` does, if that has ended; never waits."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the save in progress and closes the folder."""
        try:
            if not self._failed:
                with self._writing():
                    self._manager.close()
        finally:
            self._quiet.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            cause = cause_of(error)
            if cause is None:
                raise
            step, self._saving = self._saving, None
            self._give_up(step)
            newest = self.latest_step()
            good = (
                "there is no checkpoint before it"
                if newest is None
                else f"the checkpoint of step {newest} is whole and kept"
            )
            raise WriteError(f"the checkpoint of step {step}", self.folder, cause, good) from error

    def _give_up(self, step: int | None) -> None:
        """Abandons a failed save: frees its disk space and reopens the folder."""
        if num_processes() > 1:
            # Closing is collective, and processes without the error would not join in. The next
            # start removes the partial files.
            self._failed = True
            return
        close_failed(self._manager.close)
        remove_folders(self.folder, f"{step}.*tmp*")
        self._manager = self._open()

    def _newest(
        self, read: Callable[[int], Any], steps: Iterable[int] | None = None
    ) -> tuple[int, Any] | None:
        steps = sorted(self._steps() if steps is None else steps, reverse=True)
        for step in steps:
            content, reason = None, None
            try:
                content = read(step)
            except UsageError:
                raise
            # Orbax raises many kinds of errors for damaged files.
            except Exception as error:
                words = " ".join(str(error).split())[:150] or "no reason given"
                reason = f"{type(error).__name__}: {words}"
            # One process may read what another cannot: all take the same checkpoint.
            reasons = self._together(reason)
            if not reasons:
                return step, content
            log.warning(
                "checkpoint of step %d in %s cannot be read, trying an older one: %s",
                step,
                self._where(),
                reasons[0],
            )
        if steps:
            raise UsageError(
                f"none of the checkpoints {steps} in {self._where()} can be read; move the folder "
                "away to start afresh"
            )
        return None

    def _restore(self, step: int, target: S) -> Restored[S]:
        meta = self._json(step, "meta")
        items, leaves = target.items(), meta["leaves"]
        if carry_has_other_rows(leaves, items):
            del items["carry"]
            leaves = part(leaves, *items)
        require_same_leaves(leaves, items, step)
        state = type(target).from_items(self._arrays(step, meta, items))
        return Restored(state, self._json(step, "data")["state"], meta["caller"])

    def _json(self, step: int, item: str) -> Any:
        from orbax.checkpoint import args

        return self._manager.restore(step, args=args.Composite(**{item: args.JsonRestore()}))[item]

    def _arrays(
        self, step: int, meta: Mapping[str, Any], targets: Mapping[str, Any]
    ) -> dict[str, Any]:
        from orbax.checkpoint import args

        leaves, joined = by_path(targets), meta["joined"]
        wanted = {
            name: args.StandardRestore(item)
            for name, item in _in_items(targets_of(leaves, joined)).items()
        }
        restored = self._manager.restore(step, args=args.Composite(**wanted))
        read = by_path({name: restored[name] for name in targets})
        arrays = split(read, leaves, joined)
        # The file format notices a file cut short, but not a flipped bit.
        for path, checksum in checksums(arrays).items():
            if checksum != meta["checksums"][path]:
                raise OSError(f"{path} differs from what was saved")
        return jax.tree.unflatten(jax.tree.structure(targets), [arrays[path] for path in leaves])

    def _rank(self, measured: Mapping[str, Any], step: int) -> float | None:
        if self._metric is None:
            return None
        value = float(measured.get(self._metric, math.nan))
        if math.isfinite(value):
            return self._sign * value
        log.warning(
            "the checkpoint of step %d has no %s and is none of the best%s; measured so far: %s",
            step,
            self._metric,
            nearest(self._metric, measured),
            ", ".join(measured) or "nothing",
        )
        return None

    def _together(self, reason: str | None) -> list[str]:
        reasons = [reason] if self._read_only else gather(reason)
        return [words for words in reasons if words is not None]

    def _steps(self) -> list[int]:
        steps = set(self._manager.all_steps())
        # The manager counts the save in progress.
        return sorted(steps - {self._saving} if self._manager.is_saving_in_progress() else steps)

    def _where(self) -> str:
        return repr(os.fspath(self.folder))

    def _set_aside(self, steps: Iterable[int], label: str = "unreadable") -> None:
        # The manager silently skips a save under a step that exists.
        def move() -> None:
            for step in steps:
                aside = self.folder / f"{label}-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)

        if not self._read_only:
            on_main_process(move)
        self._manager.reload()


def _in_items(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        items.setdefault(path.split("/")[0], {})[path.partition("/")[2]] = array
    return items


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"checkpoint folder {os.fspath(folder)!r} cannot be made ({error.strerror}); give a "
            "workdir that can be written"
        ) from None
