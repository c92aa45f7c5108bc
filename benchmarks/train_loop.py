"""What training costs outside the jitted step, at the `tiny` size; one JSON object.

    python -m benchmarks.train_loop [--steps=140]

Runs `run_training` as the experiment does: standard library text, prefetch, logs every 10 steps,
TensorBoard, progress, an asynchronous checkpoint halfway. `outside_step_share` is the host's time
in data, hooks and logging, with waiting for the device taken out, over all of the loop's time. The
first save and the start of TensorBoard are in it once: few steps make it larger.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time

import jax
from flax import nnx

from configs.block_recurrent import tiny
from jaxlab import data, train
from jaxlab.core import View
from jaxlab.models import TransformerLM
from jaxlab.objectives import next_token


def main() -> None:
    """Trains for a while and prints where the time went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=140)
    steps = parser.parse_args().steps
    train.reuse_memory()
    config = tiny()
    settings = dataclasses.replace(
        config.train, steps=steps, log_every=10, save_every=max(steps // 2, 1), eval_every=None
    )
    stream = data.DocumentStream(
        config.data.open()[0],
        config.tokenizer(),
        batch_size=settings.batch_size,
        segment_length=config.data.segment_length,
        align=config.model.window,
    )

    def build(rngs: nnx.Rngs) -> TransformerLM:
        return TransformerLM(config.model, rngs=rngs)

    view = View.abstract(lambda: build(nnx.Rngs(0)))
    clock = Clock()
    with tempfile.TemporaryDirectory() as workdir:
        view, run = train.run_training(
            settings,
            build=build,
            objective=next_token,
            stream=stream,
            workdir=workdir,
            init_carry=functools.partial(view.apply, view.params, method="init_carry"),
            hooks=(clock,),
            tokens_per_step=settings.batch_size * config.data.segment_length,
        )
    total = clock.seconds - run.seconds.aside
    print(json.dumps({
        "steps": steps,
        "parameters": view.num_params,
        "seconds": round(total, 3),
        "step_ms": round(1e3 * total / steps, 2),
        "outside_step_ms": round(1e3 * run.seconds.outside_step / steps, 3),
        "outside_step_share": round(run.seconds.outside_step / total, 4),
        "parts_s": {k: round(v, 4) for k, v in dataclasses.asdict(run.seconds).items()},
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }))


class Clock(train.Hook):
    """Wall time from the loop's start to its end."""

    def start(self, run: train.Run) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def finish(self, run: train.Run) -> None:
        """Stops it."""
        self.seconds = time.perf_counter() - self._begin


if __name__ == "__main__":
    main()
