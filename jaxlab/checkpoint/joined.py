"""Small arrays written as one: a file format takes a millisecond for each, whatever its size."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**22
"""Bytes below which an array that is whole on every device is written together with others."""

PREFIX = "joined:"

Joined = Mapping[str, list[str]]
"""The paths of the arrays in each joined one, in their order, by `item/joined:dtype`."""


def joined_paths(leaves: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which arrays go together: those that are small and whole on every device, by item and dtype.

    Args:
      leaves: arrays, or their shapes with shardings, by `item/path`.
    """
    found: dict[str, list[str]] = {}
    for path, leaf in leaves.items():
        # A key is of no dtype of files.
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if key or not leaf.sharding.is_fully_replicated:
            continue
        if math.prod(leaf.shape) * leaf.dtype.itemsize < SMALL:
            found.setdefault(f"{path.split('/')[0]}/{PREFIX}{leaf.dtype}", []).append(path)
    return found


def join(leaves: Mapping[str, jax.Array], joined: Joined, *, copy: bool) -> dict[str, jax.Array]:
    """Puts the arrays of `joined` in one each, and leaves the others.

    Args:
      leaves: by path.
      joined: see `joined_paths`.
      copy: whether the others are copied as well.
    """
    apart = _apart(leaves, joined)
    inside = {path: leaves[path] for path in leaves if copy or path not in apart}
    kept = {} if copy else {path: leaves[path] for path in apart}
    return kept | _join(inside, tuple((name, tuple(paths)) for name, paths in joined.items()))


def targets(leaves: Mapping[str, Any], joined: Joined) -> dict[str, Any]:
    """What to read for `leaves`: arrays of the host for the joined ones, else the leaves.

    Args:
      leaves: arrays or shapes by path, all that belong to their items.
      joined: of the checkpoint.
    """
    wanted: dict[str, Any] = {path: leaves[path] for path in _apart(leaves, joined)}
    for name, paths in joined.items():
        if paths[0] in leaves:
            size = sum(math.prod(leaves[path].shape) for path in paths)
            wanted[name] = np.empty(size, leaves[paths[0]].dtype)
    return wanted


def split(
    found: Mapping[str, Any], leaves: Mapping[str, Any], joined: Joined
) -> dict[str, jax.Array]:
    """The inverse of `join`, for what was read of `targets`: each array where its leaf lies."""
    apart = set(_apart(leaves, joined))
    parts = parts_of(found, leaves, joined)
    return {
        path: part if path in apart else _placed(part, leaves[path].sharding)
        for path, part in parts.items()
    }


def parts_of(found: Mapping[str, Any], leaves: Mapping[str, Any], joined: Joined) -> dict[str, Any]:
    """Each array of what `join` gave or `targets` read; those of a joined one as the host's views.

    Args:
      found: by path; a joined array may be missing, and then its parts are.
      leaves: arrays or shapes by path.
      joined: see `joined_paths`.
    """
    parts = {path: found[path] for path in _apart(leaves, joined)}
    for name, paths in joined.items():
        if name not in found:
            continue
        shapes = [leaves[path].shape for path in paths]
        flat = np.split(np.asarray(found[name]), np.cumsum([math.prod(s) for s in shapes])[:-1])
        parts |= {p: x.reshape(s) for p, x, s in zip(paths, flat, shapes, strict=True)}
    return parts


def _apart(leaves: Iterable[str], joined: Joined) -> list[str]:
    together = {path for paths in joined.values() for path in paths}
    return [path for path in leaves if path not in together]


def _placed(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # Each host gives its part: `device_put` would compare the whole between hosts.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.partial(jax.jit, static_argnums=1)
def _join(
    leaves: dict[str, jax.Array], joined: tuple[tuple[str, tuple[str, ...]], ...]
) -> dict[str, jax.Array]:
    together = {
        name: jnp.concatenate([leaves[path].ravel() for path in paths]) for name, paths in joined
    }
    apart = _apart(leaves, dict(joined))
    return together | {path: jnp.copy(leaves[path]) for path in apart}
