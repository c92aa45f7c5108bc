"""The commands of docs/planning.md, at the size of a smoke test and for a few devices."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shlex

import pytest

from configs.block_recurrent import paper

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "planning.md").read_text()
COMMANDS = [
    block.replace("\\\n", " ") for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
]
# The pods of the page, and small ones of the same kind; what takes so many devices goes with them.
SMALL = {
    "--topology=v5e:16x16": "--topology=v5e:2x2",
    "--topology=v4:16x16x16": "--topology=v4:2x2x1",
    "--devices=256": "--devices=4",
    ":paper": ":smoke --config.include_recall=false",
    "mesh.data=1024": "mesh.data=4",
    "mesh.data=32": "mesh.data=2",
    "mesh.tensor=8": "mesh.tensor=2",
    "batch_size=1024": "batch_size=8",
}


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_plans_what_it_says(command, python):
    if "--topology" in command and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; `make test` installs it")
    cheap = "--topology" not in command and "--devices" not in command
    for large, small in {} if cheap else SMALL.items():
        command = command.replace(large, small)
    words = shlex.split(command)
    process = python(*words[1:])
    assert process.returncode == 0, process.stderr
    assert ("compiled for" in process.stdout) is not cheap


TABLES = re.findall(r"^```\n(block-recurrent:.*?)^```", PAGE, re.M | re.S)
MIB = 2**20
TENSOR = 8


def number(table: str, pattern: str) -> float:
    """The one number in a table after some words."""
    (found,) = re.findall(pattern.replace("#", r"([\d.,e+]*\d)"), table)
    return float(found.replace(",", ""))


@pytest.fixture(scope="module")
def counts():
    """Parameters and multiply-adds a token of arXiv 2203.07852's `Rec:fixed:skip`, by hand."""
    w, f, h, blocks, s, v = 1024, 4096, 8, 512, 512, 260
    model = paper().model
    assert (model.width, model.mlp_dim, model.num_heads, model.head_dim) == (w, f, h, w // h)
    assert (model.depth, model.window, model.num_states, model.vocab_size) == (12, blocks, s, v)
    layer = 4 * w * w + 2 * w * f
    # Another query and twice the output projection; keys, values and two queries of the state, and
    # its output projection of twice the width.
    recurrent = 2 * w * w + 4 * w * w + 2 * w * w
    split = 12 * layer + recurrent
    # Two norms a layer, one of the state and the last; 32 distances and a scale a head and
    # attention; the ids of the states, the first state, the gate.
    whole = (2 * 12 + 2) * w + 12 * h * (32 + 1) + 3 * h + 2 * s * w + w + v * w
    # Scores and values: each query with the keys of one window, or of the two that hold them. A
    # token reads the states; a state, of which there are as many, reads states and two windows.
    least, most = (split + v * w + 12 * 2 * keys * w for keys in (blocks, 2 * blocks))
    read = 2 * w * (s + s + 2 * blocks)
    return split, whole, least + read, most + read


@pytest.mark.parametrize("table", TABLES, ids=["v5e", "v4", "virtual"])
def test_parameters_memory_and_flops_of_paper_are_those_counted_by_hand(table, counts):
    split, whole, least, most = counts
    assert number(table, r"parameters: #,") == split + whole
    there = 4 * (split / TENSOR + whole) / MIB
    assert number(table, r"parameters: .*, # MiB a device") == pytest.approx(there, abs=0.03)
    for kind in ("parameters", "gradients"):
        assert number(table, rf"bytes a device:.* {kind} # MiB") == pytest.approx(there, abs=0.06)
    # Momentum, and statistics of rows and columns.
    assert there < number(table, r"optimizer # MiB") < 1.01 * there
    # Keys and values of the last window of twelve layers and the state, in bfloat16.
    a_row = 2 * (12 * 2 * 512 * 1024 + 512 * 1024) / MIB
    rows = number(table, r"batch: # rows")
    assert number(table, r"recurrent state: # MiB,") == rows * a_row
    assert number(table, r"carry # MiB") == a_row
    (line,) = re.findall(r"bytes a device:.*", table)
    parts = sum(map(float, re.findall(r"([\d.]+) MiB", line)))
    assert number(table, r"peak a device: # MiB") == pytest.approx(parts, abs=0.3)
    tokens = rows * 4096
    assert number(table, r"tokens a step: #\n") == tokens
    # Backward is twice forward, and rematerialisation does the layers' forward pass again.
    flops = number(table, r"FLOPs a step: # in")
    assert 6 * tokens * least < flops < 8 * tokens * most
    devices = number(table, r"devices: # ")
    assert number(table, r"recomputation included; # a device") == pytest.approx(
        flops / devices, rel=1e-3
    )
