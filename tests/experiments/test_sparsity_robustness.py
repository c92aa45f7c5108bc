"""The study of sparsity and robustness, from the command line to its claims."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from configs.sparsity_robustness import VARIANTS, Config, DataConfig, StressConfig, mnist, tiny
from experiments import sparsity_robustness as script
from jaxlab import checkpoint, data, sparsity, study
from jaxlab.core import UsageError, View

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = "--config=configs/sparsity_robustness.py:smoke"


def experiment(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One device, as a laptop has, and programs that compile fast and run slowly.
    flags = {"XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "experiments.sparsity_robustness", *arguments],
        cwd=ROOT,
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sparsity")
    return workdir, experiment(SMOKE, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def digits():
    return data.digits("train")


def test_a_run_leaves_the_files_of_the_contract_and_numbers_with_their_command(done):
    workdir, process = done
    assert process.returncode == 0, process.stderr
    found = json.loads((workdir / "results.json").read_text())
    assert (found["experiment"], found["variant"]) == ("sparsity_robustness", "smoke")
    assert "2206.10915" in found["paper"]
    numbers = study.values_of(found["numbers"])
    nets = numbers["nets"]
    assert {"dense", "wide_erk_0.3", "falling_1", "falling_0.3", "deep_2", "skips_2"} == set(nets)
    for test in script.TESTS:
        assert (workdir / "figures" / f"{test}_density.png").is_file()
        assert (workdir / "figures" / f"{test}_depth.png").is_file()
        by_seed = numbers["accuracy % by seed"][test]
        for name, (mean, *ends) in numbers["accuracy %"][test].items():
            assert [mean] == pytest.approx(by_seed[name]) and 0 <= mean <= 100
            assert ends == [None, None]  # one seed has no interval
    assert (workdir / "report.html").is_file()
    text = str(found["numbers"])
    assert "--config=configs/sparsity_robustness.py:smoke" in text and str(workdir) not in text


def test_sparse_trainings_keep_their_weights_and_no_others(done):
    workdir, _ = done
    numbers = study.values_of(json.loads((workdir / "results.json").read_text())["numbers"])
    for name in ("wide_erk_0.3", "falling_0.3", "skips_2", "dense"):
        params = checkpoint.restore_params(workdir / name / "seed0")
        kept = sum(np.count_nonzero(params[path]) for path in sparsity.prunable(params))
        assert kept == numbers["nets"][name]["kept weights"]


def test_a_complete_workdir_is_only_drawn_again(done):
    workdir, _ = done
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.jsonl")}
    results = (workdir / "results.json").read_bytes()
    (workdir / "figures" / "pgd_density.png").unlink()
    process = experiment(SMOKE, f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    assert (workdir / "figures" / "pgd_density.png").is_file()
    assert results == (workdir / "results.json").read_bytes()
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.jsonl")}


def test_wide_and_deep_nets_have_the_weights_of_the_dense_one(digits):
    config = tiny()
    found = script.nets(config, digits)
    dense = found["dense"]
    assert dense.kept == dense.size == 64 * 32 + 32 * 32 + 32 * 10
    for name, net in found.items():
        view = View.abstract(lambda: net.model.build(nnx.Rngs(0)))  # noqa: B023
        size = sum(math.prod(view.params[p].shape) for p in sparsity.prunable(view.params))
        assert size == net.size
        if net.sparsity is not None:
            assert sum(net.sparsity.counts(view.params).values()) == net.kept
        if net.family != script.FALLING:
            assert net.kept == dense.kept
        if net.family.startswith(script.WIDER):
            assert net.x == pytest.approx(net.kept / net.size)
            assert net.x == pytest.approx(float(name.rpartition("_")[2]), rel=0.1)
    assert found["skips_4"].model.residual and not found["deep_4"].model.residual


def test_the_variant_of_the_known_widths_has_them():
    images = data.ImageSet(
        np.zeros((4, 28, 28, 1), np.uint8),
        np.arange(4),
        name="blank",
        class_names=[str(i) for i in range(10)],
    )
    widths = [
        net.model.width
        for net in script.nets(mnist(), images).values()
        if net.family == script.wider("erk")
    ]
    assert script.nets(mnist(), images)["dense"].size == 26_432
    np.testing.assert_allclose(widths, [64, 128, 256, 512, 1024], rtol=0.1)


def accuracy(**shifts):
    """Three seeds of every net, equal but for what is said: `{net: {test: difference}}`."""
    rng = np.random.default_rng(0)
    noise = 0.001 * rng.normal(size=3)
    tests = list(script.TESTS)
    return {
        name: [
            {t: 0.5 + noise[seed] + of.get(t, 0.0) + 0.0001 * rng.normal() for t in tests}
            for seed in range(3)
        ]
        for name, of in shifts.items()
    }


def test_claims_hold_where_the_numbers_say_so_and_not_elsewhere(digits):
    config = tiny()
    found = script.nets(config, digits)
    gain = {"corruption": 0.1, "pgd": 0.1, "relative": 0.1}
    loss = {test: -0.2 for test in script.TESTS}
    shifts = dict.fromkeys(found, {}) | {
        "wide_erk_0.05": gain,
        "falling_0.005": loss,
        "falling_0.03": loss,
    }
    claims = script.claims_of(config, found, accuracy(**shifts))
    assert len(claims) == 3 * 4 + 1 + 3  # width, depth, depth with skips; lost capacity
    assert [c.holds for c in claims[:4]] == [True] * 4
    assert [c.holds for c in claims[4:8]] == [True, False, False, False]
    assert [c.holds for c in claims[12:]] == [True] * 4
    worse = shifts | {"wide_erk_0.05": loss, "falling_0.005": {}, "falling_0.03": {}}
    claims = script.claims_of(config, found, accuracy(**worse))
    assert not any(c.holds for c in (*claims[:4], *claims[12:]))


def test_intervals_over_seeds_lie_around_their_mean(digits):
    found = script.nets(VARIANTS["smoke"](), digits)
    numbers = script.numbers_of(found, accuracy(**dict.fromkeys(found, {})), digits, digits)
    for test in script.TESTS:
        for name, (mean, low, high) in numbers["accuracy %"][test].items():
            assert mean == pytest.approx(np.mean(numbers["accuracy % by seed"][test][name]))
            assert low < mean < high
    curves = script.curves(numbers, "pgd", "PGD")
    assert set(curves) == {"density", "depth"}


def test_a_dry_run_plans_the_dense_and_the_largest_net():
    lines = "\n".join(script.plan(VARIANTS["smoke"]()))
    assert "6 nets, each trained with 1 seed(s)" in lines
    assert "density 1" not in lines and "kept weights: 312 of" in lines


def test_sets_that_are_not_there_are_planned_for(monkeypatch):
    config = VARIANTS["cifar10"]()
    monkeypatch.setattr(DataConfig, "open", lambda self: pytest.fail("opened"))
    lines = script.plan(config)
    assert "dense:" in lines and any("kept weights" in line for line in lines)


def test_images_of_another_shape_than_told_are_refused():
    config = DataConfig(image_shape=(28, 28, 1), num_classes=10)
    with pytest.raises(UsageError, match=r"images of \(8, 8, 1\) in 10 classes.*say \(28, 28, 1\)"):
        config.open()
    with pytest.raises(UsageError, match="give both, or none"):
        DataConfig(num_classes=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(densities=(0.5, 1.0)), "densities holds 1.0; expected shares"),
        (lambda: Config(densities=()), "densities and rules are empty"),
        (lambda: Config(classifier="small_cnn"), "with_skips=True is for classifier='mlp'"),
        (lambda: Config(num_seeds=0), "num_seeds=0"),
        (lambda: StressConfig(corruptions=("contrast/6",)), "severity=6"),
        (lambda: StressConfig(corruptions=("contrast",)), "severity=0"),
        (lambda: StressConfig(corruptions=("contrats/1",)), "contrats.*contrast"),
        (lambda: StressConfig(draws=0), "draws=0"),
        (lambda: StressConfig(eps=8), "stress.eps=8; expected 0 to 1; levels .* as 8 / 255"),
        (lambda: StressConfig(noise=-1.0), "stress.noise=-1; expected 0 or more"),
        (lambda: DataConfig(train="digit/train").open(), "digit"),
    ],
)
def test_configs_that_do_not_fit_end_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
