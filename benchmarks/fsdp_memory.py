"""Memory per device of a training step on one device and under FSDP on several, as JSON lines.

    python -m benchmarks.fsdp_memory
    python -m benchmarks.fsdp_memory --model=plain --devices=4

Compiles training steps (Adam, float32, scanned and rematerialised layers) of models of more than
100 million parameters from shapes, on virtual CPU devices; nothing is allocated or run. The batch
is `--batch` rows in all, on one device and on several. `peak` is the compiled program's peak
(`memory_analysis`): arguments + temporaries + outputs - buffers shared by arguments and outputs.
`over_one` is the peak on one device over the peak on each of several.
"""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.block_recurrent import positive

SIZES = dict(
    vocab_size=32_128,
    width=768,
    depth=12,
    num_heads=12,
    mlp_dim=3072,
    scan_layers=True,
    remat=True,
    dtype="float32",
)
MODELS = {
    "plain": dict(window=None, position="rotary"),
    "block_recurrent": dict(window=512, recurrent_layers=(-3,), num_states=512),
}


def main() -> None:
    """Compiles the steps and prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--devices", type=positive, default=8)
    parser.add_argument("--batch", type=positive, default=8, help="rows over all devices")
    parser.add_argument("--length", type=positive, default=1024, help="tokens of a row")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", args.devices)
    for name in args.model or sorted(MODELS):
        print(json.dumps(measure(name, args.devices, args.batch, args.length)), flush=True)


def measure(name: str, devices: int, batch: int, length: int) -> dict:
    """Memory per device, on one and on `devices` of them."""
    import jax

    counts = (1, devices)
    number, steps = zip(*(compile_step(name, n, batch, length) for n in counts), strict=True)
    memory = {f"mib_on_{n}": parts(step) for n, step in zip(counts, steps, strict=True)}
    one, many = (row["peak"] for row in memory.values())
    return {
        "model": name,
        "parameters": number[0],
        "batch": batch,
        "length": length,
        **memory,
        "over_one": round(one / many, 2),
        "jax": jax.__version__,
    }


def compile_step(name: str, devices: int, batch: int, length: int):
    """The number of parameters, and the training step compiled for `devices`."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from jaxlab import train
    from jaxlab.core import MeshConfig, make_mesh
    from jaxlab.models import TransformerLM, TransformerLMConfig
    from jaxlab.objectives import next_token

    config = TransformerLMConfig(**SIZES, **MODELS[name])
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    optimizer = optax.adam(1e-3)

    def build(rngs: nnx.Rngs) -> TransformerLM:
        return TransformerLM(config, rngs=rngs)

    plan = train.plan_state(
        build,
        optimizer,
        key=0,
        mesh=mesh,
        strict=True,
        carry=lambda: build(nnx.Rngs(0)).init_carry(batch),
    )
    kinds = {"inputs": jnp.int32, "targets": jnp.int32, "mask": bool, "start": bool}
    shapes = {key: jax.ShapeDtypeStruct((batch, length), kind) for key, kind in kinds.items()}
    names = train.metric_names(plan.view, next_token, shapes, plan.abstract.carry)
    plan = plan.with_metrics(names)
    step = train.make_step(plan.view, next_token, optimizer, mesh=mesh)
    return plan.view.num_params, step.lower(plan.abstract, shapes).compile()


def parts(step) -> dict:
    """MiB per device of a compiled program, by kind and at its peak."""
    memory = step.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs_not_in_place": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    sizes["peak"] = sum(sizes.values())
    return {key: round(size / 2**20, 1) for key, size in sizes.items()}


if __name__ == "__main__":
    main()
