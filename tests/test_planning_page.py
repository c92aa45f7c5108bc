"""The commands of docs/planning.md, at the size of a smoke test and for a few devices."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "planning.md").read_text()
COMMANDS = [
    block.replace("\\\n", " ") for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
]
# The pods of the page, and small ones of the same kind; what takes so many devices goes with them.
SMALL = {
    "--topology=v5e:16x16": "--topology=v5e:2x2", "--topology=v4:16x16x16": "--topology=v4:2x2x1",
    "--devices=256": "--devices=4", ":paper": ":smoke", "mesh.data=1024": "mesh.data=4",
    "mesh.data=32": "mesh.data=2", "mesh.tensor=8": "mesh.tensor=2",
    "batch_size=1024": "batch_size=8",
}


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_plans_what_it_says(command):
    if "--topology" in command and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; `make test` installs it")
    cheap = "--topology" not in command and "--devices" not in command
    for large, small in {} if cheap else SMALL.items():
        command = command.replace(large, small)
    words = shlex.split(command)
    process = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "XLA_FLAGS": ""},
    )
    assert process.returncode == 0, process.stderr
    assert ("compiled for" in process.stdout) is not cheap
