"""Device meshes, and one ordered table from logical axes to mesh axes.

Models name the logical axes of their parameters (`axes=('embed', 'mlp')`) and of their activations
(`constrain(x, 'batch', 'length', 'embed')`), but know nothing about meshes. A single device is a
mesh of size one.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlab.core.devices import all_devices, on_platform_of
from jaxlab.core.errors import UsageError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
"""The names of the mesh axes, outermost first."""

Rules = tuple[tuple[str, tuple[str, ...]], ...]
"""Rows `(logical axis, mesh axes)`. Earlier rows get a mesh axis first; later rows of the same
logical axis are tried if earlier ones do not fit; axes that are not listed are replicated."""

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("length", ("sequence",)),
    ("vocab", ("tensor",)),
    ("mlp", ("tensor",)),
    ("heads", ("tensor",)),
    ("embed", ("fsdp",)),
)
"""The default table."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, for all remaining devices.

    Attributes:
      data: number of copies of the model, each with its own rows of the batch.
      fsdp: number of devices that the parameters and rows of a copy are split over.
      sequence: number of devices that the tokens of a row are split over.
      tensor: number of devices that heads, hidden units and the vocabulary are split over.
      slices: number of groups of devices connected by a slow network, which only `data`, then
        `fsdp`, may cross. -1: given by the devices (TPU slices, else processes); another number
        splits the devices in order; 1 treats all links as equal.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    slices: int = -1


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds a mesh with all axes (size 1 if unused) over `devices`, by default all devices.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or `data` and `fsdp` are too
        small to cross the slices.

    >>> dict(make_mesh(MeshConfig(data=1), jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'sequence': 1, 'tensor': 1}
    """
    config = MeshConfig() if config is None else config
    devices = all_devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UsageError(f"mesh sizes must be positive and at most one -1, got {_show(sizes)}")
    known = math.prod(size for size in sizes if size != -1)
    filled = tuple(len(devices) // known if size == -1 else size for size in sizes)
    if math.prod(filled) != len(devices):
        raise UsageError(
            f"mesh {_show(sizes)} does not fit {len(devices)} devices; the fixed sizes multiply to "
            f"{known}, which must be {len(devices)}, or divide it with one size -1"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    groups = _slices(devices, config.slices)
    if len(groups) > 1:
        return Mesh(_across_slices(filled, groups), MESH_AXES, axis_types=types)
    # With slices=1, or with one device per core of a TPU chip, as in topologies to compile for.
    several = {getattr(device, "slice_index", None) for device in devices}
    cores = {getattr(device, "core_on_chip", None) for device in devices}
    if len(several) > 1 or len(cores) > 1:
        return Mesh(np.array(devices).reshape(filled), MESH_AXES, axis_types=types)
    return jax.make_mesh(filled, MESH_AXES, axis_types=types, devices=devices)


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
    """Groups the devices by slice; without slice indices, by process if it has several devices."""
    if count != -1:
        if count < 1 or len(devices) % count:
            raise UsageError(
                f"slices={count} does not divide {len(devices)} devices; it takes a divisor, or -1 "
                "for the slices of the devices"
            )
        size = len(devices) // count
        return [list(devices[i : i + size]) for i in range(0, len(devices), size)]
    named = all(getattr(device, "slice_index", None) is not None for device in devices)
    if not named and getattr(devices[0], "platform", None) == "tpu":
        return [list(devices)]  # a topology to compile for: the processes of one slice
    by_index: dict[int, list[Any]] = {}
    for device in devices:
        index = device.slice_index if named else device.process_index
        by_index.setdefault(index, []).append(device)
    groups = [by_index[index] for index in sorted(by_index)]
    counts = [len(group) for group in groups]
    if not named and set(counts) == {1}:
        return [list(devices)]  # one process per device: they may all be on one machine
    if len(set(counts)) > 1:
        raise UsageError(
            f"the {len(groups)} slices have {', '.join(map(str, counts))} devices; a mesh needs "
            "equal numbers: choose the devices, or set slices=1"
        )
    return groups


def _across_slices(sizes: tuple[int, ...], groups: list[list[Any]]) -> np.ndarray:
    """Arranges devices in the shape `sizes`, with the outermost axes crossing slices."""
    rest, outer = len(groups), []
    for axis, size in zip(MESH_AXES, sizes, strict=True):
        outer.append(math.gcd(size, rest) if axis in ("data", "fsdp") else 1)
        rest //= outer[-1]
    if rest > 1:
        raise UsageError(
            f"mesh {_show(sizes)} does not fit {len(groups)} slices of {len(groups[0])} devices; "
            f"make data a multiple of {len(groups)} (or fsdp of the rest), or set slices=1 to let "
            "any axis cross the slow network"
        )
    inner = tuple(size // steps for size, steps in zip(sizes, outer, strict=True))
    blocks = np.stack([mesh_utils.create_device_mesh(inner, group) for group in groups])
    n = len(sizes)
    blocks = blocks.reshape(*outer, *inner).transpose([i + n * j for i in range(n) for j in (0, 1)])
    return blocks.reshape(sizes)


def _show(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))


def partition(
    axes: Sequence[str | None] | None,
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = RULES,
) -> tuple[PartitionSpec, list[tuple[str, int, int]]]:
    """Converts the logical axes of an array to a PartitionSpec.

    `axes` name the last dimensions of `shape` (a stacked layer axis on the left is replicated).
    Each mesh axis is used at most once per array, by the first rule that asks for it. Mesh axes
    that are manual here (inside `jax.shard_map`) are already split and are not used.

    Returns:
      The spec, and the axes that a rule would shard but whose size does not divide, as
      `(logical axis, size, number of shards)`.

    Raises:
      UsageError: more axes than `shape` has dimensions.
    """
    if len(axes or ()) > len(shape):
        raise UsageError(f"axes {axes} name more dimensions than shape {tuple(shape)} has")
    free = {
        axis: size
        for axis, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if size > 1 and kind is not AxisType.Manual
    }
    axes = (None,) * (len(shape) - len(axes or ())) + tuple(axes or ())
    spec: list[Any] = [None] * len(shape)
    used: set[str] = set()
    dropped: dict[int, tuple[str, int, int]] = {}
    for logical, mesh_axes in rules:
        for dim, name in enumerate(axes):
            wanted = tuple(a for a in mesh_axes if a in free and a not in used)
            if name != logical or not wanted or spec[dim] is not None:
                continue
            shards = math.prod(free[a] for a in wanted)
            if shape[dim] % shards:
                dropped[dim] = (logical, shape[dim], shards)
                continue
            dropped.pop(dim, None)
            spec[dim] = wanted[0] if len(wanted) == 1 else wanted
            used.update(wanted)
    return PartitionSpec(*spec), list(dropped.values())


def param_shardings(
    params: Mapping[str, Any],
    axes: Mapping[str, Sequence[str | None] | None],
    mesh: Mesh,
    rules: Rules = RULES,
    *,
    strict: bool = False,
) -> tuple[dict[str, NamedSharding], list[str]]:
    """Returns shardings of flat parameters (arrays or shapes), and a note per replicated axis.

    Raises:
      UsageError: `strict` is set and an axis does not divide.
    """
    shardings, notes = {}, []
    for path, p in params.items():
        spec, dropped = partition(axes.get(path), p.shape, mesh, rules)
        shardings[path] = NamedSharding(mesh, spec)
        for logical, size, shards in dropped:
            notes.append(f"{path}: axis {logical!r} of size {size} does not divide by {shards}")
    if strict and notes:
        raise UsageError(f"{notes[0]}; change the size or the mesh, or allow replication")
    return shardings, notes


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Returns the sharding of arrays whose first dimension is the batch."""
    names = dict(rules).get("batch", ())
    wanted = tuple(axis for axis in names if mesh.shape.get(axis, 1) > 1)
    return NamedSharding(mesh, PartitionSpec(wanted or None))


_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """A context in which `constrain` shards activations over `mesh` by `rules`.

    Code traced here is compiled for the platform of the mesh; see `platform`.
    """
    tokens = _rules.set(rules), _mesh.set(mesh)
    try:
        with jax.set_mesh(mesh), on_platform_of(mesh.devices.flat[0]):
            yield
    finally:
        _rules.reset(tokens[0])
        _mesh.reset(tokens[1])


def rules_in_force() -> Rules:
    """Returns the rules of `use_mesh`; outside of it, the default table."""
    return _rules.get()


def mesh_of(arrays: Iterable[Any]) -> Mesh:
    """Returns the mesh of the arrays' shardings.

    Arrays without a mesh get the mesh of `use_mesh`; outside of it, a mesh of their single device,
    or of the first local device for arrays in host memory.

    Raises:
      UsageError: the arrays are on several devices without a mesh.
    """
    shardings = [x.sharding for x in arrays if isinstance(x, jax.Array)]
    for sharding in shardings:
        if isinstance(sharding, NamedSharding):
            return cast(Mesh, sharding.mesh)
    if (mesh := _mesh.get()) is not None:
        return mesh
    devices = set().union(*(sharding.device_set for sharding in shardings))
    if len(devices) > 1:
        raise UsageError(
            f"the arrays are on {len(devices)} devices without a mesh; move them to one with "
            "View.on(mesh)"
        )
    return make_mesh(devices=list(devices) or jax.local_devices()[:1])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Shards an activation by its logical axes; does nothing without a mesh.

    Args:
      x: an array of rank `len(axes)`.
      axes: a logical axis name, or None, for each dimension.

    Raises:
      UsageError: the number of axes is not the rank (checked without a mesh, too).
    """
    if len(axes) != x.ndim:
        raise UsageError(
            f"constrain got {len(axes)} axes {axes} for shape {x.shape}; name each dimension, with "
            "None if it is not sharded"
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec, _ = partition(axes, x.shape, mesh, _rules.get())
    return jax.lax.with_sharding_constraint(x, spec)


def map_shards(
    f: Callable[..., jax.Array], *axes: Sequence[str | None]
) -> Callable[..., jax.Array]:
    """Applies `f` to each device's shard of its arrays, without the compiler partitioning it.

    Without a mesh it is `f`. An axis that does not divide is replicated. `f` must be independent
    along sharded axes, as it is over rows or heads: devices do not communicate.

    Args:
      f: takes arrays, and returns one that is sharded like the first of them.
      axes: for each array, a logical axis name or None per dimension.
    """

    def mapped(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        free = {axis for axis in mesh.axis_names if axis not in mesh.manual_axes}
        if all(mesh.shape[axis] == 1 for axis in free):
            return f(*arrays)
        specs = tuple(
            partition(names, x.shape, mesh, _rules.get())[0]
            for names, x in zip(axes, arrays, strict=True)
        )
        # Unchecked, since Pallas kernels cannot be checked; derivatives sum over devices correctly.
        return jax.shard_map(
            f, in_specs=specs, out_specs=specs[0], axis_names=free, check_vma=False
        )(*arrays)

    return mapped
