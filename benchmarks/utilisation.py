"""How much of one accelerator a training step uses; one JSON object.

    python -m benchmarks.utilisation --rows=8                      # the paper's 160M parameters
    python -m benchmarks.utilisation --variant=smoke --rows=2 --steps=3

Trains the block-recurrent model of a variant of `configs/block_recurrent.py` on random tokens, on
the first device, with the state carried and the variant's optimizer, in the compute dtype of the
hardware (bfloat16 on GPUs and TPUs). Measured in one run:
* `tokens_per_s`, `step_ms`: the median step, each to its end on the device;
* `peak_flops`: what one large matrix product reaches, in the same dtype;
* `utilisation`: FLOP/s of the step's matrix products over that, those that rematerialisation
  computes again not counted (model FLOP utilisation, arXiv 2204.02311, appendix B);
* `top`: the five operations that took most of a step, from a profile, as parts of it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import glob
import gzip
import json
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from configs.block_recurrent import VARIANTS, Config
from jaxlab import train
from jaxlab.core import MeshConfig, View, make_mesh
from jaxlab.models import TransformerLM
from jaxlab.models.transformer_lm import compute_dtype
from jaxlab.objectives import next_token
from jaxlab.planning.step_cost import step_cost


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", default="paper", choices=sorted(VARIANTS))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    config = VARIANTS[arguments.variant]()
    step, plan, batch = prepared(config, arguments.rows, mesh_of(jax.devices()[0]))
    tokens = arguments.rows * config.data.segment_length
    state, seconds = plan.init(), []
    placed = random_batch(batch, config.model.vocab_size)
    for number in range(arguments.steps + 2):
        began = time.perf_counter()
        state = step(state, placed)
        jax.block_until_ready(state.step)
        seconds += [time.perf_counter() - began] if number > 1 else []
    typical = statistics.median(seconds)
    flops, dtype = model_flops(config, arguments.rows), compute_dtype(config.model.dtype)
    peak = peak_flops(dtype)
    print(
        json.dumps(
            {
                "variant": arguments.variant,
                "parameters": plan.view.num_params,
                "rows": arguments.rows,
                "segment_length": config.data.segment_length,
                "dtype": dtype.name,
                "step_ms": round(1e3 * typical, 2),
                "tokens_per_s": round(tokens / typical),
                "flops_per_step": flops,
                "peak_flops": peak,
                "utilisation": round(flops / typical / peak, 4),
                "top": top_costs(step, state, placed, typical),
                "compilations": step.num_compilations,
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
            }
        )
    )


def mesh_of(device: Any) -> Mesh:
    """A mesh of one device."""
    return make_mesh(MeshConfig(data=1), [device])


def prepared(config: Config, rows: int, mesh: Mesh) -> tuple[train.Step, train.StatePlan, Any]:
    """Step, plan and the shapes of a batch of so many rows."""

    def build(rngs: nnx.Rngs) -> TransformerLM:
        return TransformerLM(config.model, rngs=rngs)

    view = View.abstract(lambda: build(nnx.Rngs(0)))
    optimizer = train.build_optimizer(config.train.optimizer, config.train.steps)
    carry = functools.partial(view.apply, view.params, rows, method="init_carry")
    plan = train.plan_state(build, optimizer, key=0, mesh=mesh, carry=carry)
    shape = (rows, config.data.segment_length)
    types = {"inputs": jnp.int32, "targets": jnp.int32, "mask": jnp.bool_, "start": jnp.bool_}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()}
    names = train.metric_names(plan.view, next_token, batch, plan.abstract.carry)
    step = train.make_step(plan.view, next_token, optimizer, mesh=mesh)
    return step, plan.with_metrics(names), batch


def random_batch(batch: Any, vocab_size: int) -> dict[str, jax.Array]:
    """Tokens of one document."""
    shape = batch["inputs"].shape
    tokens = jax.random.randint(jax.random.key(0), shape, 0, vocab_size, jnp.int32)
    return {
        "inputs": tokens,
        "targets": tokens,
        "mask": jnp.ones(shape, bool),
        "start": jnp.zeros(shape, bool),
    }


def model_flops(config: Config, rows: int) -> float:
    """FLOPs of the products of a step without rematerialisation, counted in the CPU's program."""
    model = dataclasses.replace(config.model, remat=False, dtype="float32")
    counted = dataclasses.replace(config, model=model)
    mesh = mesh_of(jax.devices("cpu")[0])
    step, plan, batch = prepared(counted, rows, mesh)
    return step_cost(lambda: step.lower(plan.abstract, batch), plan.abstract.params, mesh).flops


def peak_flops(dtype: Any, repeats: int = 10) -> float:
    """FLOP/s that one large square product reaches, the best of some."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def top_costs(step: train.Step, state: Any, batch: Any, typical: float) -> dict[str, float]:
    """The operations that took longest in three steps, as parts of a step, from a profile."""
    steps = 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state = step(state, batch)
            jax.block_until_ready(state.step)
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    sums: collections.Counter[str] = collections.Counter()
    for event in events:
        # The device's own operations name the program that they are of.
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            sums[event["args"]["hlo_op"]] += event["dur"] / 1e6
    return {name: round(s / steps / typical, 4) for name, s in sums.most_common(5)}


if __name__ == "__main__":
    main()
