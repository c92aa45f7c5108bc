"""The study of sparsity and robustness, from the command line to its claims."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest

from configs.sparsity_robustness import VARIANTS, Config, DataConfig, Stress, mnist, tiny
from experiments import sparsity_robustness as script
from jaxlab import checkpoint, sparsity, study
from jaxlab.core import UsageError
from jaxlab.study.training import use_dry_run

SMOKE = "--config=configs/sparsity_robustness.py:smoke"


@pytest.fixture(scope="module")
def experiment(python):
    """The command line in a process of its own."""
    return functools.partial(python, "-m", "experiments.sparsity_robustness")


@pytest.fixture(scope="module")
def done(tmp_path_factory, experiment):
    workdir = tmp_path_factory.mktemp("sparsity")
    return workdir, experiment(SMOKE, f"--workdir={workdir}")


def test_a_run_leaves_the_files_of_the_contract_and_numbers_with_their_command(done):
    workdir, process = done
    assert process.returncode == 0, process.stderr
    found = json.loads((workdir / "results.json").read_text())
    assert (found["experiment"], found["variant"]) == ("sparsity_robustness", "smoke")
    assert "2206.10915" in found["paper"]
    numbers = study.values_of(found["numbers"])
    nets = numbers["nets/width"]
    assert {"dense", "wide_erk_0.3", "falling_1", "falling_0.3", "deep_2", "skips_2"} == set(nets)
    for test in script.TESTS:
        assert (workdir / "figures" / f"{test}_density.png").is_file()
        assert (workdir / "figures" / f"{test}_depth.png").is_file()
        by_seed = numbers[f"{test}/accuracy_by_seed"]
        for name, (mean, *ends) in numbers[f"{test}/accuracy"].items():
            assert [mean] == pytest.approx(by_seed[name]) and 0 <= mean <= 1
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
        assert kept == numbers["nets/kept_weights"][name]


def test_a_complete_workdir_is_only_drawn_again(done, experiment):
    workdir, _ = done
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.jsonl")}
    results = (workdir / "results.json").read_bytes()
    (workdir / "figures" / "pgd_density.png").unlink()
    process = experiment(SMOKE, f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    assert (workdir / "figures" / "pgd_density.png").is_file()
    assert results == (workdir / "results.json").read_bytes()
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.jsonl")}


def test_wide_and_deep_nets_have_the_weights_of_the_dense_one():
    nets = {net.name: net for net in script.trainings(tiny())}
    capacity = 64 * 32 + 32 * 32 + 32 * 10
    for name, net in nets.items():
        size = sum(math.prod(net.params[p].shape) for p in sparsity.prunable(net.params))
        masks = net.interventions
        kept = sum(masks[0].counts(net.params).values()) if masks else size
        if net.group != script.FALLING:
            assert kept == capacity
        if net.group.startswith(script.WIDER):
            assert net.x == pytest.approx(kept / size)
            assert net.x == pytest.approx(float(name.rpartition("_")[2]), rel=0.1)
    assert nets["skips_4"].model.residual and not nets["deep_4"].model.residual


def test_the_variant_of_the_known_widths_has_them():
    with use_dry_run():
        nets = script.trainings(mnist())
    widths = [net.model.width for net in nets if net.group == f"{script.WIDER}, erk"]
    assert sparsity.num_weights(nets[0].params) == 26_432
    np.testing.assert_allclose(widths, [64, 128, 256, 512, 1024], rtol=0.1)


def accuracy(**shifts):
    """Rows of three seeds of every net, equal but for `{net: {test: difference}}`."""
    rng = np.random.default_rng(0)
    noise = 0.001 * rng.normal(size=3)
    tests = list(script.TESTS)
    rows = {
        name: [
            {
                f"{t}/accuracy": 0.5 + noise[seed] + of.get(t, 0.0) + 0.0001 * rng.normal()
                for t in tests
            }
            for seed in range(3)
        ]
        for name, of in shifts.items()
    }
    return study.Rows(rows)


def test_claims_hold_where_the_numbers_say_so_and_not_elsewhere():
    config = tiny()
    nets = script.trainings(config)
    gain = {"corruption": 0.1, "pgd": 0.1, "relative": 0.1}
    loss = {test: -0.2 for test in script.TESTS}
    shifts = dict.fromkeys((net.name for net in nets), {}) | {
        "wide_erk_0.05": gain,
        "falling_0.005": loss,
        "falling_0.03": loss,
    }
    claims = script.claims_of(config, nets, accuracy(**shifts))
    assert len(claims) == 3 * 4 + 1 + 3  # width, depth, depth with skips; lost capacity
    assert [c.holds for c in claims[:4]] == [True] * 4
    assert [c.holds for c in claims[4:8]] == [True, False, False, False]
    assert [c.holds for c in claims[12:]] == [True] * 4
    worse = shifts | {"wide_erk_0.05": loss, "falling_0.005": {}, "falling_0.03": {}}
    claims = script.claims_of(config, nets, accuracy(**worse))
    assert not any(c.holds for c in (*claims[:4], *claims[12:]))


def test_intervals_over_seeds_lie_around_their_mean():
    nets = script.trainings(VARIANTS["smoke"]())
    rows = accuracy(**dict.fromkeys((net.name for net in nets), {}))
    numbers = study.numbers_of(nets, rows, baseline="dense")
    for test in script.TESTS:
        for name, (mean, low, high) in numbers[f"{test}/accuracy"].items():
            assert mean == pytest.approx(np.mean(numbers[f"{test}/accuracy_by_seed"][name]))
            assert low < mean < high
    assert set(script.figures_of(numbers, "pgd", "PGD")) == {"pgd_density", "pgd_depth"}


def test_a_dry_run_plans_the_dense_and_the_largest_net():
    lines = "\n".join(study.describe(script.trainings(tiny())))
    assert "21 trainings, of these two:\ndense:" in lines
    assert lines.count("parameters:") == 2 and "kept weights:" in lines


def test_sets_that_are_not_there_are_planned_for(monkeypatch):
    config = VARIANTS["cifar10"]()
    monkeypatch.setattr(DataConfig, "open", lambda self: pytest.fail("opened"))
    with use_dry_run():
        lines = study.describe(script.trainings(config))
    assert "dense:" in lines and any("kept weights" in line for line in lines)


def test_images_of_another_shape_than_told_are_refused():
    config = DataConfig(image_shape=(28, 28, 1), num_classes=10)
    with pytest.raises(UsageError, match=r"images of \(8, 8, 1\) in 10 classes.*are \(28, 28, 1\)"):
        config.open()
    with pytest.raises(UsageError, match="give both or neither"):
        DataConfig(num_classes=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(densities=(0.5, 1.0)), "densities has 1.0; expected densities"),
        (lambda: Config(densities=()), "densities or rules is empty"),
        (lambda: Config(classifier="small_cnn"), "with_skips=True needs classifier='mlp'"),
        (lambda: Config(num_seeds=0), "num_seeds=0"),
        (lambda: Stress(corruptions=("contrast/6",)), "severity=6"),
        (lambda: Stress(corruptions=("contrast",)), "severity=0"),
        (lambda: Stress(corruptions=("contrats/1",)), "contrats.*contrast"),
        (lambda: Stress(draws=0), "draws=0"),
        (lambda: Stress(eps=8), "stress.eps=8; expected 0 to 1; levels .* as 8 / 255"),
        (lambda: Stress(noise=-1.0), "stress.noise=-1; expected 0 or more"),
        (lambda: DataConfig(train="digit/train").open(), "digit"),
    ],
)
def test_configs_that_do_not_fit_end_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
