"""A training step with plain and with fused sliding-window attention, as the TPU compiler sees it.

    python -m benchmarks.tpu_attention --row=rec_fixed_skip --topology=v4:2x2x1

Compiles the step of a row of the Block-Recurrent Transformer's table (arXiv 2203.07852, table 1)
for a topology, which need not exist here, once with each backend, and prints one JSON object each;
it needs libtpu (`pip install "jax[tpu]"`) and no TPU. Nothing is run: all numbers are what the
compiler plans, for one device and one step, without dropout of the attention's weights, which the
fused kernel does not have.
* `arguments`, `temporaries`, `peak`: bytes that the compiler sets aside;
* `bytes_accessed`: its own count of bytes between the chip and its memory, in which the body of a
  loop counts once and a kernel for what it says of itself (`pl.CostEstimate`);
* `traffic`, `flops`: bytes and FLOPs of matrix products by our reading of the program, bodies of
  loops as often as they run; a kernel counts for its operands and results, and for the FLOPs that
  it says of itself, `kernel_flops` (the compiler does not look into it);
* `bound_ms`: the time of a step at least, by what it waits for, from the published peaks;
* `optimal_ms`: the compiler's own estimate, where it gives one, bodies of loops counted once;
* `collectives`: how many, and bytes sent, by kind and mesh axes;
* `compile_s`: what the compiler took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from benchmarks.block_recurrent import positive


def main() -> None:
    """Compiles and prints; exits 2 with one line where a backend or a size is refused."""
    from configs.block_recurrent import VARIANTS
    from jaxlab.core import UsageError

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--row",
        default="rec_fixed_skip",
        choices=sorted(VARIANTS),
        metavar="VARIANT",
        help="a variant of configs/block_recurrent.py, such as slide_13l",
    )
    parser.add_argument("--topology", default="v4:2x2x1")
    parser.add_argument("--backends", nargs="+", default=["plain", "pallas"])
    parser.add_argument("--tensor", type=positive, default=1, help="devices that share the heads")
    parser.add_argument("--window", type=positive, help="another window than the row's")
    parser.add_argument("--batch_size", type=positive, help="another than the row's")
    args = parser.parse_args()
    for backend in args.backends:
        try:
            print(json.dumps(measure(args, backend)), flush=True)
        except UsageError as error:
            parser.error(str(error))


def measure(args: argparse.Namespace, backend: str) -> dict:
    """What the compiler says of the step with one backend."""
    import jax

    from benchmarks.utilisation import prepared
    from configs.block_recurrent import VARIANTS
    from jaxlab.core import MeshConfig, make_mesh, use_devices
    from jaxlab.planning.pods import tpu_pod
    from jaxlab.planning.step_cost import bounds, step_cost

    config, pod = VARIANTS[args.row](), tpu_pod(args.topology)
    model = dataclasses.replace(
        config.model,
        backend=backend,
        window=args.window or config.model.window,
        attention_dropout=0.0,  # the fused kernel has none
    )
    config = dataclasses.replace(config, model=model)
    rows = args.batch_size or config.train.batch_size
    with use_devices(pod.devices, pod.platform):
        mesh = make_mesh(MeshConfig(data=-1, tensor=args.tensor))
        step, plan, batch = prepared(config, rows, mesh)
        cost = step_cost(lambda: step.lower(plan.abstract, batch), plan.abstract.params, mesh)
    assert pod.chip is not None  # a topology names it
    bound = bounds(cost, pod.chip, pod.share)
    return {
        "row": args.row,
        "topology": args.topology,
        "devices": mesh.size,
        "rows": rows,
        "tensor": args.tensor,
        "window": model.window,
        "parameters": plan.view.num_params,
        "backend": backend,
        "arguments": cost.arguments,
        "temporaries": cost.temporaries,
        "peak": cost.peak,
        "bytes_accessed": cost.accessed,
        "traffic": round(cost.traffic),
        "flops": cost.flops,
        "kernel_flops": cost.kernel_flops,
        "bound_ms": {name: round(1e3 * seconds, 2) for name, seconds in bound.items()},
        "optimal_ms": None if cost.optimal_seconds is None else 1e3 * cost.optimal_seconds,
        "collectives": [
            {
                "kind": each.kind,
                "axes": each.axes,
                "group": each.group,
                "count": each.count,
                "payload": round(each.payload),
                "sent": round(each.sent),
            }
            for each in cost.collectives
        ],
        "unknown_loops": cost.unknown_loops,
        "compile_s": round(cost.compile_seconds, 1),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
