"""What training costs outside the jitted step, at the `tiny` size, as one JSON object.

    python -m benchmarks.train_loop [--steps=140] [--saves=4] [--malloc=reuse]

Runs `run_training` as the experiment does: standard library text, prefetch, logs every 10 steps,
TensorBoard, progress, asynchronous checkpoints. `outside_step_share` is the host's time in data,
hooks and logging, without waiting for the device, as a share of the loop's time. It includes the
first save, which compiles; few steps make it larger.

`save_delay` is how much longer the steps after a save take, from the end of one step to the end of
the next, relative to the median step: `first` includes the call that saves, `second` and `third`
run while the files are written. Each list has one number per save. `usual` is the 10th and 90th
percentile of all other steps from the fifth on, the noise of the machine.

`step_cpu_ms` and `step_page_faults` are of the process, per step, saves and logs included.
`--malloc=default` leaves glibc's defaults in place of `train.reuse_memory`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import resource
import statistics
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
    """Trains and prints where the time went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--malloc", choices=("reuse", "default"), default="reuse")
    arguments = parser.parse_args()
    steps, every = arguments.steps, max(arguments.steps // (arguments.saves + 1), 5)
    if arguments.malloc == "reuse":
        train.reuse_memory()
    config = tiny()
    settings = dataclasses.replace(
        config.train, steps=steps, log_every=10, save_every=every, eval_every=None
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
    print(
        json.dumps(
            {
                "steps": steps,
                "parameters": view.num_params,
                "seconds": round(total, 3),
                "step_ms": round(1e3 * total / steps, 2),
                "step_cpu_ms": round(1e3 * clock.cpu_seconds / steps, 1),
                "step_page_faults": round(clock.page_faults / steps),
                "outside_step_ms": round(1e3 * run.seconds.outside_step / steps, 3),
                "outside_step_share": round(run.seconds.outside_step / total, 4),
                "save_delay": clock.delays(every),
                "parts_s": {k: round(v, 4) for k, v in dataclasses.asdict(run.seconds).items()},
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "devices": jax.device_count(),
                "jax": jax.__version__,
            }
        )
    )


class Clock(train.Hook):
    """Times the loop, and every step until the device has computed it."""

    def start(self, run: train.Run) -> None:
        """Starts the clock."""
        self._begin, self._usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        self._ends = {}

    def after_step(self, run: train.Run) -> None:
        """Waits for the step."""
        run.fetch(run.state.step)
        self._ends[run.step] = time.perf_counter()

    def delays(self, every: int) -> dict[str, list[float]]:
        """How much longer than the median the steps after each save took, relative to it."""
        took = {n: end - self._ends[n - 1] for n, end in self._ends.items() if n - 1 in self._ends}
        after = {n: n % every for n in took if n > every}
        usual = [took[n] for n in took if n % every > 3 and n > 4]
        median = statistics.median(usual)
        low, *_, high = statistics.quantiles(usual, n=10)
        relative = {"usual": [low, high]} | {
            name: [took[n] for n in after if after[n] == place]
            for place, name in ((1, "first"), (2, "second"), (3, "third"))
        }
        return {k: [round(x / median - 1, 3) for x in v] for k, v in relative.items()}

    def finish(self, run: train.Run) -> None:
        """Stops it."""
        self.seconds = time.perf_counter() - self._begin
        before, now = self._usage, resource.getrusage(resource.RUSAGE_SELF)
        self.cpu_seconds = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
        self.page_faults = now.ru_minflt - before.ru_minflt


if __name__ == "__main__":
    main()
