"""Reads a compiled program (HLO text): its instructions, how often each runs, FLOPs, traffic.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs, by the lengths of the loops around it. Kernels (Pallas) are opaque: they count for the FLOPs
of their own estimate, and for their operands and results.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bytes of an element; every float8 type is found by its prefix.
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "s4": 0.5,
    "u4": 0.5,
    "token": 0,
    "opaque": 0,
}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
# These only name, bundle or wait for the results of others.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "iota",
        "async-start",
    )
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: XLA's name, for example 'bf16'.
      shape: on one device.
      in_main_memory: False where the compiler keeps it in on-chip memory.
    """

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes without padding."""
        width = 1 if self.dtype.startswith("f8") else _BYTES.get(self.dtype, 4)
        return math.ceil(self.size * width)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program.

    Attributes:
      name, opcode: for example 'dot.3' and 'dot'.
      result: its arrays, those of a tuple in order.
      operands: names of instructions of the same computation.
      attributes: the text after the operands.
      argument: the text between the parentheses.
    """

    name: str
    opcode: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str = ""

    def attribute(self, name: str) -> str | None:
        """The value of a one-word attribute, or None."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return None if found is None else found.group(1)

    def dims(self, name: str) -> tuple[int, ...]:
        """The value of an attribute such as `lhs_contracting_dims={1}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return _ints(found.group(1)) if found else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name; `root` names the one that is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def operands(self, of: Instruction) -> list[Instruction]:
        """The instructions that compute the operands."""
        return [self.instructions[name] for name in of.operands if name in self.instructions]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; see `read_program`.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
      unknown_loops: loops whose length the text does not state; their bodies count once.
    """

    computations: dict[str, Computation]
    entry: str
    unknown_loops: int
    _counts: dict[str, float]
    _fused: frozenset[str]

    def instructions(self) -> Iterator[tuple[float, Computation, Instruction]]:
        """Yields how often each instruction runs, its computation, and itself; fusions included."""
        for name, count in self._counts.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield count, computation, instruction

    @functools.cached_property
    def flops(self) -> float:
        """FLOPs of matrix products, convolutions and kernels on one device."""
        return self.kernel_flops + sum(
            count * _flops(where, each) for count, where, each in self.instructions()
        )

    @functools.cached_property
    def kernel_flops(self) -> float:
        """FLOPs of kernels by their own estimate; 0 for kernels without one.

        The estimate is a `pl.CostEstimate`, or the attribute `flops` of a call through `jax.ffi`.
        """
        return sum(count * _stated_flops(each) for count, _, each in self.instructions())

    @functools.cached_property
    def traffic(self) -> float:
        """Bytes that one device reads from and writes to main memory, given the fusions.

        Every instruction reads its operands and writes its result, except arrays kept on the chip.
        A slice reads only the part it takes, and an in-place update writes only what changes.
        """
        return sum(
            count * self._traffic(where, each)
            for count, where, each in self.instructions()
            if where.name not in self._fused
        )

    def _traffic(self, where: Computation, each: Instruction) -> float:
        if each.opcode in _FREE or each.opcode.endswith(("-done", "-update")):
            return 0
        sources = where.operands(each)
        if each.opcode == "fusion":
            inner = self.computations.get(each.attribute("calls") or "")
            if inner is not None:
                return _fusion_traffic(inner, each, sources)
        if each.opcode == "dynamic-update-slice" and len(sources) > 1:
            return 2 * _main_bytes(sources[1].result)
        if each.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _main_bytes(each.result)
        if each.opcode.endswith("-start"):  # (operand, result, ...)
            return _main_bytes(each.result[:2])
        return _main_bytes(each.result) + sum(_main_bytes(s.result) for s in sources)


def read_program(text: str) -> Program:
    """Reads the text of a compiled program, from `compiled.as_text()`.

    The length of a loop is its `known_trip_count`, else the constant of its condition
    `i < constant` (JAX's loops count from 0 by 1), else unknown, taken as 1.
    """
    computations, entry = _computations(text)
    counts: dict[str, float] = {}
    fused: set[str] = set()
    unknown: set[str] = set()

    def visit(name: str, count: float, inside_fusion: bool) -> None:
        if name not in computations:
            return
        counts[name] = counts.get(name, 0) + count
        if inside_fusion:
            fused.add(name)
        for each in computations[name].instructions.values():
            if each.opcode == "while":
                length = _length(each, computations)
                if length is None:
                    unknown.add(each.name)
                visit(each.attribute("body") or "", count * (length or 1), inside_fusion)
                continue
            if each.opcode.endswith(("-done", "-update")):
                continue
            inner = inside_fusion or each.opcode == "fusion"
            for called in _called(each):
                visit(called, count, inner)

    visit(entry, 1, False)
    return Program(computations, entry, len(unknown), counts, frozenset(fused))


def _called(each: Instruction) -> list[str]:
    """Computations that run once per instruction: not those applied to each element."""
    if each.opcode not in ("fusion", "call", "conditional") and "-start" not in each.opcode:
        return []
    branches = re.search(r"branch_computations=\{([^}]*)\}", each.attributes)
    if branches:
        return [name.strip(" %") for name in branches.group(1).split(",")]
    if "-start" in each.opcode and "calls=" not in each.attributes:
        return []
    return _CALLED.findall(each.attributes)


def _length(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    found = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.attributes)
    if found:
        return int(found.group(1))
    condition = computations.get(loop.attribute("condition") or "")
    if condition is None:
        return None
    constants = [
        int(each.argument)
        for each in condition.instructions.values()
        if each.opcode == "constant" and re.fullmatch(r"\d+", each.argument)
    ]
    compares = "direction=LT" in condition.instructions[condition.root].attributes
    return constants[0] if compares and len(constants) == 1 else None


def _computations(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and " = " not in line.split("(")[0]:
                name, instructions, root = header.group(2), {}, ""
                entry = name if header.group(1) else entry
            elif line.startswith("}") and name:
                computations[name] = Computation(name, instructions, root)
            continue
        each = _instruction(line)
        if each is not None:
            instructions[each.name] = each
            if line.lstrip().startswith("ROOT ") or not root:
                root = each.name
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    call = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if call is None:
        return None
    opens = end + call.end() - 1
    closes = _closing(rest, opens)
    argument = rest[opens + 1 : closes]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(
        head.group(1), call.group(1), _arrays(rest[:end]), operands, rest[closes + 1 :], argument
    )


def _closing(text: str, opens: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opens):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    return len(text) - 1


def _arrays(text: str) -> tuple[Array, ...]:
    # Memory spaces other than 0 are on the chip or on the host.
    return tuple(
        Array(dtype, _ints(dims), not re.search(r"S\([1-9]", layout))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _main_bytes(arrays: tuple[Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays if array.in_main_memory)


def _fusion_traffic(inner: Computation, fusion: Instruction, sources: list[Instruction]) -> float:
    root = inner.instructions[inner.root]
    parameters = {
        each.name: int(each.argument)
        for each in inner.instructions.values()
        if each.opcode == "parameter" and each.argument.isdigit()
    }
    users: dict[str, list[Instruction]] = {name: [] for name in parameters}
    for each in inner.instructions.values():
        for name in each.operands:
            if name in users:
                users[name].append(each)
    written = _main_bytes(fusion.result)
    in_place = ""
    if root.opcode == "dynamic-update-slice" and len(root.operands) > 1:
        update = inner.instructions[root.operands[1]]
        written = sum(a.num_bytes for a in update.result) if written else 0
        in_place = root.operands[0]
    read = 0
    for name, index in parameters.items():
        if name == in_place or index >= len(sources):
            continue
        whole = _main_bytes(sources[index].result)
        if whole and users[name] and all(u.opcode == "dynamic-slice" for u in users[name]):
            whole = min(whole, sum(a.num_bytes for u in users[name] for a in u.result))
        read += whole
    return read + written


def _stated_flops(kernel: Instruction) -> float:
    if kernel.opcode != "custom-call":
        return 0
    stated = r'"cost_estimate":\{"flops":"(\d+)"|\bflops = (\d+) : i64'
    found = re.search(stated, kernel.attributes)
    return float(found.group(1) or found.group(2)) if found else 0


def _flops(where: Computation, each: Instruction) -> float:
    if each.opcode not in ("dot", "convolution"):
        return 0
    left, right = (source.result[0] for source in where.operands(each)[:2])
    if each.opcode == "dot":
        contracted = math.prod(left.shape[dim] for dim in each.dims("lhs_contracting_dims"))
        return 2 * each.result[0].size * contracted
    return _convolution_flops(each, left, right)


def _convolution_flops(each: Instruction, left: Array, right: Array) -> float:
    """2 FLOPs for every product of an input and a kernel element, none for padding or holes."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    if found is None:
        return 0
    inputs, kernel, output = found.groups()
    window = dict(re.findall(r"(\w+)=([\w\-]+)", _window(each.attributes)))

    def per_axis(name: str, default: str) -> list[str]:
        value = window.get(name)
        return [default] * len(axes) if value is None else value.split("x")

    axes = sorted(label for label in output if label.isdigit())
    pads = per_axis("pad", "0_0")
    strides, holes, steps = (
        list(map(int, per_axis(name, "1"))) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    products = 1
    for i, axis in enumerate(axes):
        products *= _window_products(
            left.shape[inputs.index(axis)],
            right.shape[kernel.index(axis)],
            each.result[0].shape[output.index(axis)],
            int(pads[i].split("_")[0]),
            strides[i],
            holes[i],
            steps[i],
        )
    batch = each.result[0].shape[output.index("b")]
    features = each.result[0].shape[output.index("f")]
    return 2 * batch * features * right.shape[kernel.index("i")] * products


def _window(attributes: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    return found.group(1) if found else ""


@functools.lru_cache(maxsize=4096)
def _window_products(
    size: int, kernel: int, output: int, pad: int, stride: int, hole: int, step: int
) -> int:
    """Number of pairs (output, kernel position) that read an input element."""
    extent = (size - 1) * hole + 1
    count = 0
    for k in range(kernel):
        start = k * step - pad
        for out in range(output):
            at = start + out * stride
            count += 0 <= at < extent and at % hole == 0
    return count
