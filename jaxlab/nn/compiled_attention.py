"""Softmax attention over ranges of keys as compiled code for CPUs, called through `jax.ffi`.

Queries meet their keys tile by tile, forward and backward: no logits, weights or masks are ever
arrays, keys are not copied window by window, and rows and heads run on all cores that are free. The
operations of `tiles` compute the same, and are its reference.

See `compiled` for how it is built. It has a derivative of its own (`jax.custom_vjp`), which closes
forward mode: no Hessian-vector products through it. Plain operations have both modes.

Letters: n rows, t queries, s keys, h heads, g heads of keys and values, k width of a head, m
distances.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import map_shards
from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.compiled import TARGETS, require_compiled


def attend_ranges(
    q_nthk: jax.Array,
    k_nsgk: jax.Array,
    v_nsgk: jax.Array,
    first_nt: jax.Array,
    last_nt: jax.Array,
    *,
    bias_hm: jax.Array | None = None,
    offset: int = 0,
    mask_ns: jax.Array | None = None,
) -> jax.Array:
    """Attention in which query i sees the keys from `first` to `last`, both included.

    On a mesh every device runs it on its own rows and heads.

    Args:
      q_nthk: float32 queries [n, t, h, k], already scaled.
      k_nsgk: float32 keys [n, s, g, k]; g divides h, and neighbouring heads share keys.
      v_nsgk: values of the same.
      first_nt: int32 [n, t], the first key that a query sees.
      last_nt: int32 [n, t], the last one; less than the first: it sees none.
      bias_hm: float32 [h, m], added to the logits by distance, which of query i and key j is
        `i + offset - j`; keys at a negative distance, or at m and more, are not seen. None: no
        bias, and no limit.
      offset: see there.
      mask_ns: float32 [n, s], added to the logits of a key: 0, or `tiles.MASKED` to hide it. No
        derivative is taken by it.

    Returns:
      [n, t, h, k]; a query that sees no key gives zero.

    Raises:
      UsageError: another platform or dtype, or no compiler; see `compiled`.
      TypeError: arrays whose shapes or dtypes do not fit each other.
    """
    require_compiled(q_nthk.dtype)
    n, t, h, k = q_nthk.shape
    _, s, g, _ = k_nsgk.shape
    given = [(k_nsgk, (n, s, g, k)), (v_nsgk, (n, s, g, k))]
    given += [] if bias_hm is None else [(bias_hm, (h, bias_hm.shape[-1]))]
    given += [] if mask_ns is None else [(mask_ns, (n, s))]
    if h % g or any(x.shape != shape or x.dtype != jnp.float32 for x, shape in given):
        found = ", ".join(f"{x.dtype}{list(x.shape)}" for x, _ in given)
        raise TypeError(f"queries float32{[n, t, h, k]} do not fit the other arrays: {found}")
    if k_nsgk.shape[2] < h and not on_one_cpu_device():  # a device may hold heads without theirs
        k_nsgk, v_nsgk = (jnp.repeat(x, h // x.shape[2], axis=2) for x in (k_nsgk, v_nsgk))
    bias_hm = jnp.zeros((h, 0), jnp.float32) if bias_hm is None else bias_hm
    mask_ns = jnp.zeros((n, 0), jnp.float32) if mask_ns is None else mask_ns
    rows, of_token = ("batch", None, "heads", None), ("batch", None)
    run = map_shards(
        functools.partial(_attend, offset), rows, rows, rows, of_token, of_token,
        ("heads", None), of_token,
    )
    ranges = (jnp.broadcast_to(x, (n, t)).astype(jnp.int32) for x in (first_nt, last_nt))
    return run(q_nthk, k_nsgk, v_nsgk, *ranges, bias_hm, mask_ns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(offset: int, q, k, v, first_nt, last_nt, bias_hm, mask_ns) -> jax.Array:
    return _attend_forward(offset, q, k, v, first_nt, last_nt, bias_hm, mask_ns)[0]


def _attend_forward(offset: int, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q_nthk = arrays[0]
    n, t, h, _ = q_nthk.shape
    top_nht = jax.ShapeDtypeStruct((n, h, t), jnp.float32)
    out, top = _call("forward", offset, (q_nthk, top_nht), *arrays)
    return out, (*arrays, out, top)


def _attend_backward(
    offset: int, kept: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array | np.ndarray, ...]:
    q, k, v, first_nt, _, bias_hm, mask_ns = kept[:7]
    dbias_nhm = jax.ShapeDtypeStruct((q.shape[0], *bias_hm.shape), jnp.float32)
    dq, dk, dv, dbias = _call("backward", offset, (q, k, v, dbias_nhm), *kept, dout)
    of_range = np.zeros(first_nt.shape, jax.dtypes.float0)
    return dq, dk, dv, of_range, of_range, dbias.sum(axis=0), jnp.zeros_like(mask_ns)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(name: str, offset: int, outs: tuple, *arrays: jax.Array) -> list[jax.Array]:
    (n, t, h, k), s, m = arrays[0].shape, arrays[1].shape[1], arrays[5].shape[1]
    pairs = n * h * t * min(m or s, s)  # the most that may be read; plans count them
    flops = {"forward": 2, "backward": 5}[name] * 2 * pairs * k
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
    call = jax.ffi.ffi_call(TARGETS[f"attention_{name}"], shapes, vmap_method="sequential")
    return call(*arrays, offset=np.int64(offset), flops=np.int64(flops))
