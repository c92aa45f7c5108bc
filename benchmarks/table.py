"""Step time of every row of the Block-Recurrent Transformer's table, over that of Slide:13L.

    python -m benchmarks.table [--preset=small] [--backend=compiled] [--steps=3] [--rounds=2]

Prints one JSON object: `over_slide_13l`, the CPU time of a step of each row over that of the
13-layer sliding-window model in the same run, and `paper`, that column of arXiv 2203.07852, table
1, where it is known to us. Rows keep their 12 or 13 layers, and their windows the paper's
proportions, at the width of a preset of `benchmarks.block_recurrent`; every row reads as many
tokens a step. One core, float32, forward and backward without dropout and optimiser; rows take
turns, and the best step of each counts.
"""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.block_recurrent import PRESETS, positive, take_turns, training_step

PAPER = {"xl_512": 0.88, "xl_2048": 2.11, "slide_13l": 1.0, "rec_fixed_skip": 0.99}


def main() -> None:
    """Measures all rows and prints their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--backend", choices=["plain", "compiled"], default="plain")
    parser.add_argument("--steps", type=positive, default=3, help="of each row in a round")
    parser.add_argument("--rounds", type=positive, default=2)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(measure(args.preset, args.steps, args.rounds, args.backend)))


def measure(name: str, num_steps: int, num_rounds: int, backend: str) -> dict:
    """Times all rows at the width of one preset, in turns."""
    import jax

    from jaxlab.models import ROWS
    from jaxlab.train import reuse_memory

    reuse_memory()
    runs = {row: step_of(row, PRESETS[name], backend) for row in ROWS}
    for run in runs.values():
        run()
    seconds = take_turns(runs, num_steps, num_rounds, between=lambda: None)
    best = {row: min(times) for row, times in seconds.items()}
    return {
        "preset": name,
        "backend": backend,
        "over_slide_13l": {row: round(t / best["slide_13l"], 3) for row, t in best.items()},
        "paper": PAPER,
        "cpu_s": {row: [round(t, 4) for t in times] for row, times in seconds.items()},
        "jax": jax.__version__,
    }


def step_of(row: str, preset: dict, backend: str):
    """A training step of a row in the proportions of the paper, at the width of a preset."""
    from flax import nnx

    from jaxlab.models import ROWS, TransformerLM, block_recurrent_config

    window = ROWS[row].changes.get("window", 512) * preset["window"] // 512
    config = block_recurrent_config(
        row,
        width=preset["width"],
        num_heads=4,
        head_dim=preset["head_dim"],
        mlp_dim=4 * preset["width"],
        window=window,
        num_states=preset["num_states"],
        dropout_rate=0.0,
        attention_dropout=0.0,
        scan_layers=False,
        remat=False,
        backend=backend,
        dtype="float32",
    )
    tokens = preset["batch"] * preset["length"]
    length = window if row.startswith("xl_") else preset["length"]
    return training_step(TransformerLM(config, rngs=nnx.Rngs(0)), tokens // length, length)


if __name__ == "__main__":
    main()
