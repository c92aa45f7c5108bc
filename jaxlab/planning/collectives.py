"""What the devices of a compiled program send each other, and along which axes of the mesh."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from jaxlab.planning.hlo import Array, Instruction, Program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind along the same axes.

    Attributes:
      kind: as XLA calls it.
      axes: of the mesh, those along which the devices of a group differ.
      group: devices of a group.
      span: from the first to the last device of a group, in the order of the mesh.
      count: operations in one step, those in loops as often as they run.
      payload: bytes a device and step: of what is reduced, of what was gathered, or of what is
        scattered or passed on.
      sent: bytes that a device must send at least for that, as in a ring.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    span: int
    count: float
    payload: float
    sent: float


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """All of a program, joined by kind and axes, the most bytes first."""
    found: dict[tuple[str, tuple[str, ...], int, int], list[float]] = {}
    for count, each in _by_channel(program):
        kind = each.opcode.removesuffix("-start")
        groups = _groups(each, mesh.size)
        axes = _axes(groups, mesh)
        group = len(groups[0]) if kind != "collective-permute" else 2
        payload = _payload(each, kind)
        if group < 2:
            continue
        span = max(max(members) - min(members) + 1 for members in groups)
        sums = found.setdefault((kind, axes, group, span), [0.0, 0.0, 0.0])
        for i, more in enumerate((1.0, payload, payload * sent_rate(kind, group))):
            sums[i] += count * more
    rows = [Collective(*key, *sums) for key, sums in found.items()]
    return sorted(rows, key=lambda row: -row.sent)


def _by_channel(program: Program) -> list[tuple[float, Instruction]]:
    """How often each operation runs, and itself.

    The TPU compiler writes one operation down several times, once for each fusion that it runs
    beside; they share a channel.
    """
    found: dict[str, tuple[float, Instruction]] = {}
    for count, _, each in program.instructions():
        if each.opcode.removesuffix("-start") in KINDS:
            channel = each.attribute("channel_id") or each.name
            before, _ = found.get(channel, (0.0, each))
            found[channel] = (max(count, before), each)
    return list(found.values())


def _payload(each: Instruction, kind: str) -> float:
    """Bytes of the result; of a reduce-scatter, which makes a part of them, all of the parts."""
    result: Iterable[Array] = each.result
    if each.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, ...): what was gathered is the larger of the two.
        sizes = [array.num_bytes for array in each.result if array.size > 1]
        return max(sizes, default=0)
    total = sum(array.num_bytes for array in result)
    if kind == "reduce-scatter":
        return total * len(_groups(each, 0)[0])
    return total


def sent_rate(kind: str, group: float) -> float:
    """Bytes that each member of a group sends at least for each byte of payload."""
    if group <= 1:
        return 0.0
    if kind == "all-reduce":
        return 2 * (group - 1) / group
    if kind in ("all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return (group - 1) / group
    return 1.0


def _groups(each: Instruction, size: int) -> list[list[int]]:
    """The groups of devices, by their place in the mesh."""
    text = each.attributes
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
        return [_ints(group) for group in re.findall(r"\{([\d,]*)\}", listed[1])]
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", text):
        return _named_groups(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota is None:
        return [list(range(size))]
    return _counted(iota[2], iota[3]).reshape(-1, _ints(iota[1])[-1]).tolist()


def _counted(dims: str, transposed: str | None) -> np.ndarray:
    """The numbers from 0 on in the shape `dims`, with its axes moved."""
    numbers = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return numbers.transpose(_ints(transposed)) if transposed else numbers


def _named_groups(axes: str, order: str, along: str) -> list[list[int]]:
    """Groups along axes of a mesh of the compiler's own.

    For example `'a'=2,'b'=4`, the order `, device_ids=([4,2]T(1,0)) `, and `'a','b':(2)2`: all of
    axis a, and of axis b the part of size 2 behind one of size 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if moved := re.search(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", order):
        numbers = _counted(*moved.groups())
    elif listed := re.search(r"device_ids=\[([\d,]+)\]", order):
        numbers = np.array(_ints(listed[1]))
    wanted = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)
    }
    shape: list[int] = []
    inside: list[int] = []
    for name, whole in sizes.items():
        before, size = wanted.get(name, (whole, 1))
        inside += [len(shape) + 1] if name in wanted else []
        shape += [before, size, whole // (before * size)]
    outside = [dim for dim in range(len(shape)) if dim not in inside]
    group = math.prod(shape[dim] for dim in inside)
    return numbers.reshape(shape).transpose([*outside, *inside]).reshape(-1, group).tolist()


def _axes(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """Axes along which the devices of some group differ."""
    sizes = tuple(mesh.shape.values())
    places = np.array([np.unravel_index(group, sizes) for group in groups[:64]])  # [g, axis, n]
    differ = (places != places[:, :, :1]).any(axis=(0, 2))
    return tuple(name for name, found in zip(mesh.axis_names, differ, strict=True) if found)


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]
