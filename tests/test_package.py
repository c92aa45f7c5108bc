"""What importing costs, and what a wheel holds."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import jaxlab
from jaxlab.nn.cpu import compiled

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = {
    "array_record",
    "grain",
    "matplotlib",
    "sentencepiece",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
}
IMPORT_ALL = """
import importlib, pkgutil, sys
import jaxlab
for module in pkgutil.walk_packages(jaxlab.__path__, "jaxlab."):
    importlib.import_module(module.name)
print(*sys.modules)
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter that knows no platform, so that a device fails it."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "nowhere", **environment},
        capture_output=True,
        text=True,
    )


def modules_after(code: str) -> set[str]:
    """Returns the names of all modules that `code`, which prints them, has imported."""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_bare_import_loads_neither_jax_nor_a_room():
    loaded = modules_after("import sys, jaxlab; print(*sys.modules)")
    assert {name for name in loaded if name.split(".")[0] == "jaxlab"} == {
        "jaxlab",
        "jaxlab._version",
    }
    assert not loaded & {"jax", "flax", "numpy"}


def test_every_module_imports_without_a_device_and_without_heavy_packages():
    loaded = modules_after(IMPORT_ALL)
    assert {f"jaxlab.{room}" for room in jaxlab.__all__} <= loaded
    assert not loaded & HEAVY


def test_a_device_would_have_been_noticed():
    result = run_python("import jax; jax.devices()")
    assert result.returncode != 0
    assert "nowhere" in result.stderr


def test_rooms_named_are_the_rooms_that_exist():
    folders = {path.parent.name for path in (ROOT / "jaxlab").glob("*/__init__.py")}
    assert set(jaxlab.__all__) == folders
    assert set(jaxlab.__all__) <= set(dir(jaxlab))


def test_type_checkers_see_every_room():
    source = (ROOT / "jaxlab" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r"^    from jaxlab import (\w+) as \1$", source, re.M) == jaxlab.__all__


def test_unknown_room_names_the_nearest():
    with pytest.raises(AttributeError, match="no attribute 'objective'; did you mean 'objectives'"):
        jaxlab.objective  # noqa: B018
    assert not hasattr(jaxlab, "__wrapped__")


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Builds the wheel from a copy of the sources and returns its path."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("jaxlab", "tests", "configs", "experiments", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,) = copy.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The built wheel, opened for reading."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools 77 builds the wheel, this is {version}; `make env` has it")
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def test_wheel_holds_the_typed_package_and_nothing_else(wheel: zipfile.ZipFile):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxlab").rglob("*.py")}
    code = {f"jaxlab/nn/cpu/{source.name}" for source in compiled.SOURCES}
    assert files == sources | code | {"jaxlab/py.typed"} and len(code) == 3


def test_wheel_states_version_python_licence_and_no_tensorflow(wheel: zipfile.ZipFile):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {jaxlab.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    needed = set(re.findall(r"^Requires-Dist: ([\w.-]+)", metadata, re.M))
    assert {"jax", "flax"} <= needed
    assert "tensorflow" not in needed
    extras = set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.M))
    assert extras == {"cuda", "tpu", "test", "lint", "docs"}


def test_lock_pins_by_hash_and_names_no_host():
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z])", lock)[1:]
    assert len(entries) > 50
    assert all(re.match(r"[\w.-]+==\S+ .*?--hash=sha256:", entry, re.S) for entry in entries)
    assert "://" not in lock
    assert "tensorflow==" not in lock
