"""Speed of corrupting 32x32 images, and of the cache of corrupted sets, one JSON object per line.

    python -m benchmarks.corruptions                         # 10,000 images, all corruptions
    python -m benchmarks.corruptions --images=1000 --name=fog --name=shot_noise

One line per corruption: `images_per_s`, the mean over its five severities without compilation, and
`first_s`, the seconds to compile and process the first images, over all five. Then one line for all
19 times 5 sets, written to an empty cache and read from it again: `make_s` (including remaining
compilation), `read_s`, which opens, checks and reads every byte, `read_over_make`, and `gb`. Images
have smooth random colours with texture, drawn from `--seed`. Times are wall-clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

from benchmarks.block_recurrent import positive

CHUNK = 64


def main() -> None:
    """Measures the corruptions and the cached sets and prints one line for each."""
    from jaxlab.data.images import corruptions

    names = (*corruptions.EVALUATED_NAMES, *corruptions.EXTRA_NAMES)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=positive, default=10_000)
    parser.add_argument("--name", action="append", help="a corruption; all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = smooth_images(args.images, args.seed)
    for name in args.name or (*names, "jpeg_on_device"):
        print(json.dumps(measure(name, images)), flush=True)
    if args.name is None:
        print(json.dumps(measure_sets(images)), flush=True)


def smooth_images(num_images: int, seed: int):
    """Returns images uint8 [n, 32, 32, 3] whose colours change slowly."""
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
    """Times computing all sets once, and reading them from the cache."""
    import jax

    from jaxlab.data import corrupted_sets

    def run(folder: str) -> tuple[float, int, int]:
        start = time.perf_counter()
        count = num_bytes = 0
        for _, _, levels in corrupted_sets(images, cache_dir=folder):
            count, num_bytes = count + 1, num_bytes + levels.nbytes
            levels.max()
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
