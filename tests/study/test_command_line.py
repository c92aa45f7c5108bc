from __future__ import annotations

import importlib.util
import json
import pathlib
import signal
import sys
import textwrap

import pytest

from jaxlab.core import UsageError
from jaxlab.data import image_batch_shapes
from jaxlab.models import MLPConfig
from jaxlab.objectives import classify
from jaxlab.results import Record
from jaxlab.study import Training, main
from jaxlab.study.config_files import resolve_config, split_assignments
from jaxlab.train import TrainingDiverged, TrainingInterrupted

CONFIGS = '''
from __future__ import annotations

import dataclasses

from jaxlab.train import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    train: TrainConfig = TrainConfig()


def tiny() -> Config:
    """Minutes on two cores."""
    return Config()


def paper() -> Config:
    """The paper's setting."""
    return Config(name="p")


VARIANTS = {"tiny": tiny, "paper": paper}
DEFAULT = "tiny"
'''

EXPERIMENT = '''
"""A toy study.

Claim: it runs.
"""


inner = None


def run(config, record):
    if inner is not None:
        inner(config, record)
'''


@pytest.fixture
def study(tmp_path):
    """A folder laid out like the house: the experiment's module, and its config file."""
    for folder, text in (("configs", CONFIGS), ("experiments", EXPERIMENT)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "toy.py").write_text(text)
    spec = importlib.util.spec_from_file_location("toy_study", tmp_path / "experiments" / "toy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_study"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["toy_study"]


@pytest.fixture
def config(study, tmp_path):
    return str(tmp_path / "configs" / "toy.py")


@pytest.fixture
def call(study, capsys):
    """Calls the experiment in this process: exit code, standard output, standard error."""

    def call(*argv, run=None, **kwargs):
        study.inner = run
        with pytest.raises(SystemExit) as caught:
            main(study.run, argv=argv, **kwargs)
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


def test_the_run_gets_config_and_record(call, config, tmp_path):
    seen = []
    code, _, err = call(
        "--config.train.steps=1e2",
        f"--config={config}:paper",
        "--config.sizes",
        "3,4",
        f"--workdir={tmp_path / 'w'}",
        run=lambda *args: seen.append(args),
        paper="arXiv:1",
    )
    assert (code, err) == (0, "")
    [(resolved, record)] = seen
    assert (resolved.name, resolved.train.steps, resolved.sizes) == ("p", 100, (3, 4))
    assert (record.experiment, record.variant, record.paper) == ("toy", "paper", "arXiv:1")
    stored = json.loads((tmp_path / "w" / "config.json").read_text())
    assert stored["config"]["train"]["steps"] == 100


def test_the_default_variant_is_taken(config):
    variant, resolved = resolve_config(config, {}, "")
    assert variant == "tiny" and resolved.name == "a"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--confg=x"], "unknown flag --confg; did you mean 'config'?"),
        (["--zzzzz"], "unknown flag --zzzzz; there are --config, "),
        (["{config}"], "belongs to no flag"),
        (["--dry_run=perhaps"], "flag --dry_run got 'perhaps'; it takes bool"),
        (["--devices=many"], "flag --devices got 'many'; it takes int"),
        (["--devices=0", "--config={config}"], "flag --devices got 0; it takes 1 or more"),
        (["--workdir"], "workdir"),
        (["--topology=v4:2x2x1", "--config={config}"], "--topology is for planning; add --dry_run"),
        (["--workdir=w"], "--config is missing; give --config=configs/toy.py:VARIANT"),
        (["--config={config}"], "--workdir is missing; give a folder for the run"),
        (["--config=configs/nothing.py"], "there is no file 'configs/nothing.py'"),
        (["--config={folder}/toyy.py:tiny"], "toyy.py'; did you mean 'toy.py'?"),
        (["--config={config}:tinny"], "it has tiny, paper; did you mean 'tiny'?"),
        (["--config={config}", "--config.train.step=3"], "did you mean 'steps'?"),
        (["--config={config}", "--config.train.steps=x"], "'train.steps' got 'x'; it takes int"),
        (["--config={config}", "--config.train.steps=0"], "steps=0; it takes a whole number of 1"),
        (["--config={config}", "--config.train.optimizer.name=adm"], "did you mean 'adamw'?"),
        (["--config={config}", "--config.name"], "--config.name has no value"),
        (["--config={config}", "--workdir={config}"], "is or is in a file"),
    ],
)
def test_what_is_wrong_gives_one_line_and_code_2(call, config, argv, words):
    folder = pathlib.Path(config).parent
    code, out, err = call(*(a.format(config=config, folder=folder) for a in argv))
    assert code == 2 and out == ""
    assert words in err and err.startswith("toy: ") and err.count("\n") == 1


def raising(error):
    def run(config, record):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("width=3 is odd"), 2, "toy: width=3 is odd"),
        (TrainingDiverged("loss is nan", 7, 5), 3, "loss is nan at step 7; the checkpoint of"),
        (
            TrainingInterrupted(signal.SIGINT, 4, 9),
            130,
            "step 4 of 9; everything is saved, and the same",
        ),
        (TrainingInterrupted(signal.SIGTERM, 4, 9), 75, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "the same command continues from the last checkpoint"),
    ],
)
def test_every_end_has_its_code_and_one_line(call, config, tmp_path, error, code, words):
    found, _, err = call(f"--config={config}", f"--workdir={tmp_path / 'w'}", run=raising(error))
    assert found == code and words in err and err.count("\n") == 1


def test_another_config_in_the_workdir_is_refused_unless_it_may_change(call, config, tmp_path):
    argv = (f"--config={config}", f"--workdir={tmp_path / 'w'}")
    assert call(*argv)[0] == 0
    code, _, err = call(*argv, "--config.train.steps=5")
    assert code == 2 and "train.steps: 1000 -> 5" in err
    assert call(*argv, "--config.train.steps=5", grows=("train.steps",))[0] == 0
    assert call(*argv, "--config.train.steps=5", "--config.train.log_every=7")[0] == 0


def trainings(config):
    """One small net, whose data nobody opens."""
    model = MLPConfig(image_shape=(4, 4, 1), num_classes=2, width=4)
    batch = image_batch_shapes(config.train.batch_size, model.image_shape)
    return [Training("net", model, classify, batch, raising(OSError()), config.train)]


def test_a_dry_run_prints_and_runs_nothing(call, config, tmp_path):
    code, out, _ = call(
        f"--config={config}",
        "--config.train.steps=5",
        "--dry_run",
        run=raising(AssertionError("it ran")),
        trainings=trainings,
    )
    lines = out.splitlines()
    assert code == 0 and "train.steps = 5" in lines and "train.optimizer.name = 'adamw'" in lines
    assert "net:" in lines and lines[-1].startswith("  sharding:") and "  steps: 5" in lines
    assert not (tmp_path / "w").exists()


def test_a_sample_is_drawn_from_the_workdir(call, config, tmp_path):
    seen = []
    argv = (f"--workdir={tmp_path / 'w'}", "--sample=def ", "--temperature=0.5")
    options = {
        "sample": lambda record, prompt, **values: seen.append((record, prompt, values)),
        "sample_flags": {"temperature": 1.0, "length": 64},
    }
    assert call(*argv, **options)[0] == 2
    call(f"--config={config}", argv[0])
    assert call(*argv, **options)[0] == 0
    [(record, prompt, values)] = seen
    assert isinstance(record, Record) and record.variant == "tiny"
    assert prompt == "def " and values == {"temperature": 0.5, "length": 64}
    code, _, err = call(*argv, "--length=2.5", **options)
    assert code == 2 and "flag --length got '2.5'; it takes int" in err


def test_a_flag_of_strings_is_given_several_times_with_escapes(call, config, tmp_path):
    seen = []
    options = {
        "sample": lambda record, prompt, **values: seen.append(values),
        "sample_flags": {"stop": (), "length": 64},
    }
    workdir = f"--workdir={tmp_path / 'w'}"
    call(f"--config={config}", workdir)
    argv = (r"--stop=\n\n", r"--stop=\\n, a\d", "--stop=\t\u00e9", "--stop=")
    assert call(workdir, "--sample=def ", *argv, **options)[0] == 0
    assert call(workdir, "--sample=def ", **options)[0] == 0
    first, second = seen
    assert first == {"stop": ("\n\n", "\\n, a\\d", "\t\u00e9", ""), "length": 64}
    assert second == {"stop": (), "length": 64}
    out = call("--help", **options)[1]
    assert r"--stop       For --sample; any number of times, with \n for a newline" in out


def test_help_shows_docstring_variants_and_flags(call):
    code, out, _ = call("--help")
    assert code == 0 and out.startswith("A toy study.")
    assert "tiny       Minutes on two cores." in out and "paper      The paper's setting." in out
    assert all(f"--{name}" in out for name in ("config", "workdir", "dry_run", "devices", "help"))
    assert "--sample" not in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("VARIANTS = {}", "has no VARIANTS"),
        ("def broken(:", "cannot be loaded: SyntaxError"),
        ("import no_such_package", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_broken_config_file_is_named(call, tmp_path, text, words):
    path = tmp_path / "bad.py"
    path.write_text(text)
    code, _, err = call(f"--config={path}", "--workdir=w")
    assert code == 2 and "bad.py" in err and words in err and err.count("\n") == 1


def test_a_file_without_default_asks_for_a_variant(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("VARIANTS = {'a': dict, 'b': dict}")
    with pytest.raises(UsageError, match="names no variant; give .*:X with X one of a, b"):
        resolve_config(str(path), {}, "")


def test_a_config_module_that_is_imported_already_is_not_loaded_twice(config, monkeypatch):
    spec = importlib.util.spec_from_file_location("toy_configs", config)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_configs", module)
    spec.loader.exec_module(module)
    assert type(resolve_config(config, {}, "")[1]) is module.Config


def test_values_may_hold_anything():
    found, rest = split_assignments(["--config.a.b==x=y", "-config.c", "-1", "--dry_run"])
    assert found == {"a.b": "=x=y", "c": "-1"} and rest == ["--dry_run"]


def test_virtual_devices_in_a_process_of_their_own(tmp_path, python):
    script = tmp_path / "study.py"
    script.write_text(
        textwrap.dedent("""
        import jax
        from jaxlab.study import main

        def trainings(config):
            print(f"devices: {jax.device_count()}")
            return []

        def run(config, record):
            pass

        if __name__ == "__main__":
            main(run, trainings=trainings)
    """)
    )
    (tmp_path / "c.py").write_text(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass C:\n    a: int = 1\n"
        "VARIANTS = {'x': C}\n"
    )
    done = python(
        str(script), f"--config={tmp_path / 'c.py'}:x", "--dry_run", "--devices=4", XLA_FLAGS=""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a = 1\ndevices: 4\n\n"
