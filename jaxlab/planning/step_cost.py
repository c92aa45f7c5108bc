"""The cost of a training step, from its compiled program: memory, FLOPs, traffic, time, money."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlab.core import Chip
from jaxlab.planning.collectives import Collective, collectives, sent_rate
from jaxlab.planning.hlo import read_program
from jaxlab.planning.pods import Pod, silent_stderr

DAY = 86_400


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one compiled step on each device.

    Attributes:
      arguments: bytes of the state and the batch.
      temporaries: bytes of everything else at its peak, gradients included.
      outputs: bytes of results that do not reuse an argument's buffer.
      gradients: bytes of the gradients, which are sharded like the parameters.
      flops: of matrix products and convolutions, recomputation included, and of kernels by their
        own estimate.
      traffic: bytes moved between the chip and its memory, a lower bound.
      collectives: see `Collective`.
      unknown_loops: loops whose length the program does not state; their bodies count once.
      optimal_seconds: the compiler's estimate of the time, if it gives one.
      compile_seconds: how long compilation took.
      kernel_flops: the part of `flops` in kernels.
      accessed: the compiler's estimate of `traffic`, if it gives one; it counts the bodies of
        loops once, and kernels by their own estimate.
    """

    arguments: int
    temporaries: int
    outputs: int
    gradients: int
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    unknown_loops: int
    optimal_seconds: float | None
    compile_seconds: float
    kernel_flops: float = 0.0
    accessed: float | None = None

    @property
    def peak(self) -> int:
        """Bytes of memory that the step needs on each device."""
        return self.arguments + self.temporaries + self.outputs

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one step, a lower bound."""
        return sum(each.sent for each in self.collectives)


def step_cost(
    lower: Callable[[], jax.stages.Lowered], params: Mapping[str, Any], mesh: Mesh
) -> StepCost:
    """Compiles a step from shapes and reads its cost off the program.

    Args:
      lower: lowers the step; for a `jaxlab.train.Step`, `lambda: step.lower(plan.abstract, batch)`.
      params: the trained parameters, as shapes with shardings.
      mesh: the devices to compile for, possibly of another machine.
    """
    began = time.perf_counter()
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    with silent_stderr(until_it_fails=True) if on_tpu else contextlib.nullcontext():
        compiled = lower().compile()
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    program = read_program(compiled.as_text() or "")
    counted = compiled.cost_analysis() or {}
    optimal = counted.get("optimal_seconds", 0.0)
    return StepCost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        gradients=bytes_on_device(params),
        flops=program.flops,
        traffic=program.traffic,
        collectives=tuple(collectives(program, mesh)),
        unknown_loops=program.unknown_loops,
        optimal_seconds=optimal if optimal > 0 else None,
        compile_seconds=seconds,
        kernel_flops=program.kernel_flops,
        accessed=counted.get("bytes accessed"),
    )


def bytes_on_device(tree: Any) -> int:
    """Bytes on each device of a pytree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def bounds(cost: StepCost, chip: Chip, share: float) -> dict[str, float]:
    """Lower bounds on a step's seconds, one for each resource (a roofline).

    Collectives over more chips than the links connect use the network. Padding, latencies and
    dependencies are not counted, so a real step takes longer than the largest bound.

    Args:
      cost: of the step on one device.
      chip: its published peaks.
      share: chips per device; see `Pod.share`.

    Returns:
      Seconds for `products`, `memory`, `links` and, where it is used, `network`.
    """
    sent = {False: 0.0, True: 0.0}
    for each in cost.collectives:
        # Devices of one chip exchange data without links, so the chips are the members.
        leaves_group = each.span * share > chip.group
        sent[leaves_group] += each.payload * sent_rate(each.kind, each.group * share)
    seconds = {
        "products": cost.flops / (chip.flops * share),
        "memory": cost.traffic / (chip.memory_bandwidth * share),
        "links": sent[False] / chip.link_bandwidth,
    }
    if sent[True]:
        seconds["network"] = sent[True] / (chip.network_bandwidth or chip.link_bandwidth)
    return seconds


def cost_lines(
    cost: StepCost, state: Mapping[str, Any], pod: Pod, *, steps: int, tokens_per_step: int | None
) -> list[str]:
    """Describes the cost of a step, and of a run, one fact a line.

    Args:
      cost: see `step_cost`.
      state: the parts of the training state by name, as shapes with shardings.
      pod: the devices that the step was compiled for.
      steps: number of steps in the run.
      tokens_per_step: targets in one step; None if not applicable.
    """
    parts = {
        **{name: bytes_on_device(tree) for name, tree in state.items()},
        "gradients": cost.gradients,
        "activations and the rest": max(cost.temporaries - cost.gradients, 0) + cost.outputs,
    }
    lines = [
        f"compiled for {pod.name}: {pod.num_chips:,} chips, {len(pod.devices):,} devices, in "
        f"{cost.compile_seconds:.0f} s",
        "bytes a device: " + ", ".join(f"{name} {_mib(size)}" for name, size in parts.items()),
        f"peak a device: {_mib(cost.peak)}{_fit(cost, pod)}",
        f"FLOPs a step: {cost.flops * len(pod.devices):.4g} in matrix products, recomputation "
        f"included; {cost.flops:.4g} a device",
    ]
    if tokens_per_step is not None:
        lines.append(f"tokens a step: {tokens_per_step:,}")
    lines += [
        f"collective: {each.kind} over {'+'.join(each.axes) or 'nothing'} ({each.group} devices), "
        f"{each.count:,.0f} a step, {_mib(each.payload)}, {_mib(each.sent)} sent"
        for each in _by_axes(cost.collectives)
    ] or ["collectives: none"]
    if pod.devices[0].platform != pod.platform:
        lines.append(
            f"from the program compiled for {pod.devices[0].platform}: on {pod.platform} it needs "
            f"less memory and traffic, and fewer collectives"
        )
    if cost.unknown_loops:
        lines.append(f"loops of unknown length, counted once: {cost.unknown_loops}")
    if cost.optimal_seconds is not None:
        lines.append(
            f"the compiler's estimate: {1e3 * cost.optimal_seconds:.3g} ms a step (it counts the "
            "bodies of loops once)"
        )
    return lines + _time_lines(cost, pod, steps, tokens_per_step)


def _by_axes(each_span: Sequence[Collective]) -> list[Collective]:
    """Merges collectives of one kind, axes and size that differ only in the span of a group."""
    joined: dict[tuple[str, tuple[str, ...], int], Collective] = {}
    for each in each_span:
        key = each.kind, each.axes, each.group
        before = joined.get(key)
        joined[key] = (
            each
            if before is None
            else dataclasses.replace(
                before,
                count=before.count + each.count,
                payload=before.payload + each.payload,
                sent=before.sent + each.sent,
                span=max(before.span, each.span),
            )
        )
    return sorted(joined.values(), key=lambda each: -each.sent)


def _time_lines(cost: StepCost, pod: Pod, steps: int, tokens_per_step: int | None) -> list[str]:
    if pod.chip is None:
        return ["time: unknown without --hardware, which names the chip"]
    each = bounds(cost, pod.chip, pod.share)
    slowest = max(each, key=lambda name: each[name])
    shown = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in each.items())
    days = steps * each[slowest] / DAY
    rate = "" if tokens_per_step is None else f", {tokens_per_step / each[slowest]:,.0f} tokens/s"
    lines = [
        f"a step takes at least {1e3 * each[slowest]:.3g} ms{rate}, bound by {slowest} ({shown}; "
        f"peaks of {pod.chip.name})",
        f"{steps:,} steps take at least {days:.3g} days",
    ]
    if pod.price is not None:
        cost_of_run = 24 * days * pod.num_chips * pod.price
        lines[-1] += f", {cost_of_run:,.0f} at {pod.price:g} a chip-hour"
    return lines


def _fit(cost: StepCost, pod: Pod) -> str:
    if pod.chip is None:
        return ""
    room = pod.chip.memory * pod.share
    verdict = "fits" if cost.peak <= room else "DOES NOT FIT"
    return f", {verdict} in the {_mib(room)} of {pod.chip.name}" + (
        "" if pod.share == 1 else f" (one of {1 / pod.share:.0f} devices of a chip)"
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
