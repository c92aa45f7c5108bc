"""Softmax attention over ranges of keys as compiled code for CPUs, called through `jax.ffi`.

Queries meet their keys tile by tile, forward and backward: logits, weights and masks are never
arrays, keys are not copied window by window, and rows and heads run on all free cores. The
operations of `tiles` compute the same and are its reference.

See `compiled` for how it is built. It has a derivative of its own (`jax.custom_vjp`), so there is
no forward mode through it, and no Hessian-vector products. Plain operations have both modes.

Letters: b or n rows, t queries, s keys, h heads, g heads of keys and values, k width of a head,
m distances, r readings, j blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import map_shards
from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.cpu.compiled import TARGETS, require_compiled


@dataclasses.dataclass(frozen=True)
class CompiledReading:
    """Queries and what they read: query i sees the keys from `first` to `last`, both included.

    Attributes:
      q: float32 queries [b, t, h, k].
      keys: float32 [b, s, g, k], in one piece or in two that follow each other; g divides h, and
        neighbouring heads share keys. Or one array [j, b, s, g, k] for j blocks of queries, each of
        which reads its own.
      values: of the same shapes.
      first: int32 [b, t], the first key that a query sees.
      last: int32 [b, t], the last one; if it is below the first, the query sees none.
      bias: float32 [h, m], added to the logits by distance, which of query i and key j is
        `i + offset - j`; keys at a negative distance, or at m and more, are not seen. None: no
        bias, and no limit.
      offset: see there.
      mask: float32 [b, s], added to the logits of a key: 0, or `tiles.MASKED` to hide it. Not
        differentiated.
      scale: float32 [h]: queries are divided by their length and multiplied by it; None: they are
        scaled already.
      unit: int32 or bool [pieces], the pieces of keys to divide by their length; None: none.
    """

    q: jax.Array
    keys: Sequence[jax.Array]
    values: Sequence[jax.Array]
    first: jax.typing.ArrayLike
    last: jax.typing.ArrayLike
    bias: jax.Array | None = None
    offset: int = 0
    mask: jax.Array | None = None
    scale: jax.Array | None = None
    unit: jax.Array | Sequence[bool] | None = None

    def num_keys(self) -> int:
        """How many keys a row has, or a block of a row."""
        return sum(x.shape[-3] for x in self.keys)

    def arrays(self) -> tuple[jax.Array, ...]:
        """What the compiled code takes, in its order; arrays that are absent have no elements.

        Raises:
          TypeError: shapes or dtypes that do not fit each other.
        """
        count = len(self.keys)
        unit = jnp.asarray([False] * count if self.unit is None else self.unit, jnp.int32)
        if count not in (1, 2) or len(self.values) != count or unit.shape != (count,):
            raise TypeError(
                f"keys in {count} pieces, values in {len(self.values)} and unit of shape "
                f"{unit.shape}; expected one or two of each"
            )
        (b, t, h, k), s, g = self.q.shape, self.num_keys(), self.keys[0].shape[-2]
        blocks = self.keys[0].shape[:-4]  # of queries that have keys of their own
        shapes = [(*blocks, b, x.shape[-3], g, k) for x in self.keys]
        given = [*zip(self.keys, shapes, strict=True), *zip(self.values, shapes, strict=True)]
        given += [] if self.bias is None else [(self.bias, (h, self.bias.shape[-1]))]
        given += [] if self.mask is None else [(self.mask, (b, s))]
        given += [] if self.scale is None else [(self.scale, (h,))]
        whole = h % g == 0 and (not blocks or (count == 1 and t % blocks[0] == 0))
        if not whole or any(x.shape != to or x.dtype != jnp.float32 for x, to in given):
            found = ", ".join(f"{x.dtype}{list(x.shape)}" for x, _ in given)
            raise TypeError(f"queries float32{[b, t, h, k]} do not fit the other arrays: {found}")
        pieces = [x for pair in zip(self.keys, self.values, strict=True) for x in pair]
        if g < h and not on_one_cpu_device():  # a device may hold query heads without their keys
            pieces = [jnp.repeat(x, h // g, axis=-2) for x in pieces]
        if count == 1:
            pieces += [jnp.zeros((b, 0, pieces[0].shape[-2], k), jnp.float32)] * 2
        return (
            self.q[:, :, None],
            *pieces,
            *(jnp.broadcast_to(x, (b, t)).astype(jnp.int32) for x in (self.first, self.last)),
            jnp.zeros((h, 0), jnp.float32) if self.bias is None else self.bias,
            jnp.zeros((b, 0), jnp.float32) if self.mask is None else self.mask,
            jnp.zeros((0,), jnp.float32) if self.scale is None else self.scale,
            jnp.broadcast_to(unit, (2,)),
        )


_ROWS, _BLOCKS = ("batch", None, "heads", None), (None, "batch", None, "heads", None)
_AXES = (
    ("batch", None, None, "heads", None),
    *(_ROWS,) * 4,
    *(("batch", None),) * 2,
    ("heads", None),
    ("batch", None),
    ("heads",),
    (None,),
)  # of `CompiledReading.arrays`
_KEYS, _BIAS, _MASK, _SCALE = slice(1, 5), 7, 8, 9


def attend_readings(*readings: CompiledReading) -> jax.Array:
    """The heads of each reading, [b, t, h, k], side by side: [b, t, r * h, k].

    A query that sees no key gives zero. On a mesh each device reads its own rows and heads.

    Args:
      readings: with queries of one shape.

    Raises:
      UsageError: another platform or dtype, or no compiler; see `compiled`.
      TypeError: arrays whose shapes or dtypes do not fit each other.
    """
    for reading in readings:
        require_compiled(reading.q.dtype)
    shapes = {reading.q.shape for reading in readings}
    if len(shapes) > 1:
        raise TypeError(f"readings with queries of several shapes: {sorted(shapes)}")
    arrays = [x for reading in readings for x in reading.arrays()]
    axes = [
        _BLOCKS if x.ndim == 5 and names is _ROWS else names
        for x, names in zip(arrays, _AXES * len(readings), strict=True)
    ]
    offsets = tuple(reading.offset for reading in readings)
    out = map_shards(functools.partial(_attend, offsets), *axes)(*arrays)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(offsets: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
    return _attend_forward(offsets, *arrays)[0]


def _attend_forward(
    offsets: tuple[int, ...], *arrays: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    b, t, _, h, k = arrays[0].shape
    heads = jax.ShapeDtypeStruct((b, t, len(offsets), h, k), jnp.float32)
    each_top = jax.ShapeDtypeStruct((b, h, t), jnp.float32)
    out, *tops = _call("forward", offsets, [heads, *[each_top] * len(offsets)], *arrays)
    return out, (*arrays, out, *tops)


def _attend_backward(
    offsets: tuple[int, ...], kept: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array | np.ndarray, ...]:
    readings = _by_reading(offsets, kept)
    outs = []
    for x in readings:
        rows, h = x[0].shape[0] * _num_blocks(x), x[0].shape[3]
        scale = (rows, h) if x[_SCALE].size else (0,)
        outs += [x[0], *x[_KEYS], jax.ShapeDtypeStruct((rows, *x[_BIAS].shape), jnp.float32)]
        outs += [jax.ShapeDtypeStruct(scale, jnp.float32)]
    found = _call("backward", offsets, outs, *kept, dout)
    each = len(found) // len(offsets)
    grads = []
    for p, x in enumerate(readings):
        *dqkv, dbias, dscale = found[p * each : (p + 1) * each]
        dscale = dscale.sum(axis=0) if x[_SCALE].size else x[_SCALE]
        grads += [
            *dqkv,
            *(np.zeros(a.shape, jax.dtypes.float0) for a in x[5:7]),
            dbias.sum(axis=0),
            jnp.zeros_like(x[_MASK]),
            dscale,
            np.zeros((2,), jax.dtypes.float0),
        ]
    return tuple(grads)


_attend.defvjp(_attend_forward, _attend_backward)


def _by_reading(offsets: tuple[int, ...], arrays: Sequence) -> list[Sequence]:
    return [arrays[p * len(_AXES) : (p + 1) * len(_AXES)] for p in range(len(offsets))]


def _num_blocks(arrays: Sequence[jax.Array]) -> int:
    """The number of blocks of queries that have keys of their own."""
    return arrays[1].shape[0] if arrays[1].ndim == 5 else 1


def _call(name: str, offsets: tuple[int, ...], outs: list, *arrays: jax.Array) -> list[jax.Array]:
    flops = 0  # an upper bound, for plans
    for x in _by_reading(offsets, arrays):
        (b, t, _, h, k), s = x[0].shape, x[1].shape[-3] + x[3].shape[-3]
        pairs = b * h * t * min(x[_BIAS].shape[1] or s, s)
        flops += {"forward": 2, "backward": 5}[name] * 2 * pairs * k
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
    call = jax.ffi.ffi_call(TARGETS[f"attention_{name}"], shapes, vmap_method="sequential")
    return list(call(*arrays, offsets=np.array(offsets, np.int64), flops=np.int64(flops)))
