"""Shared fixtures: eight virtual devices, a kept compilation cache, and the optional real data."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys

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

# The tiny training that tests of several rooms share; it comes after the settings of the devices.
pytest_plugins = ["tests.toy_training"]

# Files with long tests, which start processes of their own or compile much.
LONG = ("tests/test_", "tests/train/", "tests/experiments/", "tests/models/")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Puts long files first: one at the end would keep a single worker busy and the others idle."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)


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
def kernel(request: pytest.FixtureRequest) -> str:
    """What layers compute with on a CPU: each test of it runs with both."""
    if request.param == "compiled":
        request.getfixturevalue("compiler")
    return request.param


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real data and golden values that may lie beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ does not lie beside the project")
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
    """One whole smoke run of the first experiment in a process with one device: its workdir and
    what it said."""
    workdir = tmp_path_factory.mktemp("smoke")
    environment = {**os.environ, "XLA_FLAGS": QUICK}  # one device, as a laptop has
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.block_recurrent",
            "--config=configs/block_recurrent.py:smoke",
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return workdir, process
