from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.sparsity import densities, kernel_shape, layer_densities, prunable

RULES = ("erk", "er", "uniform", "level")


def shapes(**kernels):
    """Abstract kernels by the names of their layers."""
    return {f"{name}/kernel": jax.ShapeDtypeStruct(s, "float32") for name, s in kernels.items()}


def mlp(width: int, *, depth: int = 2, inputs: int = 784):
    sizes = (inputs, *[width] * depth, 10)
    return shapes(**{f"Dense_{i}": sizes[i : i + 2] for i in range(depth + 1)})


def resnet20():
    """The golden net: 3x3 convolutions, those of the shortcuts included."""
    nets, fan_in = {"conv1": (3, 3, 3, 16)}, 16
    for group, width in enumerate((16, 32, 64)):
        for block in range(3):
            name = f"blockgroups_{group}/blocks_{block}"
            nets[f"{name}/conv1"] = (3, 3, fan_in, width)
            nets[f"{name}/conv2"] = (3, 3, width, width)
            if fan_in != width:
                nets[f"{name}/shortcut/layers_0"] = (3, 3, fan_in, width)
            fan_in = width
    return shapes(**nets, dense=(64, 10))


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "golden_sparsity.json").read_text())


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize(
    ("name", "net"), [("mlp784-512-512-10", mlp(512)), ("resnet20", resnet20())]
)
def test_erk_is_that_of_the_reference(golden, name, net, sparsity):
    wanted = golden[f"{name}/erk/{sparsity}"]
    size, total = golden[f"{name}/erk/{sparsity}/_total"]
    found = layer_densities(net, 1 - sparsity)
    assert found.keys() == wanted.keys()
    for path, sparse in wanted.items():
        assert 1 - found[path] == pytest.approx(sparse, abs=1e-6), path
    counts = densities(net, 1 - sparsity)
    assert sum(counts.values()) == round(total)
    assert sum(math.prod(p.shape) for p in net.values()) == size
    for path, count in counts.items():
        assert abs(count - found[path] * math.prod(net[path].shape)) < 1, path


@pytest.mark.parametrize("width", [32, 64, 128, 256, 512, 1024, 2048])
def test_level_is_that_of_the_reference_and_hands_out_the_rest(golden, width):
    wanted = golden[f"mlp base32 width{width}/cap"]
    net = mlp(width)
    found = list(densities(net, total=wanted["target"], rule="level").values())
    largest = int(np.argmax([math.prod(p.shape) for p in net.values()]))
    handed_out = wanted["target"] - wanted["sum"]
    assert [n - handed_out * (i == largest) for i, n in enumerate(found)] == wanted["nnz"]
    uniform = layer_densities(net, total=wanted["target"], rule="uniform")
    share = golden[f"mlp base32 width{width}/uniform_density"]
    assert list(uniform.values()) == pytest.approx([share] * 3, abs=1e-6)


def random_net(rng):
    return shapes(
        **{
            f"n{i}": tuple(int(s) for s in rng.integers(1, 9, size=rng.choice([2, 2, 4])))
            for i in range(int(rng.integers(1, 12)))
        }
    )


@pytest.mark.parametrize("rule", RULES)
def test_counts_sum_up_to_any_total_and_stay_in_their_bounds(rule):
    rng = np.random.default_rng(0)
    for _ in range(60):
        net = random_net(rng)
        sizes = {path: math.prod(p.shape) for path, p in net.items()}
        total = int(rng.integers(len(net), sum(sizes.values()) + 1))
        counts = densities(net, total=total, rule=rule, allow_empty_units=True)
        assert sum(counts.values()) == total
        assert all(1 <= counts[path] <= sizes[path] for path in sizes)


@pytest.mark.parametrize("rule", RULES)
def test_density_one_is_dense(rule):
    net = resnet20()
    assert densities(net, 1, rule) == {path: math.prod(p.shape) for path, p in net.items()}


def test_a_density_keeps_what_the_formula_says_in_decimals():
    # 1 - .98 is .020000000000000018, and .1 * 3 * 10 is above 3, in floats.
    assert sum(densities(shapes(a=(50, 100)), 1 - 0.98).values()) == 100
    assert sum(densities(shapes(a=(10, 10), b=(3, 10)), 0.1, allow_empty_units=True).values()) == 13


def test_equal_kernels_differ_by_one_weight_and_the_first_has_it():
    net = shapes(a2=(4, 5), a10=(4, 5), a1=(4, 5))
    assert densities(net, total=31) == {"a1/kernel": 11, "a2/kernel": 10, "a10/kernel": 10}


def test_er_knows_no_window_and_erk_does():
    net = shapes(conv=(3, 3, 4, 8), dense=(16, 16))
    er, erk = (layer_densities(net, 0.1, rule) for rule in ("er", "erk"))
    raw = lambda a, b: (a + b) / (a * b)  # noqa: E731
    assert er["conv/kernel"] / er["dense/kernel"] == pytest.approx(raw(4, 8) / raw(16, 16))
    ratio = ((3 + 3 + 4 + 8) / 288) / raw(16, 16)
    assert erk["conv/kernel"] / erk["dense/kernel"] == pytest.approx(ratio)


def test_kernels_of_attention_are_matrices():
    assert kernel_shape("blocks/0/attention/query/kernel", (64, 4, 16)) == (64, 64)
    assert kernel_shape("attention/output/kernel", (4, 16, 32)) == (64, 32)
    assert kernel_shape("out/kernel", (4, 16, 32)) == (64, 32)
    assert kernel_shape("conv/kernel", (5, 3, 8)) == (5, 3, 8)
    three = shapes(query=(64, 4, 16), out=(4, 16, 64), dense=(64, 256))
    two = shapes(query=(64, 64), out=(64, 64), dense=(64, 256))
    for rule in RULES:
        assert densities(three, 0.2, rule) == densities(two, 0.2, rule)


def test_only_kernels_of_rank_two_and_more_are_prunable():
    net = {
        "embed/embedding": (9, 4),
        "position": (16, 4),
        "block/kernel": (4, 4),
        "norm/scale": (4,),
        "block/bias": (4,),
        "gain/kernel": (4,),
        "conv/kernel": (3, 3, 4, 4),
    }
    net = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in net.items()}
    assert prunable(net) == ("block/kernel", "conv/kernel")
    assert prunable(net, ["embed/*", "block*"]) == ("block/kernel", "embed/embedding")
    assert list(densities(net, 0.5, patterns=["conv/*"])) == ["conv/kernel"]


def test_a_density_of_its_own_is_left_out_of_the_total():
    net = mlp(64)
    rest = {path: p for path, p in net.items() if path != "Dense_0/kernel"}
    for rule in RULES:
        counts = densities(net, 0.2, rule, own={"*_0/*": 0.5})
        assert counts.pop("Dense_0/kernel") == 784 * 64 // 2
        assert counts == densities(rest, 0.2, rule)
    counts = densities(net, total=28_000, own={"*_0/*": 0.5})
    assert sum(counts.values()) == 28_000 and counts["Dense_0/kernel"] == 784 * 64 // 2


def test_a_rule_may_be_densities_by_pattern():
    net = mlp(64)
    assert densities(net, 0.2, {"*_2/*": 1.0}) == densities(net, 0.2, "uniform", own={"*_2/*": 1.0})
    by_path = densities(net, rule={"*_0/*": 0.25, "*_1/*": 0.5, "*": 1})
    assert list(by_path.values()) == [784 * 16, 64 * 32, 640]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"density": 0}, "density=0; it takes a fraction of the weights above 0, up to 1"),
        ({"density": -0.1}, "density=-0.1; it takes"),
        ({"density": 1.5}, "density=1.5; it takes"),
        ({"density": float("nan")}, "density=nan; it takes"),
        ({}, "density=None and total=None; give exactly one"),
        ({"density": 0.5, "total": 9}, "density=0.5 and total=9; give exactly one"),
        ({"total": 2}, r"total=2; the kernels take an integer from 3 \(one weight each\)"),
        ({"total": 10**9}, "to 54,912"),
        ({"density": 0.5, "rule": "erks"}, "rule='erks'; did you mean 'erk'"),
        ({"density": 0.5, "own": {"Dens_1/*": 1}}, "pattern 'Dens_1/.*' matches no kernel"),
        ({"density": 0.5, "patterns": ["*/kernal"]}, "matches no parameter of rank two or more"),
        (
            {"density": 0.001, "rule": "uniform"},
            "'Dense_0/kernel' of 50,176 weights would keep 52, fewer than one for each of its 64 ",
        ),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        densities(mlp(64), **arguments)
