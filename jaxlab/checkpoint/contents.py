"""What a checkpoint says about its arrays: path, shape, dtype and checksum of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError

Leaves = Mapping[str, list[Any]]
"""`{item/path: [*shape, dtype]}`."""


def by_path(items: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf by `item/path`, in tree order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(items)
    }


def leaves_of(items: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Shape and dtype of every array by `item/path`."""
    return {path: [*leaf.shape, str(leaf.dtype)] for path, leaf in by_path(items).items()}


def checksums(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
    """The sum of each array's bits modulo 2**32, which does not depend on its sharding.

    Args:
      leaves: arrays by path. With several processes all of them call this.
    """
    # One program: processes may run the collectives of separate programs in different orders, and
    # then wait for each other forever.
    sums = np.asarray(_checksums(list(leaves.values())))
    return dict(zip(leaves, sums.tolist(), strict=True))


def require_same_leaves(saved: Leaves, items: Mapping[str, Any], step: int) -> None:
    """Checks that a checkpoint holds the arrays of `items`.

    Raises:
      UsageError: it does not; names the first array that differs, with both shapes.
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
    """Whether the saved carry differs from that of `items` only in its number of rows."""
    old, new = part(saved, "carry"), part(leaves_of(items), "carry")
    without_rows = [{path: leaf[1:] for path, leaf in side.items()} for side in (old, new)]
    return old != new and without_rows[0] == without_rows[1]


def part(saved: Leaves, *items: str) -> dict[str, list[Any]]:
    """The leaves of the named items."""
    return {path: leaf for path, leaf in saved.items() if path.split("/")[0] in items}


def params_targets(saved: Leaves) -> dict[str, jax.ShapeDtypeStruct]:
    """Restore targets for the parameters, all on one device."""
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
