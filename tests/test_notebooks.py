"""The notebooks run from top to bottom against the package as it is installed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path: pathlib.Path) -> str:
    """All code cells in order, as one program that prints which cell it is at; it trains for a
    few steps and tests on a few images."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join(f"print('cell {i}')\n{source}" for i, source in enumerate(sources))
    short, replaced = re.subn(r"\bsteps=\d+", "steps=25", code)
    assert replaced, f"{path.name} sets no steps=N, which the test would lower"
    return short.replace('digits("test")', 'digits("test").first(128)')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_installed_package(path: pathlib.Path, tmp_path: pathlib.Path):
    program = tmp_path / "notebook.py"
    program.write_text(code_of(path), encoding="utf-8")
    # Neither the checkout nor the tests' eight devices.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"], "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if "No module named 'jaxlab'" in done.stderr:
        pytest.skip("the package is not installed in this environment; `make env` does that")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: pathlib.Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
