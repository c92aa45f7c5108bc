"""Sliding-window attention as one fused kernel for TPUs, written in Pallas.

`attend_windows` computes what `tiles.attend_blocks` does, but has no array of logits, weights or
masks in main memory: a tile of queries stays on the chip while the tiles of keys that it may see
pass by, with an online softmax (arXiv 1805.02867; in tiles 2205.14135). The bias by distance comes
as one row for each tile and is laid out on the chip, once for each head.

It has a derivative of its own (`jax.custom_vjp`), so there is no forward mode through it, and no
Hessian-vector products. The plain function has both modes and is its reference.

Letters: b rows, h heads, t queries, s keys (those of the window before included), k width of a
head, i tiles of queries, n tiles of keys that a tile of queries sees, m places of distances.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlab.core import UsageError, map_shards, platform
from jaxlab.nn.tiles import FLOOR, MASKED, tile_size

TILE = 256
"""The most queries, and keys, of a tile: with a window of 512, a tile of 256 queries meets 768 keys
where one of 512 meets 1,024, and its logits take 768 KiB of the 16 MiB on the chip."""

LANES = 128
"""Numbers side by side in a TPU's vector; windows must be multiples of it."""

_NT = (((1,), (1,)), ((), ()))  # x @ y.T
_NN = (((1,), (0,)), ((), ()))  # x @ y
_TN = (((0,), (0,)), ((), ()))  # x.T @ y


def distances(window: int) -> np.ndarray:
    """Distances [n, m] whose biases `attend_windows` takes, for tiles of `tile_size(window, TILE)`.

    Tile o of keys starts window - o * tile before the tile of queries. Its row holds, at place m,
    the distance of query t and key s for t - s = m, counted modulo twice the tile: the place in
    the middle belongs to no pair.
    """
    size = tile_size(window, TILE)
    place_m = np.arange(2 * size)
    base_n = window - size * np.arange(window // size + 1)
    return base_n[:, None] + np.where(place_m < size, place_m, place_m - 2 * size)


def require_tpu() -> None:
    """Refuses programs for other platforms.

    Raises:
      UsageError: names the platform.
    """
    if platform() != "tpu":
        raise UsageError(
            f"backend 'pallas' runs on TPUs, and this program is for {platform()}; take "
            "backend='plain'"
        )


def require_kernel(window: int, num_tokens: int) -> None:
    """Refuses what the kernel cannot run.

    Raises:
      UsageError: another platform than TPU; a window that is not a multiple of `LANES`; a mesh that
        shards the tokens of a row.
    """
    require_tpu()
    if window % LANES:
        raise UsageError(
            f"window={window} is not a multiple of {LANES}, as backend 'pallas' needs; "
            f"nearest: {max(window // LANES, 1) * LANES}, {-(-window // LANES) * LANES}"
        )
    if (shards := jax.sharding.get_abstract_mesh().shape.get("sequence", 1)) > 1:
        raise UsageError(
            f"a mesh of sequence={shards} shards the {num_tokens} tokens of a row, which backend "
            "'pallas' reads whole; set sequence=1 or take backend='plain'"
        )


def attend_windows(
    q_bhtk: jax.Array,
    k_bhsk: jax.Array,
    v_bhsk: jax.Array,
    age_bt: jax.Array,
    bias_hnm: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of t tokens over themselves and the window before them.

    On a mesh each device runs it on its own rows and heads.

    Args:
      q_bhtk: scaled queries [b, h, t, k].
      k_bhsk: keys [b, h, w + t, k]: those of the window before the tokens, then their own.
      v_bhsk: values of the same.
      age_bt: int32 [b, t], tokens before each token in its document, in earlier segments too: it
        sees no key at a larger distance.
      bias_hnm: float32 [h, n, m], added to the logits, for the `distances` of the window; `MASKED`
        outside it.
      interpret: run it as plain operations, on any platform and for any window; for tests.

    Returns:
      [b, h, t, k] in the dtype of the values; a query that sees no key gives zero.
    """
    window = k_bhsk.shape[2] - q_bhtk.shape[2]
    rows = ("batch", "heads", None, None)
    run = map_shards(
        functools.partial(_attend, _Plan(window, interpret)),
        rows,
        rows,
        rows,
        ("batch", None),
        ("heads", None, None),
    )
    return run(q_bhtk, k_bhsk, v_bhsk, age_bt, bias_hnm)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Tiles of a window, and how kernels are called for them."""

    window: int
    interpret: bool

    @property
    def size(self) -> int:
        return tile_size(self.window, TILE)

    @property
    def num(self) -> int:
        """Tiles of keys that a tile of queries sees."""
        return self.window // self.size + 1

    def call(
        self,
        kernel: Any,
        q: jax.Array,
        steps: int,
        products: int,
        outs: dict[str, Any],
        scratch: list[Any],
        ins: dict[str, jax.Array],
    ) -> list[jax.Array]:
        """Runs a kernel over heads, rows and `steps` tiles, innermost last, one after the other.

        `ins` and `outs` are named by what `_block` knows; keys and values come once a tile.
        """
        b, h, t, _ = q.shape
        num, tiles = self.num, t // self.size
        given: list[tuple[jax.Array, Any]] = [
            (ins[name], self._block(name, ins[name].shape, tiles, o))
            for name in ins
            for o in range(num if name in ("k", "v") else 1)
        ]
        pairs = b * h * t * num * self.size
        moved = sum(
            b * h * tiles * math.prod(d for d in spec.block_shape if d) * x.dtype.itemsize
            for x, spec in given
            if len(x.shape) == 4
        )
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=(h, b, steps),
            in_specs=[spec for _, spec in given],
            out_specs=[self._block(name, out.shape, tiles, 0) for name, out in outs.items()],
            out_shape=list(outs.values()),
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",) * 3),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * q.shape[3],
                transcendentals=pairs,
                bytes_accessed=moved + sum(o.size * o.dtype.itemsize for o in outs.values()),
            ),
            interpret=self.interpret,
        )(*(x for x, _ in given))

    def _block(self, name: str, shape: tuple[int, ...], tiles: int, o: int) -> pl.BlockSpec:
        """The part of an array that step i of row b and head h holds; o: which tile of keys."""
        size, keys = self.size, tiles + self.num - 1

        def query(i: Any) -> Any:  # steps behind the last tile of queries only hand out keys
            return jnp.minimum(i, tiles - 1)

        if name in ("bias", "dbias"):
            return pl.BlockSpec((None, *shape[1:]), lambda h, b, i: (h, 0, 0))
        if name == "age":
            return pl.BlockSpec((None, 1, size), lambda h, b, i: (b, 0, query(i)))
        if name in ("top", "delta"):
            return pl.BlockSpec((None, None, 1, size), lambda h, b, i: (b, h, 0, query(i)))
        if name in ("k", "v", "dk", "dv"):
            return pl.BlockSpec(
                (None, None, size, shape[3]),
                lambda h, b, i: (b, h, jnp.minimum(i + o, keys - 1), 0),
            )
        return pl.BlockSpec((None, None, size, shape[3]), lambda h, b, i: (b, h, query(i), 0))

    def scratch(self) -> Any:
        """A square of keys and queries for each tile of keys, float32 [n, s, t]."""
        return pltpu.VMEM((self.num, self.size, self.size), jnp.float32)

    def logits(self, o: int, k_sk: Any, q_tk: Any, bias_st: Any, age_1t: Any) -> jax.Array:
        """Logits [s, t] of tile o of keys, `MASKED` where the key is of an earlier document."""
        shape = (self.size, self.size)
        back_st = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        back_st -= jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        seen_st = back_st + (self.window - o * self.size) <= age_1t
        return jnp.where(seen_st, _dot(k_sk, q_tk, _NT) + bias_st, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: _Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    age_bt: jax.Array,
    bias_hnm: jax.Array,
) -> jax.Array:
    return _attend_forward(plan, q, k, v, age_bt, bias_hnm)[0]


def _attend_forward(
    plan: _Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    age_bt: jax.Array,
    bias_hnm: jax.Array,
) -> tuple[jax.Array, Any]:
    b, h, t, _ = q.shape
    age_b1t = age_bt[:, None]
    outs = {
        "out": jax.ShapeDtypeStruct(q.shape, v.dtype),
        "top": jax.ShapeDtypeStruct((b, h, 1, t), jnp.float32),
    }
    out, top = plan.call(
        _forward_kernel,
        q,
        t // plan.size,
        2,
        outs,
        [plan.scratch()],
        {"age": age_b1t, "bias": bias_hnm, "q": q, "k": k, "v": v},
    )
    return out, (q, k, v, age_b1t, bias_hnm, out, top)


def _attend_backward(plan: _Plan, kept: Any, dout: jax.Array) -> tuple[Any, ...]:
    q, k, v, age_b1t, bias_hnm, out, top = kept
    steps, width = q.shape[2] // plan.size + plan.num - 1, q.shape[3]
    delta_bh1t = jnp.einsum("bhtk,bhtk->bht", dout, out, preferred_element_type=jnp.float32)[
        :, :, None
    ]
    outs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in {"dq": q, "dk": k, "dv": v, "dbias": bias_hnm}.items()
    }
    sums = pltpu.VMEM((plan.num, plan.size, width), jnp.float32)
    dq, dk, dv, dbias = plan.call(
        _backward_kernel,
        q,
        steps,
        5,
        outs,
        [plan.scratch(), plan.scratch(), sums, sums],
        {
            "age": age_b1t,
            "bias": bias_hnm,
            "top": top,
            "delta": delta_bh1t,
            "q": q,
            "dout": dout,
            "k": k,
            "v": v,
        },
    )
    no_age = np.zeros((age_b1t.shape[0], age_b1t.shape[2]), jax.dtypes.float0)
    return dq, dk, dv, no_age, dbias


_attend.defvjp(_attend_forward, _attend_backward)


def _forward_kernel(plan: _Plan, age: Any, bias: Any, q: Any, *refs: Any) -> None:
    keys, values, (out, top, squares) = refs[: plan.num], refs[plan.num : -3], refs[-3:]
    _lay_out_bias(plan, bias, squares)
    # One key with the logit FLOOR and a zero value has been seen.
    top_1t = jnp.full((1, plan.size), FLOOR, jnp.float32)
    total_1t, values_kt = jnp.ones_like(top_1t), jnp.zeros(q.shape[::-1], jnp.float32)
    for o in range(plan.num):
        logits_st = plan.logits(o, keys[o][...], q[...], squares[o], age[...])
        before_1t, top_1t = top_1t, jnp.maximum(top_1t, logits_st.max(axis=0, keepdims=True))
        weights_st, shrink_1t = jnp.exp(logits_st - top_1t), jnp.exp(before_1t - top_1t)
        total_1t = total_1t * shrink_1t + weights_st.sum(axis=0, keepdims=True)
        found_kt = _dot(values[o][...], weights_st.astype(values[o].dtype), _TN)
        values_kt = values_kt * shrink_1t + found_kt
    out[...] = (values_kt / total_1t).T.astype(out.dtype)
    top[...] = top_1t + jnp.log(total_1t)


def _backward_kernel(
    plan: _Plan, age: Any, bias: Any, top: Any, delta: Any, q: Any, dout: Any, *refs: Any
) -> None:
    keys, values = refs[: plan.num], refs[plan.num : 2 * plan.num]
    dq, dk, dv, dbias, squares, dsquares, dk_sums, dv_sums = refs[2 * plan.num :]
    b, i = pl.program_id(1), pl.program_id(2)
    last = pl.num_programs(2) - 1
    _lay_out_bias(plan, bias, squares)

    @pl.when((b == 0) & (i == 0))
    def _() -> None:
        dsquares[...] = jnp.zeros(dsquares.shape, jnp.float32)

    @pl.when(i == 0)
    def _() -> None:
        dk_sums[...] = jnp.zeros(dk_sums.shape, jnp.float32)
        dv_sums[...] = jnp.zeros(dv_sums.shape, jnp.float32)

    @pl.when(i <= last - (plan.num - 1))
    def _() -> None:
        dq_kt = jnp.zeros(q.shape[::-1], jnp.float32)
        for o in range(plan.num):
            k_sk, place = keys[o][...], jax.lax.rem(i + o, plan.num)
            logits_st = plan.logits(o, k_sk, q[...], squares[o], age[...])
            weights_st = jnp.exp(logits_st - top[...])
            dweights_st = _dot(values[o][...], dout[...], _NT)
            dlogits_st = weights_st * (dweights_st - delta[...])
            dsquares[o] += dlogits_st
            dlogits_st = dlogits_st.astype(k_sk.dtype)
            dv_sums[place] += _dot(weights_st.astype(dout.dtype), dout[...], _NN)
            dk_sums[place] += _dot(dlogits_st, q[...], _NN)
            dq_kt += _dot(k_sk, dlogits_st, _TN)
        dq[...] = dq_kt.T.astype(dq.dtype)

    # No later tile of queries sees the first of these keys.
    place = jax.lax.rem(i, plan.num)
    dk[...], dv[...] = dk_sums[place].astype(dk.dtype), dv_sums[place].astype(dv.dtype)
    dk_sums[place] = jnp.zeros(dk_sums.shape[1:], jnp.float32)
    dv_sums[place] = jnp.zeros(dv_sums.shape[1:], jnp.float32)

    @pl.when((b == pl.num_programs(1) - 1) & (i == last))
    def _() -> None:
        for o in range(plan.num):
            wide_sm = jnp.concatenate([dsquares[o], jnp.zeros_like(dsquares[o])], axis=1)
            columns_sm = _row_by_row(wide_sm, -1)  # each holds one distance
            dbias[pl.ds(o, 1)] = columns_sm.sum(axis=0, keepdims=True)


def _lay_out_bias(plan: _Plan, bias_nm: Any, squares_nst: Any) -> None:
    """Writes the squares of a head at its first step: row s is the row of distances moved by s."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        for o in range(plan.num):
            wide_sm = jnp.broadcast_to(bias_nm[pl.ds(o, 1)], (plan.size, 2 * plan.size))
            squares_nst[o] = _row_by_row(wide_sm, 1)[:, : plan.size]


def _row_by_row(x_sm: jax.Array, direction: int) -> jax.Array:
    """Row s moved around by s places, to higher ones (1) or to lower ones (-1).

    All rows move by a power of two at a time, and those that must not are put back: TPUs before
    v5 do not move each by its own number.
    """
    rows, width = x_sm.shape
    row_sm = jax.lax.broadcasted_iota(jnp.int32, x_sm.shape, 0)
    for bit in range((rows - 1).bit_length()):
        moved_sm = pltpu.roll(x_sm, (direction << bit) % width, 1)
        x_sm = jnp.where((row_sm >> bit) & 1 == 1, moved_sm, x_sm)
    return x_sm


def _dot(x: jax.Array, y: jax.Array, contracted: Any) -> jax.Array:
    return jax.lax.dot_general(x, y, contracted, preferred_element_type=jnp.float32)
