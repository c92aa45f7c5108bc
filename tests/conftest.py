"""Shared fixtures: eight virtual devices, a kept compilation cache, and the optional real data."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops the programs of a file when it is done: a worker of the whole suite stays small."""
    yield
    jax.clear_caches()


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
    # One device, as a laptop has, and programs that compile fast and run slowly.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [
            sys.executable, "-m", "experiments.block_recurrent",
            "--config=configs/block_recurrent.py:smoke", f"--workdir={workdir}",
        ],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )
    return workdir, process
