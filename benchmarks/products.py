"""Speed of the derivative of a product by its kernel: ours over XLA's own, one JSON object a line.

    python -m benchmarks.products

For each shape, `x^T ct` of x [rows, inner] and ct [rows, outer], float32, on one core: GFLOP/s of
`jaxlab.nn.products.matmul` and of `lax.dot_general`, and `over_plain`, their ratio. Times are
process CPU seconds, the least of `--steps`, both taking turns.
"""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.block_recurrent import positive, take_turns

SHAPES = ((4096, 256, 1024), (4096, 1024, 256), (4096, 256, 256), (128, 64, 1024), (128, 64, 512))


def main() -> None:
    """Measures the shapes; prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=positive, default=10)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for shape in SHAPES:
        print(json.dumps(measure(*shape, args.steps)), flush=True)


def measure(rows: int, inner: int, outer: int, num_steps: int) -> dict:
    """Times both ways on as many different pairs as make about 4 GFLOP, one after the other."""
    import jax

    from jaxlab.nn.products import matmul

    count = max(1, 2**31 // (rows * inner * outer))
    x = jax.random.normal(jax.random.key(0), (count, rows, inner))
    ct = jax.random.normal(jax.random.key(1), (count, rows, outer))

    def ours(pair):
        return matmul(*pair, transpose_x=True)

    def plain(pair):
        return jax.lax.dot_general(*pair, (((0,), (0,)), ((), ())))

    def run_of(product):
        jitted = jax.jit(lambda x, ct: jax.lax.map(product, (x, ct)))
        jitted(x, ct).block_until_ready()
        return lambda: jitted(x, ct).block_until_ready()

    runs = {"ours": run_of(ours), "plain": run_of(plain)}
    seconds = take_turns(runs, 1, num_steps, lambda: None)
    rate = {name: 2e-9 * count * rows * inner * outer / min(s) for name, s in seconds.items()}
    return {
        "rows": rows,
        "inner": inner,
        "outer": outer,
        "gflops": round(rate["ours"], 1),
        "plain_gflops": round(rate["plain"], 1),
        "over_plain": round(rate["ours"] / rate["plain"], 2),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
