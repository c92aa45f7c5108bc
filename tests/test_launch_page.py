"""The commands of docs/launch.md: those of one machine run, those of clusters are understood."""

from __future__ import annotations

import pathlib
import re
import shlex
import sys

import pytest
import yaml

from experiments import block_recurrent

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "launch.md").read_text()
STUDY = "-m experiments.block_recurrent"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return [block.replace("\\\n", " ") for block in found]


def own_commands() -> list[str]:
    """Commands that are typed as they stand; the README has the first of them too."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"python {STUDY}")][1:]


def cluster_arguments() -> list[list[str]]:
    """What the processes of a cluster are given, as the shell would."""
    found = []
    for block in blocks("bash"):
        if not block.startswith(f"python {STUDY}"):
            inner = re.search(rf"{STUDY}((?:\s+--[^\s\"]+)+)", block)
            assert inner, block
            found.append(shlex.split(inner[1].replace("$i", "1")))
    (text,) = blocks("yaml")
    _, job = yaml.safe_load_all(text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", *STUDY.split()]
    return [*found, container["command"][3:]]


@pytest.mark.parametrize("command", own_commands(), ids=range(len(own_commands())))
def test_a_command_runs(command, tmp_path, python):
    words = shlex.split(command.replace(":tiny", ":smoke").replace("_every=100", "_every=2"))
    # On eight devices everything is compiled eight times over: planned, it is the step alone.
    words.append("--dry_run" if "--devices=8" in words else "--config.include_recall=false")
    words = [re.sub("^--workdir=", f"--workdir={tmp_path}/", word) for word in words]
    process = python(*words[1:])
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_the_page_has_a_command_for_every_kind_of_cluster():
    assert len(cluster_arguments()) == 4
    assert sum(any("--coordinator" in a for a in words) for words in cluster_arguments()) == 1


@pytest.mark.parametrize(
    "arguments", cluster_arguments(), ids=["ssh", "slurm", "tpu", "kubernetes"]
)
def test_what_a_cluster_is_told_is_understood(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(block_recurrent, "trainings", lambda config: [])
    monkeypatch.setattr(sys, "argv", ["block_recurrent", *arguments, "--dry_run"])
    with pytest.raises(SystemExit) as end:
        block_recurrent.main()
    assert end.value.code == 0
    assert "train.steps = 500000" in capsys.readouterr().out
