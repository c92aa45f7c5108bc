"""Runs of the toy model that meet a fault, each in a process of its own: no test, but what
`test_faults.py` starts.

    python faulty_runs.py FAULT=WORKDIR ...

Imports once and forks a process for each, before JAX has started a thread. Prints, as JSON,
`{fault: [exit code, what the run printed]}`; the exit code of a killed run is minus the signal.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import orbax.checkpoint  # noqa: F401  so that no fork imports it again
import tensorboardX  # noqa: F401

from jaxlab import checkpoint, study, train
from tests import toy_training as toy

UNAVAILABLE = 77
PATIENCE = 120  # seconds after which a run that ought to have ended is killed, by SIGALRM


@dataclasses.dataclass(frozen=True)
class Config:
    train: train.TrainConfig = train.TrainConfig(
        steps=12,
        batch_size=8,
        log_every=4,
        save_every=4,
        keep_last=1,
        optimizer=train.OptimizerConfig(
            "adamw", learning_rate=1e-2, warmup_steps=2, weight_decay=0.1
        ),
    )


VARIANTS = {"toy": Config}


def start(workdir: Any, config: train.TrainConfig, hooks=(), stream=None):
    """Trains the toy in a workdir, or goes on with what is there."""
    return train.run_training(
        config,
        build=toy.build,
        objective=toy.objective,
        stream=stream or toy.Numbers(),
        workdir=workdir,
        init_carry=lambda rows: toy.carry(rows)(),
        hooks=hooks,
        tokens_per_step=8,
        evaluate=lambda state: {"held_out/step": float(state.step)},
    )


def digest(params) -> str:
    """Of all bits of the parameters."""
    return hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in params.values())).hexdigest()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever(*_args: object) -> None:
    threading.Event().wait()


class At(train.Hook):
    """Does something after one step, for which a watchdog has patience."""

    def __init__(self, step: int, action):
        self.every = self.step = step
        self.action = action

    def after_step(self, run):
        if run.step == self.step:
            self.action()


def around(owner: Any, name: str, matches, before=None, after=None) -> None:
    """Does something before or after the calls of `owner.name` whose first argument matches."""
    original = getattr(owner, name)

    def patched(first, *args, **kwargs):
        hit = matches(first, *args)
        if hit and before is not None:
            before(first)
        result = original(first, *args, **kwargs)
        if hit and after is not None:
            after(first)
        return result

    setattr(owner, name, patched)


def path_ends(end: str):
    return lambda path, *_: os.fspath(path).endswith(end)


def is_save_of_8(checkpoints, state, *_args) -> bool:
    return int(state.step) == 8


def wait_for_arrays(checkpoints) -> None:
    while not list(checkpoints.folder.glob("8.*tmp*/params.*/**/d/*")):
        time.sleep(0.01)
    die()


def delete_half(path) -> None:
    (pathlib.Path(path) / "params" / "_METADATA").unlink()
    die()


def limit_files(size: int) -> None:
    """No file of this process grows beyond `size`: EFBIG, the nearest to a full disk that every
    system allows without rights."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def raise_signals(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def wait_for_4(workdir: pathlib.Path) -> None:
    while not (workdir / "checkpoints" / "4").exists():
        time.sleep(0.01)


def limit_metrics(workdir: pathlib.Path) -> None:
    """Ten bytes of the next row find room."""
    wait_for_4(workdir)
    limit_files((workdir / "metrics.jsonl").stat().st_size + 10)


def fill(workdir: pathlib.Path) -> None:
    """Leaves no byte free in the file system of a workdir."""
    wait_for_4(workdir)
    with open(workdir / "ballast", "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


class Hangs(toy.Numbers):
    """Its seventh batch never comes."""

    def __next__(self):
        if self.number == 6:
            sleep_for_ever()
        return super().__next__()


class NotANumber(toy.Numbers):
    """Its seventh batch."""

    def __next__(self):
        batch = super().__next__()
        return batch | {"x": batch["x"] * np.float32(np.nan)} if self.number == 7 else batch


class FiveToEightLeftOut(toy.Numbers):
    """What a run that skips them reads."""

    def __next__(self):
        if self.number == 4:
            self.number = 8
        return super().__next__()


TMP = ".orbax-checkpoint-tmp"
SAVE = (checkpoint.Checkpoints, "save", is_save_of_8)
# Patches that a forked process makes before it runs.
PATCHES = {
    "before the save": lambda: around(*SAVE, before=lambda _: die()),
    "while arrays are written": lambda: (
        around(os, "rename", path_ends(f"8{TMP}/params{TMP}"), before=sleep_for_ever),
        around(*SAVE, after=wait_for_arrays),
    ),
    "with a part of it whole": lambda: around(
        os, "rename", path_ends(f"8{TMP}/train{TMP}"), after=lambda _: die()
    ),
    "before it is named": lambda: around(
        os, "rename", path_ends(f"8{TMP}"), before=lambda _: die()
    ),
    "after it is named": lambda: around(os, "rename", path_ends(f"8{TMP}"), after=lambda _: die()),
    "before the old one goes": lambda: around(
        shutil, "rmtree", path_ends("checkpoints/4"), before=lambda _: die()
    ),
    "while the old one goes": lambda: around(
        shutil, "rmtree", path_ends("checkpoints/4"), before=delete_half
    ),
    "SIGTERM in a save": lambda: around(*SAVE, after=lambda _: raise_signals(signal.SIGTERM)),
    "a limit on files": lambda: around(*SAVE, before=lambda _: limit_files(200)),
}
# Hooks, made in the forked process of a workdir.
HOOKS = {
    "SIGTERM": lambda workdir: At(6, lambda: raise_signals(signal.SIGTERM)),
    "Ctrl-C": lambda workdir: At(6, lambda: raise_signals(signal.SIGINT)),
    "Ctrl-C twice": lambda workdir: At(6, lambda: raise_signals(signal.SIGINT, signal.SIGINT)),
    "a limit on metrics": lambda workdir: At(6, lambda: limit_metrics(workdir)),
    "a full disk": lambda workdir: At(6, lambda: fill(workdir)),
    "data that hang": lambda workdir: At(5, lambda: wait_for_4(workdir)),
}
STREAMS = {
    "data that hang": Hangs,
    "numbers that are not finite": NotANumber,
    "numbers that are skipped": NotANumber,
}
FLAGS = {
    "data that hang": ["--config.train.stuck_seconds=2"],
    "numbers that are skipped": [
        "--config.train.on_divergence=skip",
        "--config.train.spike_factor=1e6",
        "--config.train.max_skips=1",
        "--config.train.stuck_seconds=100",
    ],
}


def run(config: Config, record: Any) -> None:
    """A study of nothing but the toy."""
    fault = os.environ["FAULT"]
    hooks = [HOOKS[fault](record.workdir)] if fault in HOOKS else []
    start(record, config.train, hooks, STREAMS.get(fault, toy.Numbers)())


def call(fault: str, workdir: pathlib.Path) -> int:
    os.environ["FAULT"] = fault
    flags = [f"--config={__file__}:toy", f"--workdir={workdir}", *FLAGS.get(fault, ())]
    try:
        study.main(run, argv=flags)
    except SystemExit as end:
        return end.code or 0
    raise AssertionError("main returned")


def on_a_full_disk(workdir: pathlib.Path) -> int:
    """In a small file system that this process alone sees: a run, and one with space again."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user = 0x20000, 0x10000000  # linux/sched.h: CLONE_*
    flags = new_mounts if os.getuid() == 0 else new_mounts | new_user
    workdir.mkdir()
    if libc.unshare(flags) or libc.mount(b"none", bytes(workdir), b"tmpfs", 0, b"size=2m"):
        print(os.strerror(ctypes.get_errno()))
        return UNAVAILABLE
    code = call("a full disk", workdir)
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    (workdir / "ballast").unlink()
    again = call("none", workdir)
    print(json.dumps([code, kept, again, digest(checkpoint.restore_params(workdir))]))
    return 0


def in_child(fault: str, workdir: pathlib.Path, out: int) -> None:
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.alarm(PATIENCE)
    code = 1
    try:
        if fault == "a full disk":
            code = on_a_full_disk(workdir)
        else:
            PATCHES.get(fault, lambda: None)()
            code = call(fault, workdir)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork(fault: str, workdir: pathlib.Path) -> tuple[int, int]:
    """Starts a run: its process, and a pipe with what it prints."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        in_child(fault, workdir, write)
    os.close(write)
    return process, read


def main(argv: list[str]) -> None:
    """Two at a time."""
    pairs = [argument.split("=", 1) for argument in argv]
    found = {}
    for some in (pairs[i : i + 2] for i in range(0, len(pairs), 2)):
        started = [(fault, *fork(fault, pathlib.Path(workdir))) for fault, workdir in some]
        for fault, process, pipe in started:
            with open(pipe, "rb") as out:
                text = out.read().decode(errors="replace")
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            found[fault] = [code, text]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
