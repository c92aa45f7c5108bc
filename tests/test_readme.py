"""Every command and snippet of the README and the docs runs, at the size of a smoke test."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil

import pytest

from jaxlab.study.command_line import CTRL_C, DIVERGED, NOT_WRITTEN, RUN_AGAIN, USAGE
from jaxlab.train.watchdog import STUCK

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The files of a study that the page shows: tests/study/test_own_study_page.py runs it.
FILES = ROOT / "docs" / "own_study.md"


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(language: str = "bash") -> list[str]:
    """The experiment commands of the README, one string each."""
    text = "\n".join(blocks(ROOT / "README.md", language)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("python -m experiments.")]


SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    if page != FILES
    for i, code in enumerate(blocks(page, "python"))
]


@pytest.fixture
def trained(smoke_run, tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with a trained runs/tiny and a folder of text, as a reader of the README has."""
    workdir, process = smoke_run
    assert process.returncode == 0, process.stderr
    shutil.copytree(workdir, tmp_path / "runs" / "tiny")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    folder = tmp_path / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.txt").write_text("It was a dark and stormy night. " * (10 + i))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code, trained):
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("command", commands(), ids=range(len(commands())))
def test_a_command_runs(command, trained, python):
    words = shlex.split(command.replace(":tiny", ":smoke").replace("steps=500", "steps=4"))
    process = python(*words[1:], cwd=trained)
    assert words[0] == "python" and process.returncode == 0, process.stderr
    assert process.stdout


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert {"demo", "test", "env"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, re.M), name


def test_both_pages_on_how_runs_end_know_every_exit_code():
    codes = (USAGE, DIVERGED, STUCK, NOT_WRITTEN, RUN_AGAIN, CTRL_C)
    for page in ("faults", "launch"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        rows = re.findall(r"^\|[^|]*\|[^|]*\| (\d+)\b", text, re.M)
        assert set(map(int, rows)) - {0} == set(codes), page


def test_every_file_that_a_page_links_to_exists():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
