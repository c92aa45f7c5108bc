"""Speed of the block-recurrent transformer: ratios measured in one run, one JSON object a line.

    python -m benchmarks.block_recurrent                      # all of it, on one thread
    python -m benchmarks.block_recurrent --preset=small --steps=10
    python -m benchmarks.block_recurrent --peer="python peer.py --preset d256 --flash"

For each preset (forward and backward, float32, state carried, no optimiser):
* `tokens_per_cpu_s`, and `matmul_share`: useful FLOP/s of the model over those of a 2048^3 float32
  product in the same run (useful: what the mathematics needs, tiles and recomputation not counted);
* `recurrent_over_slide`: time of a step over that of the windowed model with one layer more, and
  `flops_over_slide`, the same of useful FLOPs;
* `double_segment`: time of a step on segments twice as long, same window;
* `first_step_cpu_s`: CPU seconds of tracing, compilation and the first step, and `peak_rss_mb`,
  the process's peak memory by the end of the second;
* `compilations_after_first_step`: counted by jax itself.

`--backend=compiled` computes attention and products with the compiled code of `jaxlab.nn.cpu`.
`--peer` runs a command that prints JSON lines with `preset`, `cpu_s` (a list, seconds of each step)
and `tokens_per_step`, on the same core, and adds the ratio of the tokens per CPU-second. The peer
and we take turns, `--rounds` times.
Times are process CPU seconds. Variants take turns, step by step, `--steps` in a round; ratios of
two variants are the median of those within a turn, rates are those of the best step.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

PRESETS = {
    "d256": dict(width=256, head_dim=64, window=512, num_states=512, batch=2, length=2048),
    "small": dict(width=128, head_dim=32, window=128, num_states=128, batch=4, length=1024),
}


def main() -> None:
    """Measures the presets, and the peers around them; prints a line for each preset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), help="by default each of them")
    parser.add_argument("--backend", choices=["plain", "compiled"], default="plain")
    parser.add_argument("--steps", type=positive, default=4, help="of each variant in a round")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--peer", help="a command, see above")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, inherited by the peer
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.preset:
        row = measure(args.preset, args.steps, args.rounds, args.peer, args.backend)
        print(json.dumps(row), flush=True)
        return
    for name in sorted(PRESETS):  # each in its own process, which tells the most memory it had
        command = [sys.executable, "-m", "benchmarks.block_recurrent", f"--preset={name}"]
        subprocess.run(command + sys.argv[1:], check=True)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def run_peer(command: str, preset: str) -> tuple[float, str]:
    """Tokens per CPU-second of the best step that a command prints, and whose they are."""
    return max(
        (row["tokens_per_step"] / min(row["cpu_s"]), row.get("implementation", command))
        for row in peer_rows(command, preset)
    )


def peer_rows(command: str, preset: str) -> list[dict]:
    """What a command prints on a preset, each line a JSON object; at least one."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [row for row in rows if row["preset"] == preset and row.get("recurrent", True)]
    if done.returncode or not rows:
        raise SystemExit(
            f"--peer ended with code {done.returncode} and {len(rows)} lines on preset {preset}"
        )
    return rows


def take_turns(
    runs: dict[str, Callable[[], None]],
    num_steps: int,
    num_rounds: int,
    between: Callable[[], None],
) -> dict[str, list[float]]:
    """CPU seconds of every step of every run; `between` is called before each round."""
    seconds = {name: [] for name in runs}
    for _ in range(num_rounds):
        between()
        for name, run in runs.items():
            for _ in range(num_steps):
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    return seconds


def measure(name: str, num_steps: int, num_rounds: int, peer: str | None, backend: str) -> dict:
    """Times the variants of one preset, and the peer, in turns."""
    import jax
    import jax.numpy as jnp

    from jaxlab.train import reuse_memory

    reuse_memory()
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )
    preset = {**PRESETS[name], "backend": backend}
    built = {"recurrent": build(preset, depth=4, recurrent=(2,))}
    start = time.process_time()
    built["recurrent"][0]()
    first = time.process_time() - start
    built["recurrent"][0]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    built |= {
        "slide": build(preset, depth=5, recurrent=()),
        "double": build({**preset, "length": 2 * preset["length"]}, depth=4, recurrent=(2,)),
    }
    square = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    runs = {key: run for key, (run, _) in built.items()}
    runs["product"] = lambda: product(square, square).block_until_ready()
    for run in runs.values():
        run()
    compilations.clear()
    peers, seconds = [], {key: [] for key in runs}
    for _ in range(num_rounds):
        if peer is not None:
            peers.append(run_peer(peer, name))
        for key, times in take_turns(runs, 1, num_steps, lambda: None).items():
            seconds[key] += times
    best = {key: min(times) for key, times in seconds.items()}

    def over(key: str, base: str) -> float:
        """What a step takes of another one of the same turn, in the median."""
        return round(statistics.median(map(operator.truediv, seconds[key], seconds[base])), 3)

    tokens = preset["batch"] * preset["length"]
    useful, product_flops = built["recurrent"][1] / best["recurrent"], 2 * 2048**3 / best["product"]
    theirs = {}
    if peers:
        rate, whose = max(peers)
        theirs = {
            "peer": whose,
            "peer_tokens_per_cpu_s": round(rate, 1),
            "over_peer": round(tokens / best["recurrent"] / rate, 3),
        }
    return {
        "preset": name,
        **preset,
        "tokens_per_cpu_s": round(tokens / best["recurrent"], 1),
        "useful_gflops": round(useful / 1e9, 1),
        "matmul_gflops": round(product_flops / 1e9, 1),
        "matmul_share": round(useful / product_flops, 3),
        "recurrent_over_slide": over("recurrent", "slide"),
        "flops_over_slide": round(built["recurrent"][1] / built["slide"][1], 3),
        "double_segment": over("double", "recurrent"),
        **theirs,
        "first_step_cpu_s": round(first, 1),
        "compilations_after_first_step": len(compilations),
        "peak_rss_mb": round(peak),
        "cpu_s": {key: [round(t, 4) for t in times] for key, times in seconds.items()},
        "jax": jax.__version__,
    }


def build(preset: dict, depth: int, recurrent: tuple[int, ...]):
    """A training step without an optimiser, and its useful FLOPs."""
    b, t = preset["batch"], preset["length"]
    run = training_step(new_model(preset, depth, recurrent), b, t)
    return run, useful_flops(preset, depth, len(recurrent)) * b * t


def training_step(model, b: int, t: int) -> Callable[[], None]:
    """Forward and backward of segments [b, t], the carry going on from call to call."""
    import jax
    import jax.numpy as jnp

    from jaxlab.core import View
    from jaxlab.objectives import next_token

    view = View.of(model)
    tokens = jax.random.randint(jax.random.key(0), (b, t + 1), 0, 256)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": jnp.ones((b, t), bool),
        "start": jnp.zeros((b, t), bool),
    }

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, carry, batch):
        def objective(params):
            loss = next_token(view.bind(params), batch, carry)
            return loss.value, loss.carry

        (value, carry), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return value, carry, grads

    held = {"carry": model.init_carry(b)}

    def run() -> None:
        value, held["carry"], grads = step(view.params, held["carry"], batch)
        jax.block_until_ready((value, held["carry"], grads))

    return run


def new_model(preset: dict, depth: int, recurrent: tuple[int, ...]):
    """The float32 model of a preset."""
    from flax import nnx

    from jaxlab.models import TransformerLM, TransformerLMConfig

    config = TransformerLMConfig(
        width=preset["width"],
        depth=depth,
        num_heads=4,
        head_dim=preset["head_dim"],
        window=preset["window"],
        num_states=preset["num_states"],
        recurrent_layers=recurrent,
        backend=preset.get("backend", "plain"),
        dtype="float32",
    )
    # One program, as a training run makes its state: operation by operation takes more memory.
    return nnx.jit(lambda: TransformerLM(config, rngs=nnx.Rngs(0)))()


def useful_flops(preset: dict, depth: int, num_recurrent: int) -> float:
    """FLOPs a token of forward and backward (3 times forward), two for each multiply-add.

    What the last block of a segment writes to the state has no backward: it goes on in the carry.
    """
    d, w, s, hk = preset["width"], preset["window"], preset["num_states"], 4 * preset["head_dim"]
    layer = 4 * d * hk + 2 * d * 4 * d + 2 * w * hk
    tokens_read = 2 * d * hk + 2 * s * hk
    shown = (s / w) * 2 * d * hk  # keys and values of the state
    written = (s / w) * (4 * d * hk + 2 * s * hk + 2 * 2 * w * hk)
    once_and_back = 1 + 2 * (1 - w / preset["length"])
    both = depth * layer + num_recurrent * (tokens_read + shown) + 260 * d
    return 2 * (3 * both + num_recurrent * once_and_back * written)


if __name__ == "__main__":
    main()
