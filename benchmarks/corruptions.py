"""Speed of the corruptions of 32x32 images, and of their kept sets, one JSON object a line.

    python -m benchmarks.corruptions                         # 10,000 images, all devices' default
    python -m benchmarks.corruptions --images=1000 --name=fog --name=shot_noise

A line for each corruption: `images_per_s`, the mean over its five severities, once compiled; and
`first_s`, the seconds of compiling and of the first images, over all five. Then one line for the
whole set of 19 by 5, made into an empty folder and read from it again: `make_s` (with what is left
to compile), `read_s`, which opens, checks and reads every byte, `read_over_make`, and `gb`.
Images are of `--seed`: smooth colours with texture. Times are of the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

from benchmarks.block_recurrent import positive

CHUNK = 64


def main() -> None:
    """Measures the corruptions and the kept sets; prints a line for each."""
    from jaxlab.data.images import corruptions

    names = (*corruptions.EVALUATED_NAMES, *corruptions.EXTRA_NAMES)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=positive, default=10_000)
    parser.add_argument("--name", action="append", help="of a corruption; all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = smooth_images(args.images, args.seed)
    for name in args.name or (*names, "jpeg_on_device"):
        print(json.dumps(measure(name, images)), flush=True)
    if args.name is None:
        print(json.dumps(measure_sets(images)), flush=True)


def smooth_images(num_images: int, seed: int):
    """uint8 [n, 32, 32, 3], of colours that change slowly over each image."""
    import numpy as np

    rng = np.random.default_rng(seed)
    wave = np.exp(2j * np.pi * np.arange(32) / 32)[:, None] ** np.arange(4)
    size = (num_images, 4, 4, 3)
    waves = rng.normal(size=size) + 1j * rng.normal(size=size)
    x = np.einsum("hi,wj,nijc->nhwc", wave, wave, waves, optimize=True).real
    return np.clip(120 + 15 * x + 8 * rng.normal(size=x.shape), 0, 255).astype(np.uint8)


def measure(name: str, images) -> dict:
    """Times one corruption at each severity."""
    import jax

    from jaxlab.data.images import corruptions

    key, first, seconds = jax.random.key(0), 0.0, 0.0
    for severity in corruptions.SEVERITIES:
        corruption = corruptions.make(name, severity)
        start = time.perf_counter()
        corruption(key, images[:CHUNK])
        first += time.perf_counter() - start
        start = time.perf_counter()
        corruption(key, images)
        seconds += time.perf_counter() - start
    return {
        "name": name,
        "images_per_s": round(5 * len(images) / seconds),
        "first_s": round(first, 2),
        "images": len(images),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def measure_sets(images) -> dict:
    """Times making all sets once, and reading them."""
    import jax

    from jaxlab.data import corrupted_sets

    def run(folder: str) -> tuple[float, int, int]:
        start = time.perf_counter()
        count = num_bytes = 0
        for _, _, kept in corrupted_sets(images, cache_dir=folder):
            count, num_bytes = count + 1, num_bytes + kept.nbytes
            kept.max()
        return time.perf_counter() - start, count, num_bytes

    with tempfile.TemporaryDirectory() as folder:
        make_s, count, num_bytes = run(folder)
        read_s, _, _ = run(folder)
    return {
        "sets": count,
        "images": len(images),
        "make_s": round(make_s, 2),
        "read_s": round(read_s, 2),
        "read_over_make": round(read_s / make_s, 3),
        "gb": round(num_bytes / 1e9, 2),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
