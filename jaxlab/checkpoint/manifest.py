"""What a checkpoint holds: its items, and the shape, dtype and checksum of every array in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import Params, UsageError

ARRAY_ITEMS = ("params", "model_state", "train", "carry")

Leaves = Mapping[str, list[Any]]
"""`{item/path: [*shape, dtype]}`."""


def leaves_of(items: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Shape and dtype of every array by its path."""
    return {path: [*leaf.shape, str(leaf.dtype)] for path, leaf in by_path(items).items()}


def by_path(items: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf by `item/path`, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(items)
    }


class Sums(NamedTuple):
    """Checksums on the devices.

    Attributes:
      paths: of the arrays.
      values: uint32 [len(paths)].
    """

    paths: tuple[str, ...]
    values: jax.Array


def sums_of(leaves: Mapping[str, Any]) -> Sums:
    """The sum of the bits of every array modulo 2**32, the same in whatever way it is sharded."""
    # One program: of many at once, collectives between the CPUs of two processes may meet in
    # another order on the other, and wait for ever.
    return Sums(tuple(leaves), _checksums(list(leaves.values())))


def checksums_of(sums: Sums) -> dict[str, int]:
    """What `sums_of` gives, as plain JSON, once the devices are done with it."""
    return dict(zip(sums.paths, np.asarray(sums.values).tolist(), strict=True))


def checksums_on_host(leaves: Mapping[str, jax.Array | np.ndarray]) -> dict[str, int]:
    """What `sums_of` gives, counted by the host: no program of the devices runs for it.

    Args:
      leaves: arrays by path, in the host's memory; those of devices with all their shards.
    """
    return {path: _checksum_on_host(leaf) for path, leaf in leaves.items()}


def require_same_leaves(saved: Leaves, items: Mapping[str, Any], step: int) -> None:
    """Checks that a checkpoint's leaves are those of `items`.

    Raises:
      UsageError: they are not; names the first that differs, with both shapes.
    """
    wanted = leaves_of(items)
    for path in [*wanted, *saved]:
        old, new = saved.get(path), wanted.get(path)
        if old != new:
            name = path.removeprefix("params/").removeprefix("train/")
            raise UsageError(
                f"the checkpoint of step {step} is of another config: {name} is {_show(old)} "
                f"there and {_show(new)} in this config; use that run's config or another workdir"
            )


def carry_has_other_rows(saved: Leaves, items: Mapping[str, Any]) -> bool:
    """Whether the saved carry differs from that of `items` in its number of rows, and only so."""
    old, new = part(saved, "carry"), part(leaves_of(items), "carry")
    without_rows = [{path: leaf[1:] for path, leaf in side.items()} for side in (old, new)]
    return old != new and without_rows[0] == without_rows[1]


def part(saved: Leaves, *items: str) -> dict[str, list[Any]]:
    """The leaves of some items."""
    return {path: leaf for path, leaf in saved.items() if path.split("/")[0] in items}


def params_targets(saved: Leaves) -> Params:
    """What to restore the parameters into where nothing is known of the model: one device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        path.removeprefix("params/"): jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)
        for path, (*shape, dtype) in part(saved, "params").items()
    }


def _show(leaf: list[Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf[-1]}{leaf[:-1]}"


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_checksum(x) for x in leaves])


def _checksum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype != jnp.bool_:
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return x.sum(dtype=jnp.uint32)


def _checksum_on_host(x: jax.Array | np.ndarray) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if isinstance(x, np.ndarray):
        return _bits_sum(x)
    shards = [np.asarray(shard.data) for shard in x.addressable_shards if shard.replica_id == 0]
    return sum(_bits_sum(shard) for shard in shards) % 2**32


def _bits_sum(x: np.ndarray) -> int:
    if x.dtype != np.bool_:
        x = x.view(f"uint{8 * x.dtype.itemsize}")
    return int(x.sum(dtype=np.uint32))
