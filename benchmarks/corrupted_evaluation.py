"""Cost of a full corruption evaluation relative to clean evaluations, as one JSON object.

    python -m benchmarks.corrupted_evaluation

`over_clean` is the time of evaluating the small convolutional net on 19 corruptions at 5
severities, read from disk, divided by that of 95 evaluations of the clean images: wall time, the
least of `--repeats`, taking turns. `making_over_clean` is the same for the first evaluation, which
makes the sets. Images are random colours, 32 by 32: the work does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile

from benchmarks.block_recurrent import positive


def main() -> None:
    """Measures; prints a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=positive, default=10_000)
    parser.add_argument("--repeats", type=positive, default=3)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(measure(args.images, args.repeats)))


def measure(num_images: int, repeats: int) -> dict:
    """Times both evaluations of one untrained net."""
    import time

    import jax
    import numpy as np
    from flax import nnx

    from jaxlab import data, evals, models
    from jaxlab.core import View

    rng = np.random.default_rng(0)
    shape = (num_images, 32, 32, 3)
    images = data.ImageSet(
        rng.integers(0, 256, shape, np.uint8),
        rng.integers(0, 10, num_images),
        num_classes=10,
        name="noise",
    )
    view = View.of(models.classifier_config("small_cnn").build(nnx.Rngs(0)))
    sets = [
        (name, s)
        for name in (*data.corruptions.EVALUATED_NAMES, *data.corruptions.EXTRA_NAMES)
        for s in data.corruptions.SEVERITIES
    ]

    def clean() -> None:
        for _ in sets:
            evals.predict(view, images)

    def corrupted(folder: str) -> None:
        evals.errors_by_corruption(
            lambda changed: 1 - evals.predict(view, changed).accuracy,
            data.corrupted_sets(images, cache_dir=folder),
        )

    def seconds(run) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        evals.predict(view, images)  # compiles
        making = seconds(lambda: corrupted(folder))
        times = [(seconds(lambda: corrupted(folder)), seconds(clean)) for _ in range(repeats)]
    kept, plain = map(min, zip(*times, strict=True))
    return {
        "images": num_images,
        "evaluations": len(sets),
        "over_clean": round(kept / plain, 3),
        "making_over_clean": round(making / plain, 2),
        "clean_seconds": round(plain, 2),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    main()
