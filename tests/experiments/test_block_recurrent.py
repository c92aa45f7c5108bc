"""The first experiment from end to end, by the command line that a user types.

Trainings run in processes of their own, with the one device that a laptop has; what only reads a
workdir runs here.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from configs.block_recurrent import smoke
from experiments import block_recurrent as script
from jaxlab import checkpoint, study
from jaxlab.core import to_dict
from jaxlab.models import TransformerLM
from jaxlab.results import Record, read_metrics
from jaxlab.study.config_files import resolve_config, split_assignments

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = "--config=configs/block_recurrent.py:smoke"
TEXT_ONLY = "--config.include_recall=false"
RECURRENT, WINDOWED = "block_recurrent/seed0", "sliding_window/seed0"  # folders of trainings


@pytest.fixture
def experiment(python):
    """The command line in a process of its own."""
    return functools.partial(python, "-m", "experiments.block_recurrent")


@pytest.fixture
def call(capsys, monkeypatch):
    """The command line in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(ROOT)

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            script.main(argv)
        return caught.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def done(smoke_run) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
    """One whole smoke run: its workdir, and what it said."""
    return smoke_run


def test_a_run_ends_well_and_leaves_the_files_of_the_contract(done):
    workdir, process = done
    assert process.returncode == 0, process.stderr
    files = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()}
    assert {"config.json", "results.json", "report.html", "sample.txt"} <= files
    assert {
        f"figures/{name}.png"
        for name in (
            "training",
            "by_position",
            "gain",
            "bits_per_byte",
            "recall",
            "state_0_gate",
            "state_0_entropy",
            "state_0_size",
        )
    } <= files
    for folder in (RECURRENT, WINDOWED, f"recall/{RECURRENT}", f"recall/{WINDOWED}"):
        assert (workdir / folder / "checkpoints" / "4").is_dir()
        assert {f"{folder}/config.json", f"{folder}/measured.json"} <= files
        rows = read_metrics(workdir / folder / "metrics.jsonl")
        trained = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
        assert list(trained) == [2, 4] and np.isfinite(list(trained.values())).all()
        watched = [row["step"] for row in rows if "state_0/kept" in row]
        assert watched == ([2, 4] if folder == RECURRENT else [])


def test_results_have_the_schema_and_each_number_its_command(done, monkeypatch):
    workdir, _ = done
    found = json.loads((workdir / "results.json").read_text())
    assert list(found) == ["experiment", "variant", "paper", "claims", "numbers", "environment"]
    assert (found["experiment"], found["variant"]) == ("block_recurrent", "smoke")
    assert "2203.07852" in found["paper"] and len(found["claims"]) == 9
    assert all(list(c) == ["claim", "expected", "measured", "holds"] for c in found["claims"])
    assert all(re.fullmatch(r"\w+/\w+", name) for name in found["numbers"])
    groups = found["numbers"].values()
    leaves = [x for g in groups for x in ([g] if "value" in g else g.values())]
    assert leaves and all(list(leaf) == ["value", "command"] for leaf in leaves)
    (command,) = {leaf["command"] for leaf in leaves}
    assert str(workdir) not in command
    assignments, rest = split_assignments(shlex.split(command))
    flag = next(part for part in rest if part.startswith("--config="))
    monkeypatch.chdir(ROOT)
    assert resolve_config(flag.removeprefix("--config="), assignments, "")[1] == smoke()


def test_the_command_that_repeats_a_run_sets_what_differs_from_its_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    fields = {
        "data.source": "text:/my texts",
        "data.eval_tokens": "none",
        "model.num_states": "9",
        "model.recurrent_layers": "(-1,0)",
        "train.optimizer.learning_rate": "3e-4",
        "sample.prompt": "a = 'b'",
        "include_recall": "false",
    }
    _, config = resolve_config("configs/block_recurrent.py:smoke", fields, "")
    record = Record.create(
        tmp_path / "w",
        experiment="block_recurrent",
        variant="smoke",
        paper="",
        config=to_dict(config),
    )
    command = study.repeat_command(record, "configs/block_recurrent.py")
    assignments, _ = split_assignments(shlex.split(command))
    assert assignments.keys() == fields.keys()
    assert resolve_config("configs/block_recurrent.py:smoke", assignments, "")[1] == config


def test_numbers_agree_with_one_another(done):
    workdir, process = done
    numbers = study.values_of(json.loads((workdir / "results.json").read_text())["numbers"])
    bits = numbers["held_out/bits_per_byte"]
    positions = numbers["held_out/bits_per_token_by_position"]
    models = {script.RECURRENT, script.WINDOWED, script.RESET, script.OTHER}
    assert bits.keys() == models | {script.XZ}
    assert positions["from"] == [0, 16, 32, 64, 128]
    # Four documents, each cut off after 256 bytes: every bin has all its tokens.
    widths = np.diff([*positions["from"], 256])
    for name in models:
        mean = np.average(positions[name], weights=widths)
        assert mean == pytest.approx(bits[name], rel=1e-5)
    # A segment is 64 tokens: until its end nothing is reset.
    for control in (script.RESET, script.OTHER):
        for i in range(3):
            assert positions[control][i] == pytest.approx(positions[script.RECURRENT][i])
        assert positions[control][3] != positions[script.RECURRENT][3]
    assert (numbers["held_out/documents"], numbers["held_out/bytes"]) == (4, 1024)
    assert f"{bits[script.RECURRENT]:.3f}" in process.stdout and script.XZ in process.stdout


def test_the_report_tells_claims_that_do_not_hold(done):
    workdir, process = done
    page = (workdir / "report.html").read_text()
    claims = json.loads((workdir / "results.json").read_text())["claims"]
    assert not all(claim["holds"] for claim in claims)
    assert page.count('class="mark no"') == sum(not claim["holds"] for claim in claims)
    assert process.stdout.count("not shown") == page.count('class="mark no"')


def test_a_complete_run_is_only_drawn_again(done, call):
    workdir, _ = done
    kept = ("results.json", "sample.txt", *(f"{f}/metrics.jsonl" for f in (RECURRENT, WINDOWED)))
    before = {name: (workdir / name).read_bytes() for name in kept}
    picture, page = workdir / "figures" / "training.png", workdir / "report.html"
    drawn = picture.read_bytes()
    picture.unlink()
    page.unlink()
    code, out, err = call(SMOKE, f"--workdir={workdir}")
    assert (code, err) == (0, "") and script.XZ in out
    assert picture.read_bytes() == drawn and page.is_file()
    assert {name: (workdir / name).read_bytes() for name in kept} == before


def test_another_config_is_refused_by_the_field_that_differs(done, call):
    workdir, _ = done
    before = (workdir / "results.json").read_bytes()
    code, _, err = call(SMOKE, f"--workdir={workdir}", "--config.train.steps=9")
    assert code == 2 and "train.steps: 4 -> 9" in err and err.count("\n") == 1
    assert (workdir / "results.json").read_bytes() == before


def test_a_prompt_is_continued_alike_for_a_seed(done, call):
    workdir, _ = done
    argv = (f"--workdir={workdir}", "--sample=def café", "--num_tokens=6")
    code, first, err = call(*argv)
    assert (code, err) == (0, "") and first.startswith("def café")
    assert call(*argv)[1] == first
    others = {call(*argv, f"--seed={seed}")[1] for seed in range(1, 4)}
    assert others != {first}
    code, _, err = call(*argv, "--temperature=-1")
    assert code == 2 and "temperature=-1" in err and err.count("\n") == 1


def test_a_sample_ends_before_a_stop_string(done, call):
    argv = (f"--workdir={done[0]}", "--sample=def ", "--num_tokens=40")
    whole = call(*argv)[1].removesuffix("\n")
    for stop in (whole[10:12], whole[20]):
        code, out, err = call(*argv, "--stop=nowhere in it", f"--stop={stop}")
        assert (code, err) == (0, "") and out == whole[: whole.index(stop, 4)] + "\n"
    code, out, err = call(*argv, "--stop=")
    assert (code, out) == (2, "") and "holds an empty string" in err and err.count("\n") == 1


def test_a_sample_from_a_folder_without_a_model_gives_one_line(done, call, tmp_path):
    argv = (f"--workdir={tmp_path / 'w'}", "--sample=def ")
    code, out, err = call(*argv)
    assert (code, out) == (2, "") and "is not a folder" in err and err.count("\n") == 1
    (tmp_path / "w").mkdir()
    code, out, err = call(*argv)
    assert (code, out) == (2, "") and "has no config.json" in err and err.count("\n") == 1
    shutil.copy(done[0] / "config.json", tmp_path / "w")
    code, out, err = call(*argv)
    assert (code, out) == (2, "") and RECURRENT in err and err.count("\n") == 1


def test_both_models_open_in_a_notebook(done):
    workdir, _ = done
    model = checkpoint.load_model(workdir / RECURRENT, TransformerLM)
    slide = checkpoint.load_model(workdir / WINDOWED, TransformerLM)
    assert model.config == smoke().model
    assert slide.config.depth == model.config.depth + 1 and not slide.config.recurrent_layers


def test_a_dry_run_describes_both_models_and_makes_no_workdir(call, tmp_path):
    workdir = tmp_path / "w"
    argv = (SMOKE, TEXT_ONLY, "--config.train.batch_size=8", "--dry_run")
    code, out, err = call(*argv, f"--workdir={workdir}")
    assert (code, err) == (0, "") and not workdir.exists()
    lines = out.splitlines()
    assert "train.batch_size = 8" in lines and "sliding_window:" in lines
    assert "  steps: 4, 2,048 tokens" in lines
    assert sum(line.startswith("  parameters: ") for line in lines) == 2


def test_a_sample_with_flags_of_several_hosts_is_refused(call, done):
    code, out, err = call(f"--workdir={done[0]}", "--sample=a", "--coordinator=h:1")
    assert code == 2 and not out
    assert "--coordinator is for training; --sample runs in one process: leave it off" in err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["data.source=text:/nowhere"], "'/nowhere' does not exist"),
        (["data.source=stdlb"], "did you mean 'stdlib'?"),
        (["data.tokenizer=byte"], "did you mean 'bytes'?"),
        (["data.segment_length=100"], "nearest: 96, 112"),
        (["data.held_out_rate=2"], "held_out_rate=2.0; expected a fraction between 0 and 1"),
        (["model.vocab_size=100"], "100 is below the 260 ids of tokenizer 'bytes'; set --config"),
        (["model.recurrent_layers=3"], "recurrent_layers holds 3, but depth=1"),
        (["train.optimiser.name=sgd"], "did you mean 'optimizer'?"),
    ],
)
def test_what_is_wrong_gives_one_line_and_code_2(call, tmp_path, fields, words):
    # This process has eight devices, over which the rows are spread.
    argv = (f"--config.{field}" for field in ("train.batch_size=8", *fields))
    code, _, err = call(SMOKE, TEXT_ONLY, f"--workdir={tmp_path / 'w'}", *argv)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_folder_of_text_that_is_not_utf8_trains(tmp_path, experiment):
    rng = np.random.default_rng(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_bytes("schön war es, ".encode() * (20 + 5 * i))
    for i in range(2):
        (folder / f"latin{i}.txt").write_bytes("schön".encode("latin-1") + rng.bytes(300))
    process = experiment(
        SMOKE,
        TEXT_ONLY,
        f"--config.data.source=text:{folder}",
        "--config.data.held_out_rate=0.3",
        f"--workdir={tmp_path / 'w'}",
    )
    assert process.returncode == 0, process.stderr
    told = [line for line in process.stdout.splitlines() if "is not UTF-8" in line]
    assert len(told) == 1 and told[0].startswith("latin")
    assert "4 documents of text:" in process.stdout and "2 others are held out" in process.stdout


KILLED = """
import os, runpy, signal, sys
from jaxlab.checkpoint import Checkpoints
from jaxlab.train import Step

save, step, calls = Checkpoints.save, Step.__call__, []

def save_to_disk(self, state, *args):
    save(self, state, *args)
    self.wait()

def step_or_die(self, state, batch):
    calls.append(1)
    if len(calls) == 24:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, state, batch)

Checkpoints.save, Step.__call__ = save_to_disk, step_or_die
sys.argv = ["experiments.block_recurrent", *sys.argv[1:]]
runpy.run_module("experiments.block_recurrent", run_name="__main__")
"""


def test_a_run_killed_after_a_checkpoint_ends_as_if_it_had_not_been(tmp_path, experiment, python):
    forty = (
        SMOKE,
        TEXT_ONLY,
        "--config.train.steps=40",
        "--config.train.log_every=7",
        "--config.train.save_every=20",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert experiment(*forty, f"--workdir={whole}").returncode == 0
    killed = python("-c", KILLED, *forty, f"--workdir={broken}")
    assert killed.returncode == -9, killed.stderr
    assert [p.name for p in (broken / RECURRENT / "checkpoints").iterdir()] == ["20"]
    resumed = experiment(*forty, f"--workdir={broken}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{RECURRENT}: step 22/40" in resumed.stderr
    assert f"{RECURRENT}: step 20/40" not in resumed.stderr
    for folder in (RECURRENT, WINDOWED):
        ours, theirs = (checkpoint.restore_params(w / folder) for w in (whole, broken))
        assert ours.keys() == theirs.keys()
        for path in ours:
            assert np.array_equal(ours[path], theirs[path]), path
        ours, theirs = (lines_of(w / folder / "metrics.jsonl") for w in (whole, broken))
        assert ours == theirs
    ours, theirs = (numbers_of(w) for w in (whole, broken))
    assert ours == theirs
    samples = {(w / "sample.txt").read_text() for w in (whole, broken)}
    assert len(samples) == 1


def lines_of(path: pathlib.Path) -> list[dict]:
    """Metrics without times."""
    return [{k: v for k, v in row.items() if "time/" not in k} for row in read_metrics(path)]


def numbers_of(workdir: pathlib.Path) -> dict:
    """Numbers of the results without times."""
    numbers = study.values_of(json.loads((workdir / "results.json").read_text())["numbers"])
    return {name: group for name, group in numbers.items() if not name.startswith("time/")}
