"""Runs of two processes with four devices each, against one process and one device."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxlab.core import MeshConfig, UsageError, to_dict
from jaxlab.results import Record, read_metrics
from jaxlab.study.connect import connect
from tests.forked import Python

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY = "tests/train/hosts_study.py"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
# The same float32 sums in another order: each is off by some 1e-7 of its size, and nine steps of
# Adam, which divides small gradients by their size, carry that on.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def study():
    """The study as a module, for runs in this process with its eight devices."""
    spec = importlib.util.spec_from_file_location("hosts_study", ROOT / STUDY)
    module = sys.modules["hosts_study"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["hosts_study"]


@pytest.fixture(scope="module")
def start(python):
    """Starts the processes of a run."""
    return functools.partial(Processes, python)


class Processes:
    """The processes of one run."""

    def __init__(
        self,
        python: Python,
        workdir: pathlib.Path,
        count: int,
        *arguments: str,
        pause: int = 0,
        slurm: bool = False,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = [
            [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
            for i in range(count)
        ]
        if count == 1 or slurm:
            found = [[]] * count
        self.workdir = workdir
        self.running = [
            python.start(
                STUDY,
                f"--config={STUDY}",
                f"--workdir={workdir}",
                f"--devices={8 // count if count > 1 else 1}",
                "--heartbeat_timeout=10",
                *found[i],
                *arguments,
                PAUSE_AT=str(pause),
                **slurm_task(i, count, slurm),
            )
            for i in range(count)
        ]

    def send(self, number: signal.Signals, *who: int) -> None:
        """Sends a signal to some of the processes, once all have paused, and lets them go on."""
        paused = [self.workdir / f"paused-{i}" for i in range(len(self.running))]
        while not all(path.exists() for path in paused):
            assert all(process.poll() is None for process in self.running), self.end()
            time.sleep(0.02)
        for i in who:
            self.running[i].send_signal(number)
        # JAX looks once a second whether there was a signal, and then tells the others.
        time.sleep(3.0 if number == signal.SIGTERM else 0.1)
        (self.workdir / "go").touch()

    def end(self) -> list[tuple[int, str, str]]:
        """Waits; gives the exit code, output and errors of each."""
        said = [process.communicate() for process in self.running]
        for path in [self.workdir / "go", *self.workdir.glob("paused-*")]:
            path.unlink(missing_ok=True)
        return [
            (process.returncode, own_lines(out), err)
            for process, (out, err) in zip(self.running, said, strict=True)
        ]


def slurm_task(number: int, count: int, slurm: bool) -> dict[str, str]:
    """What `srun` tells one of the tasks of a job on this machine."""
    if not slurm:
        return {}
    return {
        # JAX takes the port from the number of the job.
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def own_lines(output: str) -> str:
    """What the run printed, without what the collectives of the CPU say of themselves.

    Their threads may write into each other's lines.
    """
    theirs = ("Gloo", "peer ranks")
    return "\n".join(line for line in output.splitlines() if not any(x in line for x in theirs))


def mesh(**sizes: int) -> list[str]:
    return [f"--config.train.mesh.{axis}={size}" for axis, size in sizes.items()]


def curve(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    return {
        (row["step"], name): value
        for row in read_metrics(workdir / "metrics.jsonl")
        for name, value in row.items()
        if name.startswith(("train/", "held_out/"))
    }


def saved_steps(workdir: pathlib.Path) -> set[int]:
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}


def assert_same_curve(workdir: pathlib.Path, expected: dict[tuple[int, str], float]) -> None:
    found = curve(workdir)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        np.testing.assert_allclose(found[place], value, rtol=TOLERANCE, err_msg=str(place))


def go_on_here(study, workdir: pathlib.Path, **sizes: int) -> None:
    """Ends the run in this process, which has eight devices."""
    config = study.Config()
    settings = dataclasses.replace(config.train, mesh=MeshConfig(**sizes))
    config = dataclasses.replace(config, train=settings)
    record = Record.create(
        workdir,
        experiment="hosts_study",
        variant="small",
        paper="",
        config=to_dict(config),
        ignore=["train.mesh"],
    )
    study.run(config, record)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The curve of a run on one device without a break."""
    workdir = tmp_path_factory.mktemp("one")
    ((code, _, errors),) = start(workdir, 1).end()
    assert code == 0, errors
    found = curve(workdir)
    assert found[9, "train/loss"] < 0.8 * found[1, "train/loss"]
    assert (9, "held_out/bits_per_byte") in found
    return found


def test_two_processes_train_like_one_device(whole, start, tmp_path):
    (code, out, errors), (other_code, other_out, other_errors) = start(
        tmp_path, 2, *mesh(**MESH)
    ).end()
    assert (code, other_code) == (0, 0), errors + other_errors
    assert_same_curve(tmp_path, whole)
    assert "read rows (0, 1, 2, 3)" in out and "step 9/9" in errors
    # Only one speaks.
    assert not other_out and "/9" not in other_errors


def test_eight_devices_of_one_process_train_like_one_device(whole, study, tmp_path):
    go_on_here(study, tmp_path, **MESH)
    assert_same_curve(tmp_path, whole)


@pytest.mark.parametrize("lost", [0, 1], ids=["coordinator", "other"])
def test_a_run_that_lost_a_process_goes_on_in_one_process_and_another_mesh(
    lost, whole, study, start, tmp_path
):
    run = start(tmp_path, 2, *mesh(**MESH), pause=7)
    run.send(signal.SIGKILL, lost)
    ended = run.end()
    code, _, errors = ended[1 - lost]
    assert (code, ended[lost][0]) == (75, -signal.SIGKILL), errors
    # Below what JAX says of it.
    assert errors.splitlines()[-1].startswith("another process of the run seems lost"), errors
    # That of step 6 may have been on its way to the disk.
    assert {3} <= saved_steps(tmp_path) <= {3, 6}
    go_on_here(study, tmp_path, data=8)
    assert_same_curve(tmp_path, whole)


def test_sigterm_to_one_or_both_saves_one_step_and_asks_to_run_again(whole, study, start, tmp_path):
    run = start(tmp_path, 2, *mesh(**MESH), pause=4)
    run.send(signal.SIGTERM, 1)
    (code, _, errors), (other_code, _, other_errors) = run.end()
    assert (code, other_code) == (75, 75), errors + other_errors
    assert "stopped by SIGTERM at step" in errors and "stopped by" not in other_errors
    latest = max(saved_steps(tmp_path))
    assert 4 <= latest <= 6

    # What one of them wrote is damaged: both go back to the same checkpoint before.
    for file in (tmp_path / f"checkpoints/{latest}/params/ocdbt.process_1").glob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    run = start(tmp_path, 2, *mesh(data=4, tensor=2), pause=7)
    run.send(signal.SIGTERM, 0, 1)
    (code, _, errors), (other_code, _, other_errors) = run.end()
    assert (code, other_code) == (75, 75), errors + other_errors
    assert f"checkpoint of step {latest} in" in errors and "cannot be read" in errors
    assert "cannot be read" not in other_errors

    go_on_here(study, tmp_path, fsdp=8)
    assert_same_curve(tmp_path, whole)


@pytest.mark.parametrize("slurm", [False, True], ids=["flags", "slurm"])
def test_what_the_main_host_refuses_ends_all_and_is_said_once(slurm, start, tmp_path):
    Record.create(
        tmp_path, experiment="hosts_study", variant="small", paper="", config={"train": {}}
    )
    ends = start(tmp_path, 2, slurm=slurm).end()
    assert [code for code, _, _ in ends] == [2, 2]
    assert "has a run with another config" in ends[0][2]
    assert "another config" not in ends[1][2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coordinator": "a:1"}, "--num_processes and --process_id missing"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator missing"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "--coordinator=a; it takes"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 of --num_processes=2",
        ),
    ],
)
def test_half_a_connection_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        connect(**arguments)


@pytest.mark.parametrize("experiment", ["block_recurrent", "sparsity_robustness"])
def test_every_hook_and_measurement_of_a_study_runs_on_two_processes(tmp_path, experiment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"], "PYTHONPATH": str(ROOT)}
    running, files = [], [(tmp_path / f"{i}.out", tmp_path / f"{i}.err") for i in range(2)]
    for i, (out, err) in enumerate(files):
        command = [
            "-m",
            f"experiments.{experiment}",
            f"--config=configs/{experiment}.py:smoke",
            f"--workdir={tmp_path / 'run'}",
            "--devices=1",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            *mesh(data=2),
        ]
        # Files, not pipes: one process may say more than a pipe holds before the other is read.
        with open(out, "w") as stdout, open(err, "w") as stderr:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **own},
                stdout=stdout,
                stderr=stderr,
            )
        running.append(process)
    for process in running:
        process.wait()
    ended = [tuple(file.read_text() for file in both) for both in files]
    assert [process.returncode for process in running] == [0, 0], ended
    record = Record.open(tmp_path / "run")
    assert record.complete and record.report_path.is_file() and record.claims
    # Only one speaks.
    assert "report " in ended[0][0] and not own_lines(ended[1][0])
    if experiment == "block_recurrent":
        rows = Record.open(record.workdir / "block_recurrent" / "seed0").metrics
        watched = [row for row in rows if np.isfinite(row.get("state_0/kept", np.nan))]
        assert [row["step"] for row in watched] == [2, 4]
