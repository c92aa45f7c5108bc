"""Exact selection of the largest scores, on arrays that may be sharded."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlab.core import Masks, natural_sort
from jaxlab.nn.products import on_one_cpu_device

Bounds = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Scalars of a search: shift, threshold, how many keys are larger, how many reach it."""

# Summed in a byte, whose maximum is 255.
_PARTS = 128


def keep_largest(
    scores: Mapping[str, jax.Array], count: int | jax.Array, among: Masks | None = None
) -> Masks:
    """Marks the `count` largest scores of all arrays together.

    Ties go to the first path in natural order, then to the lower flat index. The threshold is found
    byte by byte from counts of larger scores: nothing is sorted or gathered, devices exchange only
    counts, and `count` may be traced.

    Args:
      scores: `{path: array}`, non-negative floats, or unsigned integers below the largest of their
        dtype; all of one dtype, and fewer than 2**32 in total.
      count: how many to mark, at most the number of scores.
      among: `{path: bool array}`: only these may be marked.

    >>> {path: mask.tolist() for path, mask in keep_largest(
    ...     {'a': jnp.array([3., 1., 2.]), 'b': jnp.array([2., 5.])}, 3).items()}
    {'a': [True, False, True], 'b': [False, True]}
    """
    paths = tuple(natural_sort(scores))
    allowed = None if among is None else tuple(among[path] for path in paths)
    # A tuple instead of a dict, so that kernels of one shape share a compiled program.
    marked = _keep_largest(tuple(scores[path] for path in paths), count, allowed)
    return dict(zip(paths, marked, strict=True))


def mark_largest(scores: jax.Array) -> jax.Array:
    """Marks the largest element of an array, the first one in case of ties.

    >>> mark_largest(jnp.array([1., 3., 3.])).tolist()
    [False, True, False]
    """
    (indices,) = _flat_indices([scores])
    is_best = scores == scores.max()
    return is_best & (indices == jnp.where(is_best, indices, scores.size).min())


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
    # Usually exactly `count` reach the threshold, and no tie needs to be broken.
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
    """Converts scores to unsigned integers of at least 1 in the same order."""
    if jnp.issubdtype(score.dtype, jnp.unsignedinteger):
        return score + 1
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    # The bits of non-negative floats are ordered like the floats; abs removes the sign of -0.
    bits = jax.lax.bitcast_convert_type(jnp.abs(score), f"uint{8 * score.dtype.itemsize}")
    return bits + 1


def _without_last_ties(
    keys: list[jax.Array], least: jax.Array, needed: jax.Array
) -> list[jax.Array]:
    """Marks all keys above `least` and the first `needed` of those equal to it."""
    indices, size = _flat_indices(keys), sum(key.size for key in keys)
    equal = [(key == least) & (key > 0) for key in keys]
    # Larger for lower indices, and at least 1.
    ranks = [jnp.where(one, size - index, 0) for one, index in zip(equal, indices, strict=True)]
    last, _, _ = _threshold(ranks, needed)
    return [
        (key > least) | ((rank >= last) & (rank > 0)) for key, rank in zip(keys, ranks, strict=True)
    ]


def _threshold(keys: list[jax.Array], count: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds a threshold that at least `count` keys reach, and as few more as possible.

    It is found byte by byte from the highest, and each byte bit by bit. Once exactly `count` keys
    reach it, the remaining bytes stay zero; otherwise it is the `count`-th largest key.

    Returns:
      The threshold; how many keys are larger, if more than `count` reach it; how many reach it.
    """
    dtype = keys[0].dtype

    def unfinished(bounds: Bounds) -> jax.Array:
        shift, _, _, reached = bounds
        return (shift > 0) & (reached != count)

    def next_byte(bounds: Bounds) -> Bounds:
        shift, least, larger, reached = bounds
        shift = shift - 8
        high = least >> shift >> 8
        # Keys with larger high bytes are already counted, keys with smaller ones are out.
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
    """Finds the largest byte that `count` keys reach, including `larger` ones counted before.

    Returns:
      The byte; how many keys are above it; how many reach it.
    """

    def next_bit(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        byte, above, reached = state
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
    # XLA sums sequentially on one CPU device; adding parts elementwise in bytes, which cannot
    # overflow, takes less than a tenth of the time.
    flat, size = mask.ravel(), mask.size // _PARTS
    parts = flat[: _PARTS * size].reshape(_PARTS, size).sum(axis=0, dtype=jnp.uint8)
    rest = flat[_PARTS * size :].sum(dtype=jnp.uint32)
    return jax.lax.optimization_barrier(parts).sum(dtype=jnp.uint32) + rest


def _flat_indices(arrays: list[jax.Array]) -> list[jax.Array]:
    """Returns the flat index of every element in the concatenation of all arrays."""
    indices, start = [], 0
    for array in arrays:
        index = jnp.full(array.shape, start, jnp.uint32)
        for axis in range(array.ndim):
            step = jnp.uint32(math.prod(array.shape[axis + 1 :]))
            index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * step
        indices.append(index)
        start += array.size
    return indices
