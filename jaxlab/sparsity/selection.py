"""The largest so many of all scores, counted exactly, on arrays that may be sharded."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlab.core import Masks, natural_sort
from jaxlab.nn.products import on_one_cpu_device

Bounds = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Scalars of a search: shift, threshold, how many keys are larger, how many reach it."""

# Added up in a byte, which holds 255.
_PARTS = 128


def keep_largest(
    scores: Mapping[str, jax.Array], count: int | jax.Array, among: Masks | None = None
) -> Masks:
    """Marks the `count` largest of all scores together.

    Ties go to the first path in natural order, and there to the lower flat index. The threshold is
    found byte by byte from counts of what lies above it: nothing is sorted, gathered or moved
    between devices but the counts, and the number may be traced.

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
    least, larger, reached = _threshold(keys, count)
    marked = [(key >= least) & (key > 0) for key in keys]
    # Mostly as many reach the threshold as are asked for, and no tie has to be broken.
    return tuple(
        jax.lax.cond(
            reached > count,
            lambda keys, marked: _without_last_ties(keys, least, count - larger),
            lambda keys, marked: marked,
            keys,
            marked,
        )
    )


def _ordered(score: jax.Array) -> jax.Array:
    """Unsigned integers of 1 or more in the order of the scores."""
    if jnp.issubdtype(score.dtype, jnp.unsignedinteger):
        return score + 1
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    # The bits of a float of 0 or more are in its order; abs takes the sign off a negative zero.
    bits = jax.lax.bitcast_convert_type(jnp.abs(score), f"uint{8 * score.dtype.itemsize}")
    return bits + 1


def _without_last_ties(
    keys: list[jax.Array], least: jax.Array, needed: jax.Array
) -> list[jax.Array]:
    """What is above the least, and so many of those equal to it, the first ones."""
    places, size = _places(keys), sum(key.size for key in keys)
    equal = [(key == least) & (key > 0) for key in keys]
    # The lower the place, the larger: of 1 or more.
    ranks = [jnp.where(one, size - place, 0) for one, place in zip(equal, places, strict=True)]
    last, _, _ = _threshold(ranks, needed)
    return [
        (key > least) | ((rank >= last) & (rank > 0)) for key, rank in zip(keys, ranks, strict=True)
    ]


def _threshold(keys: list[jax.Array], count: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A threshold that `count` keys or more reach, the fewest possible.

    It is found byte by byte from the highest on, each bit by bit. Once exactly `count` reach it,
    the bytes that are left stay zero; otherwise it is the `count`-th largest key.

    Returns:
      The threshold; how many keys are larger, if more than `count` reach it; how many reach it.
    """
    dtype = keys[0].dtype

    def unfinished(found: Bounds) -> jax.Array:
        shift, _, _, reached = found
        return (shift > 0) & (reached != count)

    def next_byte(found: Bounds) -> Bounds:
        shift, least, larger, reached = found
        shift = shift - 8
        high = least >> shift >> 8
        # What lies above these bytes is counted already, what lies below them is out.
        digits = [
            jnp.where(key >> shift >> 8 == high, (key >> shift).astype(jnp.uint8), 0)
            for key in keys
        ]
        byte, larger, reached = _largest_byte(digits, count, larger, reached)
        return shift, least | (byte.astype(dtype) << shift), larger, reached

    zero = jnp.zeros((), jnp.uint32)
    first = (
        jnp.asarray(8 * dtype.itemsize, dtype),
        jnp.zeros((), dtype),
        zero,
        jnp.full((), sum(key.size for key in keys), jnp.uint32),
    )
    _, least, larger, reached = jax.lax.while_loop(unfinished, next_byte, first)
    return least, larger, reached


def _largest_byte(
    digits: list[jax.Array], count: jax.Array, larger: jax.Array, reached: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest byte that, with `larger` ones elsewhere, `count` reach.

    Returns:
      The byte; how many lie above it; how many reach it.
    """

    def next_bit(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        byte, above, reached = found
        tried = byte | (jnp.uint8(128) >> i.astype(jnp.uint8))
        total = larger + sum(_count(digit >= tried) for digit in digits)
        fits = total >= count
        return (
            jnp.where(fits, tried, byte),
            jnp.where(fits, above, total),
            jnp.where(fits, total, reached),
        )

    return jax.lax.fori_loop(0, 8, next_bit, (jnp.uint8(0), larger, reached))


def _count(mask: jax.Array) -> jax.Array:
    if mask.size < 1024 or not on_one_cpu_device():
        return mask.sum(dtype=jnp.uint32)
    # XLA adds up one after the other there; parts are added up element by element, in bytes that
    # hold their number, in less than a tenth of the time.
    flat, size = mask.ravel(), mask.size // _PARTS
    parts = flat[: _PARTS * size].reshape(_PARTS, size).sum(axis=0, dtype=jnp.uint8)
    rest = flat[_PARTS * size :].sum(dtype=jnp.uint32)
    return jax.lax.optimization_barrier(parts).sum(dtype=jnp.uint32) + rest


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
