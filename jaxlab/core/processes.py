"""Runs of several processes: which one writes, which rows each reads, and how they exchange values.

Process 0 is the main process. With one process everything here is local and free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxlab.core.errors import UsageError
from jaxlab.core.mesh import RULES, Rules, batch_sharding

T = TypeVar("T")


class MainProcessError(UsageError):
    """Raised on the other processes when the main one has raised, and reported, a UsageError."""


def num_processes() -> int:
    """Returns the number of processes in the run; does not initialise a device if it is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes files."""
    return num_processes() == 1 or jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the values that all processes pass, in process order; all processes must call it.

    Args:
      value: plain JSON.
    """
    if num_processes() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.array(content.size)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def on_main_process(function: Callable[[], T]) -> T | None:
    """Calls a function on the main process only; the others wait until it has returned.

    Returns:
      The function's result on the main process, None on the others.

    Raises:
      UsageError: the function raised one (a `MainProcessError` on the other processes).
      RuntimeError: on the other processes, if the function raised anything else.
    """
    result, error = None, None
    if is_main_process():
        try:
            result = function()
        except Exception as raised:
            error = raised
    outcome = None if error is None else [isinstance(error, UsageError), str(error)]
    main_outcome = gather(outcome)[0]
    if error is not None:
        raise error
    if main_outcome is not None:
        is_usage_error, text = main_outcome
        raise (
            MainProcessError(text) if is_usage_error else RuntimeError(f"process 0 failed: {text}")
        )
    return result


def from_main_process(function: Callable[[], T]) -> T:
    """Calls a function on the main process alone, and returns its result on every process.

    Args:
      function: returns plain JSON; what it raises is raised as by `on_main_process`.
    """
    return gather(on_main_process(function))[0]


def local_rows(batch_size: int, mesh: Mesh, rules: Rules = RULES) -> tuple[int, ...]:
    """Returns the rows of a batch that the devices of this process hold, in ascending order.

    Processes get the same rows if a mesh axis other than those of the batch spans them.

    Args:
      batch_size: rows over all devices.
      mesh: all devices.
      rules: logical axis to mesh axes.

    Raises:
      UsageError: the rows do not divide over the devices.

    >>> from jaxlab.core import MeshConfig, make_mesh
    >>> local_rows(4, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    (0, 1, 2, 3)
    """
    require_rows(batch_size, mesh, rules)
    sharding = batch_sharding(mesh, rules)
    local: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        (rows,) = index or (slice(None),)
        local.update(range(batch_size)[rows])
    return tuple(sorted(local))


def require_rows(batch_size: int, mesh: Mesh, rules: Rules = RULES, accumulate: int = 1) -> None:
    """Checks that the rows of every micro-batch divide over the devices.

    Raises:
      UsageError: they do not; suggests a batch size and a mesh that work.
    """
    shards, rows = num_row_shards(batch_sharding(mesh, rules)), batch_size // accumulate
    if rows % shards == 0:
        return
    parts = "" if accumulate == 1 else f" in accumulate={accumulate} micro-batches"
    data = math.gcd(rows, shards)
    tensor = shards // data * mesh.shape["tensor"]
    way_out = f", or set mesh.data={data} and mesh.tensor={tensor}"
    raise UsageError(
        f"batch_size={batch_size}{parts} does not divide over {shards} devices; make it a multiple "
        f"of {shards * accumulate}{way_out if mesh.shape['fsdp'] == 1 else ''}"
    )


def num_row_shards(sharding: NamedSharding) -> int:
    """Returns the number of shards that the rows of a batch are split into."""
    (rows,) = sharding.shard_shape((sharding.mesh.size,))
    return sharding.mesh.size // rows


def place_rows(batch: T, sharding: NamedSharding) -> T:
    """Makes the global batch from the rows that each process has in host memory.

    Args:
      batch: a pytree of arrays [rows, ...] with this process's rows, see `local_rows`.
      sharding: see `batch_sharding`.

    Returns:
      Global arrays [b, ...].
    """
    if num_processes() == 1:
        return jax.device_put(batch, sharding)
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda rows: make(sharding, np.asarray(rows)), batch)


def fetch_local_rows(x: jax.Array) -> np.ndarray:
    """Copies this process's rows of a global array [b, ...] to host memory, in order."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def whole(tree: Any) -> Any:
    """Gathers the arrays of a pytree, each unsharded on one local device.

    All processes must call it.
    """
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if num_processes() > 1:
        from jax.experimental.multihost_utils import process_allgather

        tree = jax.tree.map(
            lambda x: x if x.is_fully_addressable else process_allgather(x, tiled=True), tree
        )
    return jax.device_put(tree, one_device)


def owned_rows(rows: Sequence[int]) -> np.ndarray:
    """Marks, bool [rows], the local rows that no earlier process has: each row is owned once."""
    earlier: set[int] = set()
    for others in gather(list(rows))[: jax.process_index() if num_processes() > 1 else 0]:
        earlier.update(others)
    return np.array([row not in earlier for row in rows], bool)
