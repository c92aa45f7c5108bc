"""Speed of image training on CPU relative to PyTorch, ratios of one run, one JSON object per line.

    python -m benchmarks.image_training                                  # jaxlab only
    python -m benchmarks.image_training --peer=/path/to/python           # a Python with torch
    python -m benchmarks.image_training --part=loops                     # gradients inside loops

Part `training`, for each network, number of cores and page size of glibc: a full step (forward,
backward, SGD with momentum; batch 128, float32, 32 by 32 images) of ResNet-20 and of a small CNN.
* `over_torch`: our images per second divided by those of PyTorch with channels_last, its fastest
  setting; CPU seconds on one core, wall seconds on two. Each side is a process that waits while the
  other runs; they alternate, and the minimum over all steps counts.
* `host_share`: CPU seconds of our calling thread in a step, divided by those of the step.
On one core the step is `train.make_step`; on two it runs on two single-threaded devices, each with
half of the rows (`reduce_once`). We call `train.reuse_memory`, like the experiments.
`huge_pages` sets GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for both sides.

Part `loops`, on one core:
* `scan_over_outside`: eight gradients of a convolution with respect to images and kernel inside
  `lax.scan`, divided by eight calls, for our convolution and for `lax.conv_general_dilated`;
* `pgd_over_gradients`: twenty gradient ascent steps on the images in one jit, divided by twenty
  gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.block_recurrent import positive, take_turns

NETWORKS = ("resnet20", "small_cnn")
BATCH = 128


def main() -> None:
    """Measures the parts and prints one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("training", "loops"), help="by default both")
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--cores", action="append", type=positive, help="by default 1, and 2")
    parser.add_argument("--steps", type=positive, default=3, help="of each side in a round")
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--peer", help="a Python that has torch")
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, args.network[0], args.cores[0])
        return
    if args.part != "loops":
        for network in args.network or NETWORKS:
            for cores in args.cores or (1, 2):
                for huge_pages in (False, True):
                    row = training(network, cores, huge_pages, args)
                    print(json.dumps(row), flush=True)
    if args.part != "training":
        use_cores(1)
        print(json.dumps(loops(args.steps * args.rounds)), flush=True)


def use_cores(count: int) -> None:
    """Pins this process and its children to the first cores that it may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < count:
            raise SystemExit(f"--cores={count} but this process may use {len(cores)}")
        os.sched_setaffinity(0, set(cores[:count]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def training(network: str, cores: int, huge_pages: bool, args: argparse.Namespace) -> dict:
    """Measures one row, alternating between both sides."""
    pythons = {"jax": sys.executable} | ({"torch": args.peer} if args.peer else {})
    workers = {
        side: Worker(
            [
                python,
                "-m",
                __spec__.name,
                f"--worker={side}",
                f"--network={network}",
                f"--cores={cores}",
            ],
            huge_pages,
        )
        for side, python in pythons.items()
    }
    steps: dict[str, list[dict]] = {side: [] for side in workers}
    for _ in range(args.rounds):
        for side, worker in workers.items():
            steps[side] += worker.run(args.steps)
    versions = {side: worker.close() for side, worker in workers.items()}
    clock = "cpu_s" if cores == 1 else "wall_s"
    best = {side: min(step[clock] for step in rows) for side, rows in steps.items()}
    host = min(step["host_s"] / step["cpu_s"] for step in steps["jax"])
    return {
        "network": network,
        "cores": cores,
        "huge_pages": huge_pages,
        **({"over_torch": round(best["torch"] / best["jax"], 3)} if args.peer else {}),
        "images_per_s": {side: round(BATCH / seconds, 1) for side, seconds in best.items()},
        "host_share": round(host, 4),
        clock: {side: [round(step[clock], 4) for step in rows] for side, rows in steps.items()},
        "versions": versions,
    }


class Worker:
    """A process that runs steps on request."""

    def __init__(self, command: Sequence[str], huge_pages: bool):
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        if huge_pages:
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._version = self._read()

    def run(self, num_steps: int) -> list[dict]:
        """Runs `num_steps` steps and returns their times."""
        self._process.stdin.write(f"{num_steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> str:
        """Ends the process and returns the version of its library."""
        self._process.stdin.close()
        self._process.wait()
        return self._version

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with code {self._process.wait()}")
        return json.loads(line)


def serve(side: str, network: str, cores: int) -> None:
    """Runs a worker: warms up, then runs the number of steps in each line of input."""
    use_cores(cores)
    step, version = (jax_step if side == "jax" else torch_step)(network, cores)
    for _ in range(3):
        step()
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        print(json.dumps([timed(step) for _ in range(int(line))]), flush=True)


def timed(step: Callable[[], Callable[[], None]]) -> dict[str, float]:
    """Returns the CPU and wall seconds of a step, and this thread's CPU seconds to dispatch it."""
    wall, cpu, host = time.perf_counter(), time.process_time(), time.thread_time()
    wait = step()
    host = time.thread_time() - host
    wait()
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "host_s": host,
    }


def numbers():
    """Returns the batch for both sides: images [b, h, w, c] in [0, 1] and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((BATCH, 32, 32, 3), np.float32), rng.integers(0, 10, BATCH)


def jax_step(network: str, cores: int):
    """Returns our training step and the version of JAX."""
    flags = f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    import jax
    import numpy as np
    import optax

    from jaxlab import models, objectives, train
    from jaxlab.core import MeshConfig, make_mesh

    train.reuse_memory()
    images, labels = numbers()
    batch = {"inputs": images, "targets": labels.astype(np.int32)}
    optimizer = optax.sgd(0.1, momentum=0.9)
    mesh = make_mesh(MeshConfig(data=cores), jax.devices()[:cores])
    view, state, _ = train.init_state(
        models.classifier_config(network).build,
        optimizer,
        key=0,
        mesh=mesh,
        metric_names=("loss", "grad_norm", "accuracy"),
    )
    step = train.make_step(view, objectives.classify, optimizer, mesh=mesh, reduce_once=cores > 1)
    latest = {"state": state}

    def run() -> Callable[[], None]:
        latest["state"] = step(latest["state"], batch)
        return lambda: jax.block_until_ready(latest["state"])

    return run, f"jax {jax.__version__}"


def torch_step(network: str, cores: int):
    """Returns the same step in PyTorch with channels_last, and the version of PyTorch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(cores)
    model = (torch_resnet20 if network == "resnet20" else torch_small_cnn)(torch.nn)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, labels = map(torch.from_numpy, numbers())
    images = images.permute(0, 3, 1, 2)  # channels last in memory

    def run() -> Callable[[], None]:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return lambda: None

    return run, f"torch {torch.__version__}"


def torch_resnet20(nn):
    """Builds ResNet-20 for 32 by 32 images, with projections in its two wider groups."""

    def normed(i: int, o: int, window: int, stride: int):
        conv = nn.Conv2d(i, o, window, stride, window // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(o))

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int):
            super().__init__()
            self.first, self.second = normed(i, o, 3, stride), normed(o, o, 3, 1)
            self.shortcut = nn.Identity() if i == o else normed(i, o, 1, stride)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))

    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(i, o, o // i) for i, o in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(
        normed(3, 16, 3, 1),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def torch_small_cnn(nn):
    """Builds three convolutions, each with ReLU and pooling, and two dense layers."""
    layers = []
    for i, o in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    hidden = nn.Linear(1024, 128)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(inplace=True), nn.Linear(128, 10))


def loops(num_rounds: int) -> dict:
    """Measures the cost of loops around gradients."""
    import jax

    from jaxlab import train

    train.reuse_memory()
    runs = scans() | ascents()
    for run in runs.values():
        run()
    seconds = take_turns(runs, 1, num_rounds, between=lambda: None)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "scan_over_outside": {
            name: round(best[f"{name} scan"] / best[f"{name} outside"], 3)
            for name in ("ours", "plain")
        },
        "plain_scan_over_ours": round(best["plain scan"] / best["ours scan"], 1),
        "pgd_over_gradients": round(best["pgd"] / best["gradients"], 3),
        "cpu_s": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
        "jax": jax.__version__,
    }


def scans() -> dict[str, Callable[[], None]]:
    """Eight gradients of a convolution with 16 channels and 32 images, in one call and in eight."""
    import jax
    import jax.numpy as jnp

    from jaxlab import nn

    def plain(x, k):
        order = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=order)

    keys = jax.random.split(jax.random.key(0), 3)
    xs, cts = (jax.random.normal(key, (8, 32, 32, 32, 16)) for key in keys[:2])
    k = jax.random.normal(keys[2], (3, 3, 16, 16))

    def runs_of(conv):
        def gradients(x, ct):
            return jax.grad(lambda x, k: jnp.vdot(conv(x, k), ct), argnums=(0, 1))(x, k)

        inside = jax.jit(lambda xs, cts: jax.lax.map(lambda pair: gradients(*pair), (xs, cts)))
        single = jax.jit(gradients)
        pairs = list(zip(xs, cts, strict=True))

        def outside() -> None:
            jax.block_until_ready([single(*pair) for pair in pairs])

        return lambda: jax.block_until_ready(inside(xs, cts)), outside

    runs = {}
    for name, conv in (("ours", nn.conv), ("plain", plain)):
        runs[f"{name} scan"], runs[f"{name} outside"] = runs_of(conv)
    return runs


def ascents() -> dict[str, Callable[[], None]]:
    """Twenty gradient ascent steps of ResNet-20 in a box, in one jit and in twenty."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxlab import models
    from jaxlab.core import View
    from jaxlab.objectives import label_nats

    images, labels = (jnp.asarray(part[:32]) for part in numbers())
    model = models.classifier_config("resnet20").build(nnx.Rngs(0))
    view = View.of(model).evaluating()

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: label_nats(view(x), labels).sum())(x)

    @jax.jit
    def pgd(images):
        def step(_, x):
            x = x + 0.01 * jnp.sign(gradient(x))
            return jnp.clip(jnp.clip(x, images - 0.03, images + 0.03), 0, 1)

        return jax.lax.fori_loop(0, 20, step, images)

    return {
        "pgd": lambda: jax.block_until_ready(pgd(images)),
        "gradients": lambda: [jax.block_until_ready(gradient(images)) for _ in range(20)],
    }


if __name__ == "__main__":
    main()
