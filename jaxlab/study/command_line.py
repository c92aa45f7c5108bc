"""The command line that every experiment shares.

    python -m experiments.NAME --config=FILE[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]

A run that ends before its time says so in one line. Its exit code is
    2: what was given cannot be used: a flag, a config, a workdir, data that cannot be read;
    3: training diverged: numbers that are not finite, or a spike of the loss;
    4: no step was done within `train.stuck_seconds`; the stacks of all threads stand above it;
    5: something could not be written, for one because the disk is full;
    75: run me again (EX_TEMPFAIL of sysexits.h): all is saved after a SIGTERM, which announces
        that the machine is wanted elsewhere; or another process of the run is lost;
    130: stopped by Ctrl-C.
After 4, 5, 75 and 130 the same command continues from the newest checkpoint.

With several processes, each is started with the same command; see `study.connect` for how they
find each other. Only the main process prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from jaxlab.core import (
    CHIPS,
    FULL,
    MainProcessError,
    UsageError,
    WriteError,
    flatten,
    from_main_process,
    is_main_process,
    nearest,
    num_processes,
    on_main_process,
    to_dict,
    use_devices,
)
from jaxlab.planning.pods import MAX_VIRTUAL, Pod, tpu_pod, virtual_pod
from jaxlab.results import Claim, Record
from jaxlab.study.config_files import (
    load_variants,
    resolve_config,
    split_assignments,
    split_variant,
)
from jaxlab.study.connect import RUN_AGAIN, connect, leave, quiet_unless_main
from jaxlab.study.page import Page, closing_words, write_page
from jaxlab.study.repeat import repeat_command, values_of, with_command
from jaxlab.study.sharing import Unfinished, parse_share, use_share
from jaxlab.study.training import Training, check, describe, use_dry_run
from jaxlab.train import MAY_CHANGE
from jaxlab.train.pacing import reuse_memory
from jaxlab.train.stopping import TrainingDiverged, TrainingInterrupted

USAGE, DIVERGED, NOT_WRITTEN, CTRL_C = 2, 3, 5, 130

Flag = tuple[Callable[..., Any], str, Any, str]

FLAGS: tuple[Flag, ...] = (
    (
        flags.DEFINE_string,
        "config",
        None,
        "FILE[:VARIANT], a Python file with VARIANTS; --config.FIELD=VALUE sets a field of it, any "
        "number of times.",
    ),
    (flags.DEFINE_string, "workdir", None, "Folder of the run; one that is there is continued."),
    (
        flags.DEFINE_bool,
        "dry_run",
        False,
        "Print config, size, memory, sharding and steps; run nothing.",
    ),
    (
        flags.DEFINE_integer,
        "devices",
        None,
        "Run on so many virtual CPU devices; with --dry_run, plan for them.",
    ),
    (
        flags.DEFINE_string,
        "topology",
        None,
        "With --dry_run: compile for TPUs such as v5e:16x16 or v4:8x8x8.",
    ),
    (
        flags.DEFINE_string,
        "hardware",
        None,
        f"With --dry_run: what --devices stand for: {', '.join(CHIPS)}.",
    ),
    (flags.DEFINE_float, "price", None, "With --dry_run: of one chip for an hour."),
    (
        flags.DEFINE_string,
        "coordinator",
        None,
        "HOST:PORT of process 0, on machines that no cluster manager starts.",
    ),
    (
        flags.DEFINE_integer,
        "num_processes",
        None,
        "How many processes run this; 1 ignores the cluster.",
    ),
    (flags.DEFINE_integer, "process_id", None, "The number of this one, from 0."),
    (
        flags.DEFINE_string,
        "share",
        None,
        "INDEX/COUNT, such as 3/64: one of COUNT processes that take the trainings of one workdir "
        "between them; none: no sharing. Set by itself in SLURM arrays and Kubernetes indexed "
        "jobs.",
    ),
    (
        flags.DEFINE_integer,
        "heartbeat_timeout",
        60,
        "Seconds of silence after which a process counts as lost.",
    ),
)
"""Every experiment's flags: how absl defines them, name, default, help."""

SAMPLE: Flag = (
    flags.DEFINE_string,
    "sample",
    None,
    "Continue this prompt with the model of the workdir.",
)

SampleFlag = int | float | tuple[str, ...]
"""The value of a flag of `sample`."""

SAMPLE_FLAGS: dict[type, tuple[Callable[..., Any], str]] = {
    int: (flags.DEFINE_integer, "For --sample."),
    float: (flags.DEFINE_float, "For --sample."),
    tuple: (
        flags.DEFINE_multi_string,
        "For --sample; any number of times, with \\n for a newline, \\t for a tab.",
    ),
}
"""How a flag of `sample` is defined, by the type of its default."""

NO_DEFAULT: tuple[Any, ...] = (None, False, [])  # not worth a word in --help


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
      claims: the paper's, with what was measured; those that do not hold too.
      numbers: by `split/name`, a number or a group of them by name.
    """

    claims: Sequence[Claim]
    numbers: Mapping[str, Any]


Run = Callable[[Any, Record], Results | None]
"""`run(config, record)`: trains and measures. Where it returns nothing, nothing is written."""


def main(
    run: Run,
    *,
    page: Callable[[Record, Mapping[str, Any]], Page] | None = None,
    trainings: Callable[[Any], Sequence[Training]] | None = None,
    grows: Sequence[str] = (),
    train_sections: Sequence[str] = ("train",),
    sample: Callable[..., None] | None = None,
    sample_flags: Mapping[str, SampleFlag] | None = None,
    paper: str = "",
    doc: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs an experiment as its command line says, and exits.

    Args:
      run: see `Run`; it resumes what is in the record's workdir.
      page: `page(record, numbers)` makes the report of a complete study.
      trainings: all trainings of a config: checked before the first step of any, and described by
        `--dry_run`.
      grows: dotted config fields that only choose which trainings there are, such as `num_seeds`:
        a workdir goes on with other values of them.
      train_sections: the dotted fields that hold a `TrainConfig`, whose `MAY_CHANGE` may change.
      sample: `sample(record, prompt, **sample_flags)`, called on a trained workdir for `--sample`.
      sample_flags: flags of `sample` with their defaults, such as `{'temperature': 1.0}`. With a
        tuple of strings as default the flag may be given several times, and `\\n`, `\\t` and `\\\\`
        in it stand for a newline, a tab and a backslash.
      paper: the source, with its arXiv id, for the record.
      doc: what `--help` prints first; by default the docstring of the module of `run`.
      argv: arguments, by default those of the process.

    Raises:
      SystemExit: always, with the exit code described above.
    """
    may_change = [f"{section}.{field}" for section in train_sections for field in MAY_CHANGE]
    command = Command(
        run, page, trainings, sample, sample_flags or {}, paper, (*grows, *may_change), doc
    )
    sys.exit(command(sys.argv[1:] if argv is None else argv))


class Command:
    """An experiment as a function of its arguments, which returns the exit code; see `main`."""

    def __init__(
        self,
        run: Run,
        page: Callable[[Record, Mapping[str, Any]], Page] | None,
        trainings: Callable[[Any], Sequence[Training]] | None,
        sample: Callable[..., None] | None,
        sample_flags: Mapping[str, SampleFlag],
        paper: str,
        may_change: tuple[str, ...],
        doc: str | None,
    ):
        self._run, self._page, self._trainings, self._sample = run, page, trainings, sample
        self._sample_flags, self._paper = dict(sample_flags), paper
        self._may_change = may_change
        self._file = pathlib.Path(inspect.getfile(run))
        self._doc = doc or inspect.getdoc(inspect.getmodule(run)) or ""

    def __call__(self, argv: Sequence[str]) -> int:
        """Runs; returns the exit code."""
        try:
            self._dispatch(argv)
            return 0
        except (Exception, KeyboardInterrupt) as error:
            ending = _ending(error)
            if ending is None and num_processes() == 1:
                raise
            words, code = ending or (traceback.format_exc(), 1)
            if words is not None:
                process = f" (process {jax.process_index()})" if num_processes() > 1 else ""
                print(f"{self._file.stem}{process}: {words}", file=sys.stderr, flush=True)
            if num_processes() > 1 and not isinstance(error, TrainingInterrupted):
                # Else the process would wait at its end for the others, which wait for it.
                leave(code)
            return code

    def _dispatch(self, argv: Sequence[str]) -> None:
        assignments, rest = split_assignments(argv)
        found = self._flags()
        parse_flags(found, rest)
        if found.help:
            print(self._help(found))
            return
        _require_fitting(found, samples=self._samples(found))
        if found.devices is not None:
            use_virtual_devices(found.devices)
        reuse_memory()
        if not found.dry_run and not self._samples(found):
            connect(
                found.coordinator,
                found.num_processes,
                found.process_id,
                heartbeat_timeout=found.heartbeat_timeout,
            )
        with quiet_unless_main():
            self._act(found, assignments)

    def _act(self, found: flags.FlagValues, assignments: dict[str, str]) -> None:
        if self._sample is not None and found.sample is not None:
            values = {name: _sample_value(getattr(found, name)) for name in self._sample_flags}
            self._sample(Record.open(self._workdir(found)), found.sample, **values)
            return
        variant, config = resolve_config(found.config, assignments, self._example())
        if found.dry_run:
            self._print_plan(config, _pod(found))
            return
        share = parse_share(found.share) if found.share or num_processes() == 1 else None
        record = Record.create(
            self._workdir(found),
            experiment=self._file.stem,
            variant=variant,
            paper=self._paper,
            config=to_dict(config),
            ignore=self._may_change,
        )
        with use_share(share):
            self._complete(config, record, found.config)

    def _complete(self, config: Any, record: Record, config_flag: str) -> None:
        path, _ = split_variant(config_flag)
        command = repeat_command(record, path)
        # The main process looks and writes, so that all take the same way.
        if not from_main_process(lambda: record.complete):
            if self._trainings is not None:
                check(self._trainings(config), record)
            try:
                results = self._run(config, record)
            except Unfinished as unfinished:
                print(unfinished)
                return
            if results is not None:
                numbers = with_command(results.numbers, command)
                on_main_process(lambda: record.write_results(results.claims, numbers))

        def draw() -> None:
            assert self._page is not None
            page = self._page(record, values_of(record.results["numbers"]))
            write_page(record, page, {"the whole run": command})
            print(closing_words(record, page))

        if self._page is not None and from_main_process(lambda: record.complete):
            on_main_process(draw)

    def _samples(self, found: flags.FlagValues) -> bool:
        return self._sample is not None and found.sample is not None

    def _flags(self) -> flags.FlagValues:
        found = flags.FlagValues()
        table = FLAGS if self._sample is None else (*FLAGS, SAMPLE)
        for define, name, default, words in table:
            define(name, default, words, flag_values=found)
        flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=found)
        for name, value in self._sample_flags.items():
            define, words = SAMPLE_FLAGS[type(value)]
            define(name, value, words, flag_values=found)
        return found

    def _workdir(self, found: flags.FlagValues) -> str:
        if not found.workdir:
            raise UsageError(
                f"--workdir is missing; give a folder for the run, e.g. "
                f"--workdir=runs/{self._file.stem}"
            )
        return found.workdir

    def _config_file(self) -> pathlib.Path:
        """Where the experiment's configs are by the layout of the house."""
        return self._file.parent.parent / "configs" / self._file.name

    def _example(self) -> str:
        return f"--config=configs/{self._file.name}:VARIANT"

    def _print_plan(self, config: Any, pod: Pod | None) -> None:
        for path, value in flatten(to_dict(config)).items():
            print(f"{path.replace('/', '.')} = {value!r}")
        if self._trainings is None:
            if pod is not None:
                raise UsageError(
                    f"this experiment has no plan to make for {pod.name}; leave --topology and "
                    "--devices off"
                )
            return
        with contextlib.ExitStack() as planned_for:
            if pod is not None:
                planned_for.enter_context(use_devices(pod.devices, pod.platform))
            planned_for.enter_context(use_dry_run())
            print("", *describe(self._trainings(config), pod), sep="\n")

    def _help(self, found: flags.FlagValues) -> str:
        path = self._config_file()
        if found.config is not None:
            path, _ = split_variant(found.config)
        parts = [self._doc.strip()]
        if path.is_file():
            lines = [
                f"  {name:<10} {_first_line(make)}".rstrip()
                for name, make in load_variants(path)[0].items()
            ]
            parts.append("\n".join([f"variants of {os.path.relpath(path)}:", *lines]))
        lines = [
            f"  --{name:<10} {found[name].help}"
            + ("" if found[name].default in NO_DEFAULT else f" Default {found[name].default}.")
            for name in sorted(found)
            if name != "h"
        ]
        return "\n\n".join([*parts, "\n".join(["flags:", *lines])])


def _sample_value(value: int | float | list[str]) -> SampleFlag:
    """The value of a flag of `sample`; strings with what their escapes stand for."""
    if not isinstance(value, list):
        return value
    stand_for = {"n": "\n", "t": "\t", "\\": "\\"}
    return tuple(re.sub(r"\\([nt\\])", lambda m: stand_for[m[1]], text) for text in value)


def _require_fitting(found: flags.FlagValues, *, samples: bool) -> None:
    """Refuses flags that have no effect; a dry run may have those for several processes."""
    for name in () if found.dry_run else ("topology", "hardware", "price"):
        if getattr(found, name) is not None:
            raise UsageError(f"--{name} is for planning; add --dry_run, or leave it off")
    for name in ("coordinator", "num_processes", "process_id") if samples else ():
        if getattr(found, name) is not None:
            raise UsageError(
                f"--{name} is for training; --sample runs in one process: leave it off"
            )


def _pod(found: flags.FlagValues) -> Pod | None:
    """What is planned for, if anything is named."""
    if found.topology is None and found.devices is None:
        if found.hardware is not None or found.price is not None:
            raise UsageError("--hardware and --price need --devices=N or --topology=CHIP:LAYOUT")
        return None
    if found.topology is None:
        return virtual_pod(found.devices, found.hardware, found.price)
    if found.devices is not None or found.hardware is not None:
        raise UsageError("--topology names chips and their number; leave --devices and --hardware")
    return tpu_pod(found.topology, found.price)


def _ending(error: BaseException) -> tuple[str | None, int] | None:
    """What is said of an error, None if another process says it, and the exit code.

    None for errors that nobody foresaw.
    """
    here = str(error) if is_main_process() else None
    if isinstance(error, MainProcessError):
        return None, USAGE
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, TrainingDiverged):
        return here, DIVERGED
    if isinstance(error, WriteError):
        return str(error), NOT_WRITTEN
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "a file"
        return str(WriteError("what was asked for", where, error, "all else stays")), NOT_WRITTEN
    if isinstance(error, TrainingInterrupted):
        return here, CTRL_C if error.signal is signal.SIGINT else RUN_AGAIN
    if isinstance(error, KeyboardInterrupt):
        words = "stopped by Ctrl-C; the same command continues from the last checkpoint"
        return words, CTRL_C
    if isinstance(error, jax.errors.JaxRuntimeError) and num_processes() > 1:
        words = " ".join(str(error).split())[:200]
        return (
            f"another process of the run seems lost ({words}); start all of them again: the same "
            "command continues from the last checkpoint",
            RUN_AGAIN,
        )
    return None


def _first_line(make: Callable[[], Any]) -> str:
    return next(iter((inspect.getdoc(make) or "").splitlines()), "")


def parse_flags(found: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parses the arguments into `found`.

    Raises:
      UsageError: an unknown flag, a value that a flag does not take, or a stray argument.
    """
    known = [name for name in found if name != "h"]
    try:
        _, *stray = found(["", *argv])
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        hint = nearest(name, known) or f"; there are {', '.join('--' + n for n in known)}"
        raise UsageError(f"unknown flag --{name}{hint}") from None
    except flags.IllegalFlagValueError as error:
        matched = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
        if matched is None:
            raise UsageError(f"{error}") from None
        name, value = matched.groups()
        kind = found[name].flag_type()
        raise UsageError(f"flag --{name} got {value!r}; it takes {kind}") from None
    except flags.Error as error:
        raise UsageError(f"{error}; --help lists the flags") from None
    if stray:
        raise UsageError(
            f"argument {stray[0]!r} belongs to no flag; write --FLAG=VALUE"
            f"{nearest(stray[0], known)}"
        )


def use_virtual_devices(count: int) -> None:
    """Lets this process have `count` virtual CPU devices; must come before any use of JAX.

    Raises:
      UsageError: a count below 1; devices that are in use already.
    """
    if count < 1:
        raise UsageError(f"flag --devices got {count}; it takes 1 or more")
    if count > MAX_VIRTUAL:
        raise UsageError(
            f"flag --devices got {count}; one process has at most {MAX_VIRTUAL} virtual devices: "
            "plan for more with --dry_run --topology"
        )
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        raise UsageError(
            f"flag --devices={count} came too late: JAX is in use in this process already"
        ) from None
