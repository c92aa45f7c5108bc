"""The largest so many of all scores, counted exactly, on arrays that may be sharded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import Masks, natural_sort
from jaxlab.nn.products import on_one_cpu_device


def keep_largest(
    scores: Mapping[str, jax.Array], count: int | jax.Array, among: Masks | None = None
) -> Masks:
    """Marks the `count` largest of all scores together.

    Ties go to the first path in natural order, and there to the lower flat index. The threshold is
    found bit by bit from counts of what lies above it: nothing is sorted, gathered or moved between
    devices but the counts, and the number may be traced.

    Args:
      scores: `{path: array}`, floats of 0 or more, or unsigned integers below the largest; of one
        dtype, and fewer than 2**32 in all.
      count: how many are marked, at most as many as there are.
      among: `{path: bool array}`: only these may be marked.

    >>> {path: mask.tolist() for path, mask in keep_largest(
    ...     {'a': jnp.array([3., 1., 2.]), 'b': jnp.array([2., 5.])}, 3).items()}
    {'a': [True, False, True], 'b': [False, True]}
    """
    paths = tuple(natural_sort(scores))
    allowed = None if among is None else tuple(among[path] for path in paths)
    # Arrays in a row, not by path: so kernels of one shape share one program.
    marked = _keep_largest(tuple(scores[path] for path in paths), count, allowed)
    return dict(zip(paths, marked, strict=True))


def mark_largest(scores: jax.Array) -> jax.Array:
    """Marks the largest of one array, the first one of those that are.

    >>> mark_largest(jnp.array([1., 3., 3.])).tolist()
    [False, True, False]
    """
    (places,) = _places([scores])
    is_best = scores == scores.max()
    return is_best & (places == jnp.where(is_best, places, scores.size).min())


@jax.jit
def _keep_largest(
    scores: tuple[jax.Array, ...], count: jax.Array, among: tuple[jax.Array, ...] | None
) -> tuple[jax.Array, ...]:
    keys = [_ordered(score) for score in scores]
    if among is not None:
        keys = [jnp.where(one, key, 0) for key, one in zip(keys, among, strict=True)]
    count = jnp.asarray(count, jnp.uint32)
    # The largest threshold that enough scores reach: that of the last one marked.
    dtype = keys[0].dtype
    least = _search(
        8 * dtype.itemsize, dtype, lambda tried: _total([key >= tried for key in keys]) >= count
    )
    larger = [key > least for key in keys]
    equal = [(key == least) & (key > 0) for key in keys]
    needed = count - _total(larger)
    # Mostly one score equals the threshold, and no tie has to be broken.
    ties = jax.lax.cond(
        _total(equal) > needed, lambda equal: _first(equal, needed), lambda equal: equal, equal
    )
    return tuple(mask | tie for mask, tie in zip(larger, ties, strict=True))


def _ordered(score: jax.Array) -> jax.Array:
    """Unsigned integers of 1 or more in the order of the scores."""
    if jnp.issubdtype(score.dtype, jnp.unsignedinteger):
        return score + 1
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    # The bits of a float of 0 or more are in its order; abs takes the sign off a negative zero.
    bits = jax.lax.bitcast_convert_type(jnp.abs(score), f"uint{8 * score.dtype.itemsize}")
    return bits + 1


def _first(masks: list[jax.Array], count: jax.Array) -> list[jax.Array]:
    """The first so many that are marked: all below a position."""
    places = _places(masks)

    def before(end: jax.Array) -> list[jax.Array]:
        return [mask & (place < end) for mask, place in zip(masks, places, strict=True)]

    num_bits = sum(mask.size for mask in masks).bit_length()
    end = _search(num_bits, jnp.uint32, lambda tried: _total(before(tried)) <= count)
    return before(end)


def _search(
    num_bits: int, dtype: Any, fits: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The largest number of so many bits that fits, where all smaller ones do."""

    def body(i: jax.Array, found: jax.Array) -> jax.Array:
        bit = (num_bits - 1 - i).astype(dtype)
        tried = found | jnp.left_shift(jnp.ones((), dtype), bit)
        return jnp.where(fits(tried), tried, found)

    return jax.lax.fori_loop(0, num_bits, body, jnp.zeros((), dtype))


def _total(masks: list[jax.Array]) -> jax.Array:
    return sum(map(_count, masks))


def _count(mask: jax.Array) -> jax.Array:
    if mask.size < 1024 or not on_one_cpu_device():
        return mask.sum(dtype=jnp.uint32)
    # XLA adds up one after the other there; eight parts are added up element by element, which
    # takes a sixth of the time.
    flat, size = mask.ravel(), mask.size // 8
    parts = [flat[i * size : (i + 1) * size].astype(jnp.uint32) for i in range(8)]
    rest = flat[8 * size :].sum(dtype=jnp.uint32)
    return jax.lax.optimization_barrier(sum(parts)).sum(dtype=jnp.uint32) + rest


def _places(arrays: list[jax.Array]) -> list[jax.Array]:
    """The flat index of every element, counted on from array to array."""
    places, start = [], 0
    for array in arrays:
        place = jnp.full(array.shape, start, jnp.uint32)
        for axis in range(array.ndim):
            step = jnp.uint32(math.prod(array.shape[axis + 1 :]))
            place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * step
        places.append(place)
        start += array.size
    return places
