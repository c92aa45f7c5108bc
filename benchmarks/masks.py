"""Cost of masks in a training step: ratios measured in one run, one JSON object per line.

    python -m benchmarks.masks
    python -m benchmarks.masks --net=mlp --steps=20 --rounds=5

For each network, full steps of AdamW on a batch of 128 images, float32, density 0.1, on one core:
* `static`: time of a step with constant masks, divided by that of a step without masks;
* `rigl`: the same with masks that can change, in steps without a change;
* `rigl_with_change`: the same, with a change in one of `--every` steps;
* `change`: time of a step that changes the masks, divided by that of a step without masks.

Times are process CPU seconds: the minimum of `--steps` per round, with the variants alternating for
`--rounds`.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from benchmarks.block_recurrent import positive, take_turns

NETS = {"mlp": "mlp", "cnn": "small_cnn"}


def main() -> None:
    """Measures the networks and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", action="append", choices=NETS)
    parser.add_argument("--steps", type=positive, default=10, help="of each variant in a round")
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--every", type=positive, default=100)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for net in args.net or NETS:
        print(json.dumps(measure(net, args.steps, args.rounds, args.every)), flush=True)


def measure(net: str, num_steps: int, num_rounds: int, every: int) -> dict:
    """Times the variants of one network, alternating between them."""
    import jax
    import numpy as np
    import optax

    from jaxlab import models, objectives, sparsity, train
    from jaxlab.core import MeshConfig, make_mesh

    train.reuse_memory()
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = models.classifier_config(NETS[net])
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.random((128, *model.image_shape), np.float32),
        "targets": rng.integers(0, 10, 128),
    }
    never, always = 2**30, 1

    def run_of(method: str | None, every: int) -> Any:
        optimizer, config = optax.adamw(1e-3, weight_decay=0.1), None
        if method is not None:
            config = sparsity.SparsityConfig(method, 0.1, every=every, end_step=2**30)
            optimizer = config.wrap(optimizer, train.TrainConfig(steps=2**30))
        view, state, _ = train.init_state(
            model.build,
            optimizer,
            key=0,
            mesh=mesh,
            metric_names=("accuracy", "grad_norm", "loss"),
        )
        if config is not None:
            state = sparsity.start_sparse(config, optimizer, view, state)
        step = train.make_step(view, objectives.classify, optimizer, mesh=mesh)
        placed = {name: jax.device_put(rows) for name, rows in batch.items()}
        result = [step(state, placed)]

        def run() -> None:
            result[0] = jax.block_until_ready(step(result[0], placed))

        run()
        return run

    runs = {
        "plain": run_of(None, never),
        "static": run_of("random", never),
        "rigl": run_of("rigl", never),
        "change": run_of("rigl", always),
    }
    seconds = {
        name: min(taken)
        for name, taken in take_turns(runs, num_steps, num_rounds, lambda: None).items()
    }
    plain = seconds["plain"]
    with_change = seconds["rigl"] + (seconds["change"] - seconds["rigl"]) / every
    return {
        "net": net,
        "plain_ms": round(1e3 * plain, 2),
        "static": round(seconds["static"] / plain, 3),
        "rigl": round(seconds["rigl"] / plain, 3),
        "rigl_with_change": round(with_change / plain, 3),
        "change": round(seconds["change"] / plain, 2),
        "every": every,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
