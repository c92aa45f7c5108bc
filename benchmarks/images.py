"""CPU time of reading and augmenting images, one JSON object per line.

    python -m benchmarks.images
    python -m benchmarks.images --part=augmentation

Part `decode`: `data.ImageFolder` with 32 x 32 PNG files: `cpu_ms_per_image`, over all threads.
Part `fingerprint`: the fingerprint of an `ImageSet` of 150 MB: `cpu_s`.
Part `augmentation`: a jitted augmentation of 128 images of 32 x 32, without compilation: CPU time
over all threads minus that of the identity, `cpu_ms_per_batch`.
Part `stream`: `data.ImageStream` alone, with batches of 128: `batches_per_cpu_s`.

Images have smooth random colours with texture, drawn from `--seed`. Each number is the minimum over
`--rounds`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.block_recurrent import positive
from benchmarks.corruptions import smooth_images

BATCH = 128
CALLS = 20


def main() -> None:
    """Measures the parts and prints one line per measurement."""
    parts = {
        "decode": decode,
        "fingerprint": fingerprint,
        "augmentation": augmentation,
        "stream": stream,
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=parts, help="by default all")
    parser.add_argument("--images", type=positive, default=2_000, help="to decode and to stream")
    parser.add_argument("--megabytes", type=positive, default=150, help="to fingerprint")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.part or parts:
        for row in parts[name](args):
            print(json.dumps({"part": name, **row}), flush=True)


def least(run: Callable[[], Any], rounds: int) -> float:
    """Returns the minimum CPU seconds of a call, over all threads, in `rounds` calls."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def decode(args: argparse.Namespace) -> Iterator[dict]:
    """Times reading a folder of small PNG files."""
    from PIL import Image

    from jaxlab import data

    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root, "one")
        folder.mkdir()
        for i, levels in enumerate(smooth_images(args.images, args.seed)):
            Image.fromarray(levels).save(folder / f"{i:06}.png")
        seconds = least(lambda: data.ImageFolder(root), args.rounds)
    yield {"cpu_ms_per_image": round(1e3 * seconds / args.images, 3), "images": args.images}


def fingerprint(args: argparse.Namespace) -> Iterator[dict]:
    """Times the fingerprint of images in memory."""
    import numpy as np

    from jaxlab import data

    count = args.megabytes * 10**6 // 3072
    images = np.random.default_rng(args.seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.zeros(count, np.int64)
    # A new set for each round, since a set caches its fingerprint.
    sets = [data.ImageSet(images, labels) for _ in range(args.rounds)]
    seconds = least(lambda: sets.pop().fingerprint, args.rounds)
    yield {"cpu_s": round(seconds, 3), "megabytes": args.megabytes}


def augmentation(args: argparse.Namespace) -> Iterator[dict]:
    """Times augmentations of one batch, minus the identity."""
    import jax
    import jax.numpy as jnp

    from jaxlab.data import augment

    kinds = {
        "identity": lambda key, batch: batch,
        "crop and flip": augment.compose(augment.crop(), augment.flip()),
        "cutout(16)": augment.cutout(16),
        "mixup": augment.mixup(num_classes=10),
        "rand_augment(2)": augment.rand_augment(2),
    }
    batch = {
        "inputs": jnp.asarray(smooth_images(BATCH, args.seed)),
        "targets": jnp.arange(BATCH, dtype=jnp.int32) % 10,
    }
    keys = jax.random.split(jax.random.key(args.seed), CALLS)

    def run(augmented: Callable[..., Any]) -> None:
        for key in keys:
            jax.block_until_ready(augmented(key, batch))

    # The conversion to [0, 1] happens in any case and is not part of an augmentation.
    def as_unit(kind: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda key, batch: kind(key, batch | {"inputs": batch["inputs"] / 255.0}))

    programs = {name: as_unit(kind) for name, kind in kinds.items()}
    for program in programs.values():
        run(program)
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(args.rounds):
        for name, program in programs.items():
            seconds[name] = min(seconds[name], least(lambda program=program: run(program), 1))
    identity = seconds.pop("identity")
    for name, taken in seconds.items():
        yield {
            "name": name,
            "cpu_ms_per_batch": round(1e3 * (taken - identity) / CALLS, 2),
            "batch": BATCH,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }


def stream(args: argparse.Namespace) -> Iterator[dict]:
    """Times the batches of a stream."""
    import numpy as np

    from jaxlab import data

    # The memory layout of decoded sets; with another one, each batch would copy the whole set.
    levels = np.ascontiguousarray(smooth_images(args.images, args.seed))
    images = data.ImageSet(levels, np.zeros(args.images, np.int64))
    batches, count = data.ImageStream(images, BATCH), 2_000

    def run() -> None:
        for _ in range(count):
            next(batches)

    yield {"batches_per_cpu_s": round(count / least(run, args.rounds)), "batch": BATCH}


if __name__ == "__main__":
    main()
