"""Plans of steps: memory and FLOPs against independent counts, time and cost by hand."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxlab import core, models, planning, train
from jaxlab.core import MeshConfig, UsageError, View, chip
from jaxlab.objectives import next_token
from jaxlab.planning.collectives import Collective
from jaxlab.planning.pods import tpu_pod, virtual_pod
from jaxlab.planning.step_cost import StepCost, bounds, cost_lines, step_cost

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = models.TransformerLMConfig(
    vocab_size=96,
    vocab_multiple=1,
    width=64,
    depth=2,
    num_heads=4,
    mlp_dim=256,
    window=16,
    dtype="float32",
)
ROWS, LENGTH = 8, 32


def planned(mesh, model=MODEL, optimizer="adamw"):
    """Step, plan and batch of a small model."""

    def build(rngs):
        return models.TransformerLM(model, rngs=rngs)

    view = View.abstract(lambda: build(nnx.Rngs(0)))
    chosen = train.build_optimizer(train.OptimizerConfig(optimizer), 10)
    carry = functools.partial(view.apply, view.params, ROWS, method="init_carry")
    plan = train.plan_state(build, chosen, key=0, mesh=mesh, carry=carry)
    types = {"inputs": jnp.int32, "targets": jnp.int32, "mask": jnp.bool_, "start": jnp.bool_}
    batch = {k: jax.ShapeDtypeStruct((ROWS, LENGTH), dtype) for k, dtype in types.items()}
    names = train.metric_names(plan.view, next_token, batch, plan.abstract.carry)
    step = train.make_step(plan.view, next_token, chosen, mesh=mesh)
    return step, plan.with_metrics(names), batch


def cost_of(step, plan, batch, mesh):
    return step_cost(lambda: step.lower(plan.abstract, batch), plan.abstract.params, mesh)


def parts_of(plan):
    state = plan.abstract
    return {"parameters": state.params, "optimizer": state.opt_state, "carry": state.carry}


@pytest.fixture(scope="module")
def alone():
    """The cost of a step on one device, and its plan."""
    mesh = core.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step, plan, batch = planned(mesh)
    return cost_of(step, plan, batch, mesh), plan


def test_flops_are_those_of_the_products_of_the_model(alone):
    cost, _ = alone
    tokens, w, f, v = ROWS * LENGTH, MODEL.width, MODEL.mlp_dim, MODEL.vocab_size
    dense = MODEL.depth * (4 * w * w + 2 * w * f) + w * v
    # Attention: a query meets the keys of one to two windows in two products of 2 FLOPs, forward
    # once, backward twice; what is computed again for the backward pass is one or two products.
    attention = MODEL.depth * w * MODEL.window
    least = 6 * tokens * dense + 12 * tokens * attention
    most = 6 * tokens * dense + 16 * tokens * 2 * attention
    assert least <= cost.flops <= most
    assert cost.unknown_loops == 0 and not cost.collectives


def test_memory_is_that_of_the_state_and_more(alone):
    cost, plan = alone
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plan.abstract.params))
    assert cost.gradients == state == 4 * plan.view.num_params
    moments = 2 * state
    carry = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plan.abstract.carry))
    batch = ROWS * LENGTH * (4 + 4 + 1 + 1)
    assert cost.arguments == pytest.approx(state + moments + carry + batch, rel=0.01)
    assert cost.temporaries > cost.gradients


def test_the_state_of_eight_devices_is_an_eighth_under_fsdp(alone):
    mesh = core.make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8])
    step, plan, batch = planned(mesh)
    cost = cost_of(step, plan, batch, mesh)
    assert cost.arguments < alone[0].arguments / 7
    assert cost.flops < alone[0].flops / 7
    gathered = sum(c.payload for c in cost.collectives if c.kind == "all-gather")
    assert gathered >= alone[0].gradients / 2
    assert all(c.axes == ("fsdp",) for c in cost.collectives)


def all_reduce(group, span, sent):
    """One operation in which every device sends so many bytes."""
    payload = sent * group / (2 * (group - 1))
    return Collective("all-reduce", ("data",), group, span, 1, payload, sent)


def made_up(**changed):
    fields = {
        "arguments": 3 << 30,
        "temporaries": 2 << 30,
        "outputs": 0,
        "gradients": 1 << 30,
        "flops": 197e12 * 0.5,
        "traffic": 819e9 * 0.1,
        "collectives": (all_reduce(4, 4, 200e9 * 0.2),),
        "unknown_loops": 0,
        "optimal_seconds": None,
        "compile_seconds": 1.0,
    }
    return StepCost(**fields | changed)


def test_the_slowest_of_three_bounds_a_step():
    assert bounds(made_up(), chip("v5e"), 1.0) == pytest.approx(
        {"products": 0.5, "memory": 0.1, "links": 0.2}
    )
    # A device that is half a chip has half of everything.
    halves = bounds(made_up(), chip("v5e"), 0.5)
    assert halves["products"] == pytest.approx(1.0)
    # Of four halves two chips are left to send: payload * 2 * (2 - 1) / 2, over whole links.
    assert halves["links"] == pytest.approx(0.2 * 4 / 6)


def test_groups_beyond_a_server_send_over_its_network():
    rows = (
        all_reduce(8, 8, 450e9 * 0.3),
        # One GPU of each of eight servers.
        all_reduce(8, 57, 50e9 * 0.7),
    )
    found = bounds(made_up(collectives=rows), chip("H100"), 1.0)
    assert found["links"] == pytest.approx(0.3) and found["network"] == pytest.approx(0.7)


def test_days_and_cost_follow_from_the_bound(alone):
    pod = planning.Pod("8 of them", tuple(jax.devices()[:8]), chip("v5e"), 8, price=1.5)
    lines = cost_lines(made_up(), parts_of(alone[1]), pod, steps=172_800, tokens_per_step=1000)
    text = "\n".join(lines)
    assert "at least 500 ms, 2,000 tokens/s, bound by products" in text
    assert "172,800 steps take at least 1 days, 288 at 1.5 a chip-hour" in text
    assert "peak a device: 5,120.0 MiB, fits in the 16,384.0 MiB of v5e" in text
    assert "all-reduce over data (4 devices), 1 a step" in text
    apart = made_up(collectives=(all_reduce(4, 4, 8 << 20), all_reduce(4, 9, 4 << 20)))
    lines = cost_lines(apart, parts_of(alone[1]), pod, steps=1, tokens_per_step=None)
    assert "collective: all-reduce over data (4 devices), 2 a step, 8.0 MiB, 12.0 MiB sent" in lines
    tight = cost_lines(
        made_up(temporaries=14 << 30), parts_of(alone[1]), pod, steps=1, tokens_per_step=None
    )
    assert any("DOES NOT FIT" in line for line in tight)


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5ee:2x2", "chips: v4, v5e, v5p, v6e; did you mean 'v5e'"),
        ("v5e", "it takes CHIP:LAYOUT"),
        ("v5e:2", "it takes CHIP:LAYOUT"),
    ],
)
def test_topologies_that_there_are_not_are_named(topology, words):
    with pytest.raises(UsageError, match=words):
        tpu_pod(topology)


def test_chips_that_there_are_not_are_named():
    with pytest.raises(UsageError, match="unknown chip 'h10'.*did you mean 'h100'"):
        virtual_pod(8, "h10")


@pytest.fixture
def dry_run(python):
    """The command line in a process of its own, which trains nothing."""
    config = "--config=configs/block_recurrent.py:smoke"
    return functools.partial(python, "-m", "experiments.block_recurrent", config, "--dry_run")


def test_the_smoke_step_compiles_for_a_tpu_topology(dry_run):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; `make test` installs it")
    text = ("--config.include_recall=false", "--config.train.batch_size=4")
    process = dry_run("--topology=v5e:2x2", "--price=1", *text)
    assert process.returncode == 0, process.stderr
    out = process.stdout
    assert "compiled for v5e:2x2: 4 chips, 4 devices" in out
    assert "fits in the 16,384.0 MiB of v5e" in out
    assert "collective: all-reduce over data (4 devices)" in out
    assert "a step takes at least" in out and "a chip-hour" in out
    assert not process.stderr
    wrong = dry_run("--topology=v5e:3x5")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "--topology=v5e:3x5 is not one of v5e" in wrong.stderr


@pytest.fixture
def benchmark(python):
    """`benchmarks.tpu_attention` of the smoke test's model."""
    return functools.partial(python, "-m", "benchmarks.tpu_attention", "--row=smoke")


def test_the_benchmark_of_attention_kernels_tells_what_the_compiler_plans(benchmark):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; `make test` installs it")
    process = benchmark("--topology=v5e:2x2", "--batch_size=4", "--backends", "plain", "pallas")
    assert process.returncode == 2, process.stderr
    found = json.loads(process.stdout)
    assert found["backend"] == "plain" and found["devices"] == 4 and found["kernel_flops"] == 0
    assert 0 < found["arguments"] < found["peak"] and found["bytes_accessed"] > 0
    assert {each["kind"] for each in found["collectives"]} == {"all-reduce"}
    assert "error: window=16 is not a multiple of 128" in process.stderr


def test_without_the_tpu_compiler_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UsageError, match=r"pip install 'jax\[tpu\]'"):
        tpu_pod("v5e:2x2")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices=4096"], "at most 2048 virtual devices"),
        (["--hardware=H100"], "--hardware and --price need --devices=N or --topology"),
        (["--topology=v5e:2x2", "--devices=4"], "--topology names chips and their number"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, words, dry_run):
    process = dry_run(*flags)
    assert process.returncode == 2 and words in process.stderr
