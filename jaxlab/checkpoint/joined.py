"""Small arrays written together as one: a file costs orbax a millisecond or more, however small."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**22
"""Bytes below which an array that every device holds whole is written together with others."""

PREFIX = "joined:"

Joined = Mapping[str, list[str]]
"""The paths of the arrays in each joined one, in their order, by `item/joined:dtype`."""


def joined_paths(leaves: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which arrays are written together: small ones that every device holds, by item and dtype.

    Args:
      leaves: arrays, or their shapes with shardings, by `item/path`.
    """
    joined: dict[str, list[str]] = {}
    for path, leaf in leaves.items():
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or not leaf.sharding.is_fully_replicated:
            continue
        if math.prod(leaf.shape) * leaf.dtype.itemsize < SMALL:
            joined.setdefault(f"{path.split('/')[0]}/{PREFIX}{leaf.dtype}", []).append(path)
    return joined


def join(leaves: Mapping[str, jax.Array], joined: Joined) -> dict[str, jax.Array]:
    """Concatenates the arrays of `joined` and passes the others on.

    Args:
      leaves: arrays by `item/path`.
      joined: see `joined_paths`.
    """
    inside = {path: leaves[path] for paths in joined.values() for path in paths}
    concatenated = _concatenated(inside, tuple((name, tuple(p)) for name, p in joined.items()))
    return concatenated | {path: leaves[path] for path in _apart(leaves, joined)}


def targets(leaves: Mapping[str, Any], joined: Joined) -> dict[str, Any]:
    """What to read for `leaves`: numpy arrays for the joined ones, the leaves themselves otherwise.

    Args:
      leaves: arrays or shapes by path, every array of their items.
      joined: of the checkpoint.
    """
    wanted: dict[str, Any] = {path: leaves[path] for path in _apart(leaves, joined)}
    for name, paths in joined.items():
        if paths[0] in leaves:
            size = sum(math.prod(leaves[path].shape) for path in paths)
            wanted[name] = np.empty(size, leaves[paths[0]].dtype)
    return wanted


def split(
    read: Mapping[str, Any], leaves: Mapping[str, Any], joined: Joined
) -> dict[str, jax.Array]:
    """The inverse of `join`: each array with the sharding of its leaf.

    Args:
      read: what was read for `targets(leaves, joined)`.
      leaves: arrays or shapes with shardings, by path.
      joined: of the checkpoint.
    """
    arrays = {path: read[path] for path in _apart(leaves, joined)}
    for name, paths in joined.items():
        if name in read:
            ends = np.cumsum([math.prod(leaves[path].shape) for path in paths])
            for path, x in zip(paths, np.split(np.asarray(read[name]), ends[:-1]), strict=True):
                arrays[path] = _placed(x.reshape(leaves[path].shape), leaves[path].sharding)
    return arrays


def _apart(leaves: Mapping[str, Any], joined: Joined) -> list[str]:
    together = {path for paths in joined.values() for path in paths}
    return [path for path in leaves if path not in together]


def _placed(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # Each process gives its part: `device_put` would compare the whole between processes.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.partial(jax.jit, static_argnums=1)
def _concatenated(
    leaves: dict[str, jax.Array], joined: tuple[tuple[str, tuple[str, ...]], ...]
) -> dict[str, jax.Array]:
    return {name: jnp.concatenate([leaves[path].ravel() for path in p]) for name, p in joined}
