"""The study of docs/own_study.md, run as its page says."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import sys

import pytest

from jaxlab import study

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_study.md"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with the page's two files, and the script as a module."""
    root = tmp_path_factory.mktemp("house")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for folder, text in zip(("configs", "experiments"), blocks, strict=True):
        (root / folder).mkdir()
        (root / folder / "width.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("width_study", root / "experiments" / "width.py")
    module = sys.modules["width_study"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield root, module
    del sys.modules["width_study"]


@pytest.fixture(scope="module")
def command(house):
    """Runs the page's script with more arguments; returns its exit code."""
    root, module = house

    def run(*argv, module=module):
        with pytest.raises(SystemExit) as ended:
            study.main(
                module.run,
                page=module.page,
                trainings=module.trainings,
                grows=("widths", "num_seeds"),
                argv=[
                    f"--config={root / 'configs' / 'width.py'}:smoke",
                    f"--workdir={root / 'runs'}",
                    *argv,
                ],
            )
        return ended.value.code or 0

    return run


def measured(root):
    files = sorted((root / "runs").rglob("measured.json"))
    return {str(file.parent.relative_to(root / "runs")): file.stat().st_mtime_ns for file in files}


def test_the_page_runs_resumes_and_grows(house, command, capsys):
    root, _ = house
    assert command() == 0
    words = capsys.readouterr().out
    assert "A network of width 8 is more accurate" in words and "report" in words
    results = json.loads((root / "runs" / "results.json").read_text())
    assert set(results["numbers"]) == {"test/accuracy"}
    assert (root / "runs" / "figures" / "accuracy.png").stat().st_size > 1000
    before = measured(root)
    assert sorted(before) == ["width_4/seed0", "width_4/seed1", "width_8/seed0", "width_8/seed1"]

    assert command("--config.num_seeds=3") == 0  # a seed more of each, and no other work
    after = measured(root)
    assert after.keys() - before.keys() == {"width_4/seed2", "width_8/seed2"}
    assert {name: after[name] for name in before} == before

    assert command("--config.num_seeds=3", "--config.train.steps=5") == 2
    assert "train.steps: 4 -> 5" in capsys.readouterr().err


def test_the_page_is_planned_without_training(house, command, capsys):
    root, _ = house
    assert command("--dry_run") == 0
    words = capsys.readouterr().out
    assert "width_4:" in words and "width_8:" in words and "parameters:" in words


def test_what_does_not_fit_the_devices_ends_before_any_training(house, command, capsys, tmp_path):
    code = command(f"--workdir={tmp_path}", "--config.train.batch_size=6")
    words = capsys.readouterr().err
    assert code == 2 and "training width_4: batch_size=6 does not divide over 8 devices" in words
    assert not list(tmp_path.rglob("metrics.jsonl"))
