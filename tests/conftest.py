"""Shared fixtures: eight virtual devices, a kept compilation cache, and the optional real data."""

from __future__ import annotations

import fcntl
import gc
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Programs that are made in half of the time, and run slowly: most tests run theirs once.
QUICK, OPTIMISED = "--xla_backend_optimization_level=0", {"xla_backend_optimization_level": 3}
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # later compilers have no such choice
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
os.environ["QUICK_XLA_FLAGS"] = QUICK  # for processes with one device
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.forked import Python  # noqa: E402

# The tiny training that tests of several rooms share; it comes after the settings of the devices.
pytest_plugins = ["tests.toy_training"]

# Files with long tests, which start processes of their own or compile much.
LONG = ("tests/test_", "tests/train/", "tests/experiments/", "tests/models/")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Puts long files first: one at the end would keep a single worker busy and the others idle."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)


def pytest_collection_finish():
    """Spares the garbage collector what the imports made; tracing makes much of what it looks at,
    and it took a seventh of the time of a large model's shapes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# Where arrays broadcast between equal ranks alone; the other folders follow.
STRICT = tuple(
    f"tests/{room}/"
    for room in (
        "analysis",
        "checkpoint",
        "core",
        "data",
        "evals",
        "objectives",
        "results",
        "sampling",
        "sparsity",
    )
)


@pytest.fixture(autouse=True)
def equal_ranks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes broadcasting between unequal ranks an error: it hides arrays of a wrong shape."""
    strict = request.node.nodeid.startswith(STRICT)
    with jax.numpy_rank_promotion("raise" if strict else "allow"):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops the programs of a file when it is done: a worker of the whole suite stays small."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def optimised() -> dict[str, int | bool]:
    """Options of `jax.jit` and `compile` for programs as users run them."""
    return OPTIMISED


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests of compiled code: skips them where it cannot be built."""
    from jaxlab.nn.cpu.compiled import find_compiler

    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")


@pytest.fixture(params=["plain", "compiled"])
def backend(request: pytest.FixtureRequest):
    """The backends of a CPU: a test that takes it runs with each."""
    from jaxlab.nn import make_backend

    if request.param == "compiled":
        request.getfixturevalue("compiler")
    return make_backend(request.param)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real data and golden values that may lie beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ does not lie beside the project")
    return folder


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """Runs `python ARGUMENTS` in a process of its own that need not import JAX again."""
    python = Python()
    yield python
    python.close()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
    """One whole smoke run of the first experiment in a process with one device: its workdir and
    what it said. All workers of a run of the tests share it, and each has a copy."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    original, said = folder / "smoke_run", folder / "smoke_run.json"
    with open(folder / "smoke_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            process = start_smoke_run(original)
            said.write_text(json.dumps([process.returncode, process.stdout, process.stderr]))
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    if original.exists():
        shutil.copytree(original, workdir)
    return workdir, subprocess.CompletedProcess([], *json.loads(said.read_text()))


def start_smoke_run(workdir: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it: an interpreter of its own, with one device."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.block_recurrent",
            "--config=configs/block_recurrent.py:smoke",
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
