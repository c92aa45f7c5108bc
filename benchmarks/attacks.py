"""Cost of an attack divided by that of the gradients it takes: one JSON line per net.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --net=cnn --batch=64

`over_gradients` is the time of PGD with `--steps` steps in l-inf, including checking and placing
the images, divided by that of as many calls of a jitted gradient of the summed cross-entropy with
respect to the images; `predict_over_forward` is the time of `evals.predict` divided by that of as
many jitted forward passes. Float32, on one core. Times are process CPU seconds, the least of
`--rounds`; the programs take turns.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from benchmarks.block_recurrent import positive, take_turns

NETS = {"mlp": "mlp", "cnn": "small_cnn"}


def main() -> None:
    """Measures each net and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", action="append", choices=sorted(NETS))
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for net in args.net or sorted(NETS):
        print(json.dumps(measure(net, args.batch, args.steps, args.rounds)), flush=True)


def measure(net: str, batch_size: int, num_steps: int, num_rounds: int) -> dict:
    """Times the attack and the gradients on the same images."""
    import jax
    import numpy as np
    from flax import nnx

    from jaxlab import models
    from jaxlab.core import View
    from jaxlab.evals import pgd, predict
    from jaxlab.objectives import label_nats
    from jaxlab.train import reuse_memory

    reuse_memory()
    config = models.classifier_config(NETS[net])
    view = View.of(config.build(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (batch_size, *config.image_shape), dtype=np.uint8)
    labels = rng.integers(0, 10, batch_size)
    attack, key = pgd(view, 8 / 255, steps=num_steps), jax.random.key(0)
    batch = {"inputs": levels, "targets": labels}
    images, targets = jax.numpy.asarray(levels / 255, np.float32), jax.numpy.asarray(labels)
    forward = jax.jit(view.apply)

    @jax.jit
    def gradient(params, images, targets):
        return jax.grad(lambda x: label_nats(view.apply(params, x), targets).sum())(images)

    def gradients() -> None:
        for _ in range(num_steps):
            gradient(view.params, images, targets).block_until_ready()

    many, many_labels = np.concatenate([levels] * 8), np.concatenate([labels] * 8)

    def forwards() -> None:
        for _ in range(8):
            forward(view.params, images).block_until_ready()

    runs: dict[str, Callable[[], None]] = {
        "attack": lambda: attack(key, batch).block_until_ready(),
        "gradients": gradients,
        "predict": lambda: predict(view, many, many_labels, batch_size=batch_size),
        "forwards": forwards,
    }
    for run in runs.values():
        run()
    seconds = take_turns(runs, 1, num_rounds, lambda: None)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "net": net,
        "batch": batch_size,
        "steps": num_steps,
        "over_gradients": round(best["attack"] / best["gradients"], 3),
        "predict_over_forward": round(best["predict"] / best["forwards"], 3),
        "cpu_s": {name: round(value, 4) for name, value in best.items()},
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
