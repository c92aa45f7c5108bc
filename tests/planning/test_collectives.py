"""What the compiled step sends between devices, read from its text, and what it keeps where.

One `all-reduce` of the text may carry many arrays; a CPU has no `reduce-scatter` and reduces whole
gradients of which each device keeps its part.
"""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxlab import train
from jaxlab.core import RULES, MeshConfig, UsageError, make_mesh
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token

ROWS, T = 32, 16
CONFIG = TransformerLMConfig(
    vocab_size=64,
    vocab_multiple=1,
    width=64,
    depth=3,
    num_heads=4,
    mlp_dim=256,
    window=None,
    position="none",
    normalise=False,
    scan_layers=True,
    remat=True,
    dtype="float32",
)
SHAPES = {
    name: jax.ShapeDtypeStruct((ROWS, T), kind)
    for name, kind in {"inputs": int, "targets": int, "mask": bool, "start": bool}.items()
}


@functools.cache
def step_of(accumulate, reduce_once=False, devices=8, **sizes):
    """The plan and the compiled step of a scanned model."""
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
    optimizer = optax.adam(1e-3)
    plan = train.plan_state(
        lambda rngs: TransformerLM(CONFIG, rngs=rngs),
        optimizer,
        key=0,
        mesh=mesh,
        strict=True,
        carry=lambda: {"length": jnp.zeros(ROWS, int), "blocks": {str(i): {} for i in range(3)}},
    ).with_metrics(("accuracy", "grad_norm", "loss"))
    step = train.make_step(
        plan.view, next_token, optimizer, mesh=mesh, accumulate=accumulate, reduce_once=reduce_once
    )
    return plan, step.lower(plan.abstract, SHAPES).compile()


def collectives(compiled, kind):
    """(name of the computation, shapes of the results) of every such operation in the text."""
    found, inside = [], ""
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and " (" in line:
            inside = line.split()[1] if line.startswith("ENTRY") else line.split()[0]
        match = re.search(rf"= (.*?) {kind}(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"[a-z]+\d*\[([\d,]*)\]", match[1])
            found.append((inside, [tuple(map(int, s.split(","))) if s else () for s in shapes]))
    return found


def floats(shapes):
    return sum(math.prod(shape) for shape in shapes)


def arrays(shapes):
    return sorted(shape for shape in shapes if shape != ())


def entry(compiled):
    return re.search(r"^ENTRY (\S+)", compiled.as_text(), re.M)[1]


def temporaries(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def test_data_parallelism_sends_every_gradient_once():
    plan, compiled = step_of(1, data=8)
    sent = 0
    for inside, shapes in collectives(compiled, "all-reduce"):
        turns = 1 if inside == entry(compiled) else CONFIG.depth  # a layer in each turn of the scan
        sent += turns * floats(shapes)
    table = plan.view.params["embedding/embedding"].size  # used, and reduced, twice: it is tied
    scalars = 20
    assert plan.view.num_params + table <= sent < plan.view.num_params + table + scalars
    assert collectives(compiled, "all-gather") == collectives(compiled, "all-to-all") == []


@pytest.mark.parametrize("accumulate", [1, 4])
def test_reduce_once_is_one_operation_behind_all_layers_and_micro_batches(accumulate):
    plan, compiled = step_of(accumulate, reduce_once=True, data=8)
    ((inside, shapes),) = collectives(compiled, "all-reduce")
    assert inside == entry(compiled)
    assert arrays(shapes) == sorted(p.shape for p in plan.view.params.values())


def test_reduce_once_sends_only_shards_between_copies_that_are_sharded():
    plan, compiled = step_of(4, reduce_once=True, data=2, fsdp=4)
    last = [
        shapes
        for inside, shapes in collectives(compiled, "all-reduce")
        if inside == entry(compiled)
    ]
    shards = [p.sharding.shard_shape(p.shape) for p in plan.abstract.params.values()]
    assert sorted(shape for shapes in last for shape in arrays(shapes)) == sorted(shards)


def test_gradients_are_accumulated_in_place_and_in_shards():
    plan, four = step_of(4, fsdp=8, data=1)
    params = [p for path, p in plan.abstract.params.items() if "/mlp/" in path]
    whole = {p.shape for p in params} | {(CONFIG.depth, *p.shape) for p in params}
    loops = [line for line in four.as_text().splitlines() if re.search(r" while\(", line)]
    carried = {
        tuple(map(int, dims.split(",")))
        for line in loops
        for dims in re.findall(r"f32\[([\d,]+)\]", line.split(" while(")[0])
    }
    assert {p.sharding.shard_shape(p.shape) for p in params} <= carried
    assert not whole & carried
    # More micro-batches of the same size: not a byte more for the gradients.
    (_, once), (_, plain) = step_of(4, data=8), step_of(1, data=8)
    held = 4 * plan.view.num_params
    assert temporaries(once) - temporaries(plain) <= held
    assert temporaries(four) < temporaries(once) / 2


def test_state_and_peak_memory_fall_with_the_number_of_devices():
    (plan, one), (_, eight) = step_of(1, devices=1), step_of(1, fsdp=8, data=1)
    state = one.memory_analysis().alias_size_in_bytes / eight.memory_analysis().alias_size_in_bytes
    assert 7.9 < state <= 8
    for kind in ("mu", "nu"):
        for path, moment in getattr(plan.abstract.opt_state[0], kind).items():
            assert moment.sharding == plan.abstract.params[path].sharding
    peaks = [
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        for memory in (one.memory_analysis(), eight.memory_analysis())
    ]
    assert peaks[0] > 4 * peaks[1]  # a model so small has layers as large as its state


def test_parameters_are_gathered_a_layer_at_a_time():
    plan, compiled = step_of(1, fsdp=8, data=1)
    kernels = {p.shape for path, p in plan.view.params.items() if "/kernel" in path}
    # The shape of an array tells whether it is a kernel of a layer.
    outside = {p.shape for path, p in plan.view.params.items() if "blocks/" not in path}
    assert not kernels & outside
    found = {True: set(), False: set()}
    for inside, shapes in collectives(compiled, "all-gather"):
        found[inside == entry(compiled)].update(shapes)
    assert kernels <= found[False]  # in the turns of the scans
    assert not kernels & found[True]
    largest = max(map(math.prod, kernels))
    assert max(math.prod(shape) for shape in found[True] | found[False]) == largest


def test_reduce_once_refuses_parameters_that_lie_over_data():
    rules = tuple((name, ("data",) if name == "embed" else axes) for name, axes in RULES)
    mesh, optimizer = make_mesh(MeshConfig(data=8), jax.devices()[:8]), optax.sgd(0.1)
    plan = train.plan_state(
        lambda rngs: TransformerLM(CONFIG, rngs=rngs), optimizer, key=0, mesh=mesh, rules=rules
    )
    step = train.make_step(
        plan.view, next_token, optimizer, mesh=mesh, rules=rules, reduce_once=True
    )
    with pytest.raises(UsageError, match="data, but 'blocks/.*shard parameters") as error:
        step.lower(plan.abstract, SHAPES)
    assert "\n" not in str(error.value)
