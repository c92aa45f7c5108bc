"""The collectives of a compiled program: what devices send each other, over which mesh axes."""

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
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: XLA's name, one of `KINDS`.
      axes: the mesh axes along which the devices of a group differ.
      group: devices in a group.
      span: devices from the first to the last of a group, in mesh order.
      count: operations in one step; those in loops count every time they run.
      payload: bytes per device and step that are reduced, gathered, scattered or passed on.
      sent: bytes that each device must send for that, a lower bound that a ring reaches.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    span: int
    count: float
    payload: float
    sent: float


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """The collectives of a program by kind and axes, most bytes sent first."""
    totals: dict[tuple[str, tuple[str, ...], int, int], list[float]] = {}
    for count, each in _by_channel(program):
        kind = each.opcode.removesuffix("-start")
        groups = _groups(each, mesh.size)
        axes = _axes(groups, mesh)
        group = len(groups[0]) if kind != "collective-permute" else 2
        payload = _payload(each, kind)
        if group < 2:
            continue
        span = max(max(members) - min(members) + 1 for members in groups)
        sums = totals.setdefault((kind, axes, group, span), [0.0, 0.0, 0.0])
        for i, more in enumerate((1.0, payload, payload * sent_rate(kind, group))):
            sums[i] += count * more
    rows = [Collective(*key, *sums) for key, sums in totals.items()]
    return sorted(rows, key=lambda row: -row.sent)


def _by_channel(program: Program) -> list[tuple[float, Instruction]]:
    """Each collective with the number of times it runs.

    The TPU compiler lists one operation several times, once for each fusion that it overlaps with;
    the copies share a channel.
    """
    channels: dict[str, tuple[float, Instruction]] = {}
    for count, _, each in program.instructions():
        if each.opcode.removesuffix("-start") in KINDS:
            channel = each.attribute("channel_id") or each.name
            before, _ = channels.get(channel, (0.0, each))
            channels[channel] = (max(count, before), each)
    return list(channels.values())


def _payload(each: Instruction, kind: str) -> float:
    """Bytes of the result; of a reduce-scatter, whose result is one part, of all parts."""
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
    """Bytes that each member of a group must send per byte of payload."""
    if group <= 1:
        return 0.0
    if kind == "all-reduce":
        return 2 * (group - 1) / group
    if kind in ("all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return (group - 1) / group
    return 1.0


def _groups(each: Instruction, size: int) -> list[list[int]]:
    """The groups of devices, by their index in the mesh."""
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
    """0, 1, 2, ... in the shape `dims`, then transposed."""
    numbers = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return numbers.transpose(_ints(transposed)) if transposed else numbers


def _named_groups(axes: str, order: str, along: str) -> list[list[int]]:
    """Groups along axes of a mesh that the compiler defines in the program.

    For example axes `'a'=2,'b'=4`, order `, device_ids=([4,2]T(1,0)) `, along `'a','b':(2)2`: all
    of axis a, and the sub-axis of size 2 of axis b that follows one of size 2.
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
    """The mesh axes along which the devices of some group differ."""
    sizes = tuple(mesh.shape.values())
    places = np.array([np.unravel_index(group, sizes) for group in groups[:64]])  # [g, axis, n]
    differ = (places != places[:, :, :1]).any(axis=(0, 2))
    return tuple(name for name, differs in zip(mesh.axis_names, differ, strict=True) if differs)


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]
