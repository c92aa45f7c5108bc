"""What a step takes on devices that need not be there: memory, FLOPs, traffic, time and cost."""

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
    """One compiled step, seen from one device.

    Attributes:
      arguments, temporaries: bytes that the compiler sets aside: the state and the batch, and all
        else at its peak, gradients included.
      outputs: bytes of results that take no argument's place.
      gradients: bytes of the gradients, which lie like the parameters.
      flops: of matrix products and convolutions, those computed twice included; of kernels what
        they say of themselves.
      kernel_flops: the part of it that kernels say.
      traffic: bytes between the chip and its memory, at least.
      accessed: the compiler's own count of such bytes, where it gives one; bodies of loops count
        once, kernels for what they say.
      collectives: see `Collective`.
      unknown_loops: loops whose length the program does not tell; they count once.
      optimal_seconds: the compiler's own estimate, where it gives one.
      compile_seconds: what the compiler took.
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
        """Bytes of a device's memory that the step needs."""
        return self.arguments + self.temporaries + self.outputs

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one step, at least."""
        return sum(each.sent for each in self.collectives)


def step_cost(
    lower: Callable[[], jax.stages.Lowered], params: Mapping[str, Any], mesh: Mesh
) -> StepCost:
    """Compiles a step from shapes for the devices of `mesh`, and reads the program.

    Args:
      lower: lowers the step, such as `lambda: step.lower(plan.abstract, batch)` of a
        `jaxlab.train.Step`.
      params: the parameters that it trains, as shapes with shardings.
      mesh: its devices may be those of another machine.
    """
    began = time.perf_counter()
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    with silent_stderr(until_it_fails=True) if on_tpu else contextlib.nullcontext():
        compiled = lower().compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    program = read_program(compiled.as_text())
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
    """Bytes that a pytree of shapes with shardings takes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def bounds(cost: StepCost, chip: Chip, share: float) -> dict[str, float]:
    """Seconds that a step takes at least, by what it waits for (a roofline).

    Groups that reach further than the links do, in the order of the mesh, send over the network
    between them. None of the
    numbers counts padding, latencies, or what waits for something else: a real step is slower than
    the largest of them.

    Args:
      cost: of the step on one device.
      chip: with its published peaks.
      share: the part of a chip that a device is.
    """
    sent = {False: 0.0, True: 0.0}
    for each in cost.collectives:
        # What the devices of one chip tell each other needs no link: chips are the members.
        leaves_group = each.span * share > chip.group
        sent[leaves_group] += each.payload * sent_rate(each.kind, each.group * share)
    found = {
        "products": cost.flops / (chip.flops * share),
        "memory": cost.traffic / (chip.memory_bandwidth * share),
        "links": sent[False] / chip.link_bandwidth,
    }
    if sent[True]:
        found["network"] = sent[True] / (chip.network_bandwidth or chip.link_bandwidth)
    return found


def cost_lines(
    cost: StepCost, state: Mapping[str, Any], pod: Pod, *, steps: int, tokens_per_step: int | None
) -> list[str]:
    """Describes a step, and a run of `steps` of them, in lines.

    Args:
      cost: see `step_cost`.
      state: the parts of the training state by name, as shapes with shardings.
      pod: the devices that the step was compiled for.
      steps: steps of the run.
      tokens_per_step: targets in one step; None where there is no such number.
    """
    parts = {
        **{name: bytes_on_device(tree) for name, tree in state.items()},
        "gradients": cost.gradients,
        "activations and all else": max(cost.temporaries - cost.gradients, 0) + cost.outputs,
    }
    lines = [
        f"compiled for {pod.name}: {pod.num_chips:,} chips, {len(pod.devices):,} devices, in "
        f"{cost.compile_seconds:.0f} s",
        "bytes a device: " + ", ".join(f"{name} {_mib(size)}" for name, size in parts.items()),
        f"peak a device: {_mib(cost.peak)}{_fit(cost, pod)}",
        f"FLOPs a step: {cost.flops * len(pod.devices):.4g} in matrix products, those computed "
        f"again included; {cost.flops:.4g} a device",
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
            f"these are of the program that the compiler for {pod.devices[0].platform} makes: that "
            f"of {pod.platform} needs less memory and traffic, and joins more collectives"
        )
    if cost.unknown_loops:
        lines.append(f"loops of unknown length, counted once: {cost.unknown_loops}")
    if cost.optimal_seconds is not None:
        lines.append(
            f"the compiler's own estimate: {1e3 * cost.optimal_seconds:.3g} ms a step (it counts "
            "the bodies of loops once)"
        )
    return lines + _time_lines(cost, pod, steps, tokens_per_step)


def _by_axes(found: Sequence[Collective]) -> list[Collective]:
    """Those of one kind, axes and size in one, however far their groups reach."""
    joined: dict[tuple[str, tuple[str, ...], int], Collective] = {}
    for each in found:
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
        return ["time: no chip is named; --hardware names one"]
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
        lines[-1] += f", {cost_of_run:,.0f} at {pod.price:g} for a chip and hour"
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
