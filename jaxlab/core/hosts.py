"""Several processes as one run: who writes, who reads which rows, and what all of them know.

A host is a process of a run; the main host is number 0. With one process everything here is local
and costs nothing.
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


class MainHostError(UsageError):
    """What the main host has raised, and said, raised on all the others."""


def num_hosts() -> int:
    """How many processes take part; touches no device while there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main_host() -> bool:
    """Whether this process is the one that prints, and writes what one process has to write."""
    return num_hosts() == 1 or jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What every host has passed, in the order of hosts; all hosts must call it.

    Args:
      value: plain JSON.
    """
    if num_hosts() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.array(content.size)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def on_main_host(function: Callable[[], T]) -> T | None:
    """Calls a function on the main host alone, and holds the others until it has returned.

    Returns:
      What the function returned on the main host, None on the others.

    Raises:
      UsageError: on every host, when the function raised one (`MainHostError` on the others).
      RuntimeError: on the others, when it raised something else.
    """
    result, error = None, None
    if is_main_host():
        try:
            result = function()
        except Exception as raised:
            error = raised
    words = None if error is None else [isinstance(error, UsageError), str(error)]
    said = gather(words)[0]
    if error is not None:
        raise error
    if said is not None:
        expected, text = said
        raise MainHostError(text) if expected else RuntimeError(f"host 0 has failed: {text}")
    return result


def host_rows(batch_size: int, mesh: Mesh, rules: Rules = RULES) -> tuple[int, ...]:
    """The rows of a batch that lie on the devices of this host, ascending.

    Hosts that share rows, because an axis other than the batch's spans them, have the same ones.

    Args:
      batch_size: rows over all devices.
      mesh: all devices.
      rules: logical axis to mesh axes.

    Raises:
      UsageError: rows that do not divide over the devices.

    >>> from jaxlab.core import MeshConfig, make_mesh
    >>> host_rows(4, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    (0, 1, 2, 3)
    """
    require_rows(batch_size, mesh, rules)
    sharding = batch_sharding(mesh, rules)
    mine: set[int] = set()
    for (rows,) in sharding.addressable_devices_indices_map((batch_size,)).values():
        mine.update(range(batch_size)[rows])
    return tuple(sorted(mine))


def require_rows(batch_size: int, mesh: Mesh, rules: Rules = RULES, accumulate: int = 1) -> None:
    """Checks that the rows of every micro-batch divide over the devices.

    Raises:
      UsageError: they do not; names a batch size and a mesh with which they do.
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
    """Over how many devices the rows of a batch are spread."""
    (rows,) = sharding.shard_shape((sharding.mesh.size,))
    return sharding.mesh.size // rows


def place_rows(batch: T, sharding: NamedSharding) -> T:
    """Puts the rows of this host on its devices, as its part of the batch of all hosts.

    Args:
      batch: a pytree of arrays [rows, ...], the rows those of `host_rows`.
      sharding: see `batch_sharding`.

    Returns:
      Arrays [b, ...] of all hosts.
    """
    if num_hosts() == 1:
        return jax.device_put(batch, sharding)
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda rows: place(sharding, np.asarray(rows)), batch)


def rows_on_host(x: jax.Array) -> np.ndarray:
    """The rows of this host of an array [b, ...], in the order of `host_rows`."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def whole(tree: Any) -> Any:
    """The arrays of a pytree, each whole on one device of this host; all hosts must call it."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if num_hosts() > 1:
        from jax.experimental.multihost_utils import process_allgather

        tree = jax.tree.map(
            lambda x: x if x.is_fully_addressable else process_allgather(x, tiled=True), tree
        )
    return jax.device_put(tree, place)


def owned_rows(rows: Sequence[int]) -> np.ndarray:
    """Bool [rows]: which of this host's rows it counts, so that each row counts on one host."""
    before: set[int] = set()
    for theirs in gather(list(rows))[: jax.process_index() if num_hosts() > 1 else 0]:
        before.update(theirs)
    return np.array([row not in before for row in rows], bool)
