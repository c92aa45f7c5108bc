"""Where a product by a sparse matrix is faster than by a dense one, if anywhere; JSON lines.

    python -m benchmarks.sparse_products                   # about three minutes of one core
    python -m benchmarks.sparse_products --quick           # seconds: that it runs, not what it says

`x @ W` of x [batch, n] and W [n, n], float32, by each way, its time over that of the dense product
in the same turns (below 1: faster):
* `masked`: `x @ (mask * W)`, with the gradient by the dense W;
* `block16` and so on: `jaxlab.nn.block_sparse_matmul`, whole blocks of that size kept at random;
* `bcsr`, `bcoo`: the formats of `jax.experimental.sparse` with their own gradients, single weights
  kept at random. W is stored transposed and stands on the left: BCSR can do no other, BCOO does it
  faster.

Dense and masked are `jaxlab.nn.products.matmul`. The pass `gradients` is the product and, from a
given cotangent, the gradients by x and by the values that are stored. A line for each size, pass
and density, then one with the largest density at which each way is faster than dense, or NONE.
Faster is at most 0.95 of its time: runs differ by about that.

On a CPU it runs on one core, and times are process CPU seconds; elsewhere wall seconds to the end
of the computation. The least of `--rounds` times `--steps` counts, all ways taking turns, each with
as many calls as make some milliseconds. Densities go up: a way that once takes over `--cap` times
as long as dense is measured no further, and the line says so in its place.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.block_recurrent import positive, take_turns

FULL = {
    "sizes": (512, 1024, 2048),
    "densities": (0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
    "blocks": (16, 32, 64, 128),
    "batch": 256,
    "rounds": 3,
    "steps": 3,
}
QUICK = {
    "sizes": (64,),
    "densities": (0.5, 0.1),
    "blocks": (16,),
    "batch": 8,
    "rounds": 1,
    "steps": 1,
}
PASSES = ("forward", "gradients")
FASTER = 0.95
RUN_SECONDS = 0.004


def main() -> None:
    """Measures the sizes, passes and densities; prints a line for each, and the summary."""
    args = arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from jaxlab.train import reuse_memory

    reuse_memory()
    rows = []
    for n, which in itertools.product(args.sizes, PASSES):
        too_slow = {}
        for part in sorted(args.densities):
            rows.append(measure(n, which, part, too_slow, args))
            print(json.dumps(rows[-1]), flush=True)
    if args.table:
        with open(args.table, "w", encoding="utf-8") as file:
            file.write(table(rows))
    print(json.dumps(summary(rows)), flush=True)


def arguments() -> argparse.Namespace:
    """What was asked for; what was not comes from `QUICK` or `FULL`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, measured once")
    parser.add_argument("--sizes", type=positive, nargs="+", metavar="N")
    parser.add_argument("--densities", type=density, nargs="+", metavar="D")
    parser.add_argument("--blocks", type=positive, nargs="+", metavar="S")
    parser.add_argument("--batch", type=positive)
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--steps", type=positive, help="of each way in a round")
    parser.add_argument("--cap", type=positive, default=10, help="times dense, see above")
    parser.add_argument("--table", metavar="FILE", help="write a table in markdown too")
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for n, block in itertools.product(args.sizes, args.blocks):
        if n % block:
            parser.error(f"--blocks {block} does not divide --sizes {n}")
    return args


def density(text: str) -> float:
    """A number over 0 and up to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a density over 0 and up to 1")
    return value


def measure(n: int, which: str, part: float, too_slow: dict, args: argparse.Namespace) -> dict:
    """Times all ways at density `part` in turns; `too_slow` keeps those done with, and why."""
    import jax

    x = jax.random.normal(jax.random.key(0), (args.batch, n))
    runs, kept, said = {}, {}, {}  # said: what stands in place of a ratio
    for name, make in ways(n, part, args.blocks):
        way = None if name in too_slow else make()
        if way is None:
            said[name] = too_slow.get(name, f"no block, {part} of so few rounds to none")
            continue
        run, kept[name] = Run(call_of(way, x, which)), way.density
        if name != "dense" and run.once > args.cap * runs["dense"].once:
            over = f"over {args.cap} times dense"
            said[name] = f"{over}, not measured further"
            too_slow[name] = f"{over} at density {part}, not measured here"
            continue
        runs[name] = run
    cpu = take_turns(runs, args.steps, args.rounds, between=lambda: None)
    best = {name: run.best(cpu[name]) for name, run in runs.items()}
    ratios = {name: round(seconds / best["dense"], 3) for name, seconds in best.items()}
    names = [name for name, _ in ways(n, part, args.blocks) if name != "dense"]
    return {
        "n": n,
        "batch": args.batch,
        "pass": which,
        "density": part,
        "dense_ms": round(1e3 * best["dense"], 3),
        "over_dense": {name: said.get(name, ratios.get(name)) for name in names},
        "kept": {name: round(kept[name], 4) for name in names if name in kept},
    }


class Way(NamedTuple):
    """`x @ matrix` as `product(x, values, *fixed)`; `density` is the share of it that is stored."""

    product: Callable[..., Any]
    values: np.ndarray
    fixed: tuple[np.ndarray, ...]
    matrix: np.ndarray
    density: float


def ways(
    n: int, part: float, blocks: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Way | None]]]:
    """Names of the ways, dense first, and what makes them: None where nothing is kept."""
    yield "dense", lambda: dense(n)
    yield "masked", lambda: masked(n, part)
    for block in blocks:
        yield f"block{block}", lambda block=block: block_sparse(n, part, block)
    yield "bcsr", lambda: unstructured(n, part, "bcsr")
    yield "bcoo", lambda: unstructured(n, part, "bcoo")


def random_matrix(n: int) -> np.ndarray:
    """Normal numbers, float32 [n, n]."""
    return np.random.default_rng(0).standard_normal((n, n), np.float32)


def random_mask(n: int, part: float) -> np.ndarray:
    """A mask [n, n], true at so many random places as `part` of them rounds to."""
    return (np.random.default_rng(1).permutation(n * n) < round(part * n * n)).reshape(n, n)


def dense(n: int) -> Way:
    """All of the matrix, which is what the others are held against."""
    from jaxlab.nn.products import matmul

    w = random_matrix(n)
    return Way(matmul, w, (), w, 1.0)


def masked(n: int, part: float) -> Way:
    """A dense product after a mask; all weights are stored and have a gradient."""
    from jaxlab.nn.products import matmul

    w, mask = random_matrix(n), random_mask(n, part)
    return Way(lambda x, w, mask: matmul(x, mask * w), w, (mask,), mask * w, mask.mean())


def block_sparse(n: int, part: float, block: int) -> Way | None:
    """Whole blocks."""
    from jaxlab.nn import BlockLayout, block_sparse_matmul

    grid = random_mask(n // block, part)
    if not grid.any():
        return None
    mask = np.kron(grid, np.ones((block, block), bool))
    layout, w = BlockLayout.from_mask(mask, block), random_matrix(n)
    return Way(
        lambda x, blocks: block_sparse_matmul(x, blocks, layout),
        np.asarray(layout.blocks_of(w)),
        (),
        mask * w,
        layout.density,
    )


def unstructured(n: int, part: float, kind: str) -> Way | None:
    """Single weights in a format of `jax.experimental.sparse`, by columns of the matrix."""
    from jax.experimental import sparse

    w, mask = random_matrix(n), random_mask(n, part)
    if not mask.any():
        return None
    places = np.argwhere(mask.T).astype(np.int32)
    sorted_, shape = dict(indices_sorted=True, unique_indices=True), (n, n)

    def bcsr(x, values, columns, starts):
        return (sparse.BCSR((values, columns, starts), shape=shape, **sorted_) @ x.T).T

    def bcoo(x, values, places):
        return (sparse.BCOO((values, places), shape=shape, **sorted_) @ x.T).T

    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=0))]).astype(np.int32)
    product, fixed = {"bcsr": (bcsr, (places[:, 1], starts)), "bcoo": (bcoo, (places,))}[kind]
    return Way(product, w.T[mask.T], fixed, mask * w, mask.mean())


def call_of(way: Way, x: Any, which: str) -> Callable[[], Any]:
    """Compiles one pass, after the product has been seen to be the right one."""
    import jax

    values, fixed = jax.device_put((way.values, way.fixed))
    want, got = np.asarray(x) @ way.matrix, np.asarray(jax.jit(way.product)(x, values, *fixed))
    if not abs(got - want).max() <= 0.01 * abs(want).max():  # the products of a GPU are rounded
        raise SystemExit(f"a product is off by {abs(got - want).max():g} of {abs(want).max():g}")
    if which == "forward":
        jitted = jax.jit(way.product)
        return lambda: jitted(x, values, *fixed)

    @jax.jit
    def gradients(x, values, ct, *fixed):
        y, pull = jax.vjp(lambda x, values: way.product(x, values, *fixed), x, values)
        return y, pull(ct)

    ct = jax.random.normal(jax.random.key(1), x.shape)
    return lambda: gradients(x, values, ct, *fixed)


class Run:
    """Some calls of one computation that has run before, and the wall seconds that they took."""

    def __init__(self, call: Callable[[], Any]):
        self.call, self.calls, self.wall = call, 1, []
        self()
        self.once = min(self.clocked() for _ in range(2))
        self.calls, self.wall = max(1, round(RUN_SECONDS / self.once)), []

    def __call__(self) -> None:
        """Calls, and waits for the end of the last."""
        import jax

        start = time.perf_counter()
        for _ in range(self.calls):
            out = self.call()
        jax.block_until_ready(out)
        self.wall.append(time.perf_counter() - start)

    def clocked(self) -> float:
        """Seconds by the clock that counts."""
        clock = time.process_time if on_cpu() else time.perf_counter
        start = clock()
        self()
        return clock() - start

    def best(self, cpu: Sequence[float]) -> float:
        """The least seconds of a call, those of the CPU where it is what computes."""
        return min(cpu if on_cpu() else self.wall) / self.calls


def on_cpu() -> bool:
    """Whether products run on a CPU here."""
    import jax

    return jax.default_backend() == "cpu"


def summary(rows: Sequence[dict]) -> dict:
    """The largest density stored at which a way is faster than dense, by pass, size and way."""
    import jax

    largest = {row["pass"]: {} for row in rows}
    for row in rows:
        of = largest[row["pass"]].setdefault(row["n"], {})
        for name, ratio in row["over_dense"].items():
            so_far = of.setdefault(name, "NONE")
            if not isinstance(ratio, str) and ratio <= FASTER:
                share = row["kept"][name]
                of[name] = share if so_far == "NONE" else max(share, so_far)
    return {
        "summary": "largest density at which a way is faster than dense",
        "faster": f"at most {FASTER} of its time",
        "largest_density": largest,
        "clock": "CPU seconds, one core" if on_cpu() else "wall seconds",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def table(rows: Sequence[dict]) -> str:
    """The lines as a table in markdown for each pass, from the highest density down."""
    names = list(rows[0]["over_dense"])
    text = []
    for which in PASSES:
        text += [f"| {' | '.join((which, 'density', 'dense, ms', *names))} |"]
        text += ["|---" * (3 + len(names)) + "|"]
        of_pass = (row for row in rows if row["pass"] == which)
        for row in sorted(of_pass, key=lambda row: (row["n"], -row["density"])):
            cells = [cell(row["over_dense"][name]) for name in names]
            head = (f"n {row['n']:,}", f"{row['density']:g}", f"{row['dense_ms']:.2f}")
            text += [f"| {' | '.join((*head, *cells))} |"]
        text += [""]
    return "\n".join(text)


def cell(ratio: float | str) -> str:
    """A ratio with two digits, those of a win in bold; of a note its first two words."""
    if isinstance(ratio, str):
        return " ".join(ratio.split()[:2]).strip(",")
    return f"**{ratio:.2f}**" if ratio <= FASTER else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
