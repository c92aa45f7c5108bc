"""Multi-head attention: causal, bidirectional or cross; full or in a sliding window."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError, constrain, platform
from jaxlab.nn.cpu.compiled_attention import Reading, attend_readings
from jaxlab.nn.decode import RingDecoding
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import l2_normalise
from jaxlab.nn.position import Rotary, T5Bias
from jaxlab.nn.products import KERNELS
from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED, Kept, Readable, attend_all, attend_blocks, tile_size
from jaxlab.nn.tpu.windowed_kernel import attend_windows, distances, require_kernel

Carry = dict[str, jax.Array]

"""What can read a window."""


class Attention(RingDecoding, nnx.Module):
    """Multi-head attention whose causal form can be limited to a window and carried on.

    Logits are `scale_h * (q . k + bias_h(distance))` for L2-normalised q and k with a learned
    scale a head (`normalise`, arXiv 2203.07852), else `q . k / sqrt(head_dim) + bias`.

    With `window=w` a token sees w tokens: itself and the w - 1 before, or the w before it
    (`include_self=False`). The last w keys and values are carried to the next segment.

    With `attention_dropout` above 0 a call with a `key` zeroes that share of the weights after the
    softmax and scales the rest by 1 / (1 - rate). As in the source's code, there is one mask [h,
    queries, keys] for all rows of the batch, and with a window for all blocks of the segment: that
    of two tokens is then drawn for their places in their windows, whatever tiles they are read in.

    Args:
      width: d, of inputs and outputs.
      num_heads: h; `num_kv_heads` of keys and values divides it (1: multi-query).
      head_dim: k, by default width / num_heads.
      window: w, or None for all tokens of the segment.
      causal: False looks both ways (no window, no carry).
      position: `T5Bias` (causal) or `Rotary` or None.
      extra_heads: heads whose values come from elsewhere and share the output projection.
      use_bias: of every projection.
      kernel: what reads a window: 'plain' operations, or a fused kernel, which has no forward mode
        of differentiation and no dropout: 'pallas' for TPUs (see `windowed_kernel`), 'compiled' for
        CPUs with a C++ compiler (see `compiled_attention`), which computes the projections too.
      attention_dropout: rate in [0, 1) at which weights are dropped, where a key is given.

    Raises:
      UsageError: sizes that do not divide, or a combination that does not exist; in a call, a
        kernel that cannot run there.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        num_kv_heads: int | None = None,
        window: int | None = None,
        causal: bool = True,
        include_self: bool = True,
        normalise: bool = False,
        head_scale: float = 1.0,
        position: T5Bias | Rotary | None = None,
        extra_heads: int = 0,
        use_bias: bool = False,
        kernel: Literal["plain", "pallas", "compiled"] = "plain",
        attention_dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        head_dim = split_width(width, num_heads) if head_dim is None else head_dim
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise UsageError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
        if not causal and (window is not None or not include_self):
            raise UsageError("bidirectional attention (causal=False) has no window")
        if causal and window is None and not include_self:
            raise UsageError("include_self=False needs a window: full attention includes the token")
        if kernel not in KERNELS or (kernel != "plain" and window is None):
            raise UsageError(
                f"kernel={kernel!r} with window={window}; 'plain', or with a window one of "
                f"{', '.join(KERNELS[1:])}"
            )
        require_dropout(attention_dropout, kernel)
        heads, kv = (num_heads, head_dim), (num_kv_heads, head_dim)
        axes = ("embed", "heads", None)
        how = {"use_bias": use_bias, "kernel": kernel, "dtype": dtype, "rngs": rngs}
        self.query = projection(width, heads, axes, **how)
        self.key = projection(width, kv, axes, **how)
        self.value = projection(width, kv, axes, **how)
        out = (num_heads + extra_heads, head_dim)
        self.output = projection(out, width, ("heads", None, "embed"), **how)
        self.scale = head_scales(num_heads, head_scale) if normalise else None
        self.position = position
        self.num_heads, self.head_dim, self.num_kv_heads = num_heads, head_dim, num_kv_heads
        self.window, self.causal, self.include_self = window, causal, include_self
        self.kernel, self.attention_dropout, self.dtype = kernel, attention_dropout, dtype

    def __call__(
        self,
        x_btd: jax.Array,
        segment: Segment | None = None,
        carry: Carry | None = None,
        *,
        context_bsd: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry | None]:
        """Mixes the tokens of a segment, or reads a context.

        Args:
          x_btd: [b, t, d].
          segment: document starts in it; None: each row is one fresh document.
          carry: keys and values of the window before, from the last call or `init_carry`.
          context_bsd: [b, s, d] for cross-attention (bidirectional, all of it is seen).
          key: turns dropout of the weights on.

        Returns:
          [b, t, d] and the keys and values after the segment: of the last window, or of all of
          the segment without one (a cache can be filled from them); None if not causal.
        """
        if self.kernel == "compiled":
            reading, carry = self.reading(*self.projections(x_btd, context_bsd), segment, carry)
            return self.output(attend_readings(reading)), carry
        values_bthk, carry = self.read(*self.heads(x_btd, context_bsd), segment, carry, key=key)
        return self.output(values_bthk), carry

    def projections(
        self, x_btd: jax.Array, context_bsd: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [b, t, h, k], keys and values [b, s, kv heads, k]; none is scaled yet."""
        source = x_btd if context_bsd is None else context_bsd
        return self.query(x_btd), self.key(source), self.value(source)

    def heads(
        self, x_btd: jax.Array, context_bsd: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [b, t, h, k], scaled; keys and values [b, s, kv heads, k]."""
        q, k, v = self.projections(x_btd, context_bsd)
        return scale_queries(q, self.scale), self._unit(k), v

    def read(
        self,
        q_bthk: jax.Array,
        k_bshk: jax.Array,
        v_bshk: jax.Array,
        segment: Segment | None,
        carry: Carry | None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry | None]:
        """Values [b, t, h, k] that the queries find, and the carry after the segment."""
        if self.window is None:
            after = {"keys": k_bshk, "values": v_bshk} if self.causal else None
            return self._read_all(q_bthk, k_bshk, v_bshk, segment, key), after
        segment, carry = self._going_on(q_bthk, segment, carry)
        after = self._carry_after(k_bshk, v_bshk)
        return self._read_window(q_bthk, k_bshk, v_bshk, segment, carry, key), after

    def reading(
        self,
        q_bthk: jax.Array,
        k_bshk: jax.Array,
        v_bshk: jax.Array,
        segment: Segment | None,
        carry: Carry | None,
    ) -> tuple[Reading, Carry]:
        """What compiled code reads of a window, and the carry after it.

        Args:
          q_bthk, k_bshk, v_bshk: of `projections`; the code scales and normalises them.
          segment, carry: as in the call.
        """
        segment, carry = self._going_on(q_bthk, segment, carry)
        after = self._carry_after(self._unit(k_bshk[:, -self.window :]), v_bshk)
        if self.scale is None:
            q_bthk = scale_queries(q_bthk, None)
        reading = self._reading(*self._rotated(q_bthk, k_bshk, v_bshk, carry), segment)
        if self.scale is not None:  # a rotation leaves lengths as they are
            scale = jnp.abs(self.scale[...])
            reading = dataclasses.replace(reading, scale=scale, unit=(False, True))
        return reading, after

    def _going_on(
        self, q_bthk: jax.Array, segment: Segment | None, carry: Carry | None
    ) -> tuple[Segment, Carry]:
        """Both, by default those of fresh documents; refuses a segment of no whole windows."""
        b, t = q_bthk.shape[:2]
        self.require_blocks(t)
        if segment is None:
            segment = Segment.of(jnp.zeros((b, t), bool))
        return segment, self.init_carry(b) if carry is None else carry

    def _carry_after(self, k_bshk: jax.Array, v_bshk: jax.Array) -> Carry:
        return {
            name: constrain(x[:, -self.window :], "batch", None, "heads", None)
            for name, x in {"keys": k_bshk, "values": v_bshk}.items()
        }

    def require_blocks(self, num_tokens: int) -> None:
        """Refuses a segment that is not made of whole windows.

        Raises:
          UsageError: such a segment; names the nearest lengths.
        """
        w, t = self.window, num_tokens
        if t % w:
            raise UsageError(
                f"a segment of {t} tokens is not a multiple of window={w}; nearest: "
                f"{max(t // w, 1) * w}, {-(-t // w) * w}"
            )

    def init_carry(self, batch_size: int) -> Carry:
        """Keys and values [b, w, kv heads, k] of a window with nothing in it."""
        if self.window is None:
            return {}
        shape = (batch_size, self.window, self.num_kv_heads, self.head_dim)
        return {"keys": jnp.zeros(shape, self.dtype), "values": jnp.zeros(shape, self.dtype)}

    def _unit(self, k: jax.Array) -> jax.Array:
        return k if self.scale is None else l2_normalise(k)

    def _bias(self, distances: np.ndarray) -> jax.Array:
        """Relative bias [h, ...], times the head scale."""
        if not isinstance(self.position, T5Bias):
            return jnp.zeros((self.num_heads, *distances.shape), jnp.float32)
        bias = self.position(distances)
        if self.scale is None:
            return bias
        return bias * jnp.abs(self.scale[...]).reshape(-1, *(1,) * distances.ndim)

    def _kept(self, key: jax.Array | None, num_keys: int, num_queries: int) -> Kept | None:
        """The weights that dropout keeps, [h, s, t]; None: all, and nothing is drawn."""
        if key is None or self.attention_dropout == 0.0:
            return None
        share = 1.0 - self.attention_dropout
        mask = jax.random.bernoulli(key, share, (self.num_heads, num_keys, num_queries))
        return Kept(constrain(mask, "heads", None, None), share)

    def _read_all(self, q, k, v, segment, key) -> jax.Array:
        t, s = q.shape[1], k.shape[1]
        if isinstance(self.position, Rotary):
            q, k = self.position(q, np.arange(t)), self.position(k, np.arange(s))
        if (kept := self._kept(key, s, t)) is not None:
            return self._read_dropped(q, k, v, segment, kept)
        bias = mask = None
        if isinstance(self.position, T5Bias):
            bias = self._bias(np.arange(t)[:, None] - np.arange(s)[None])[None].astype(q.dtype)
        if segment is not None and self.causal:
            mask = (segment.doc_bt[:, :, None] == segment.doc_bt[:, None, :])[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, bias, mask, scale=1.0, is_causal=self.causal and t == s
        )

    def _read_dropped(self, q, k, v, segment, kept) -> jax.Array:
        def heads_first(x_bshk: jax.Array) -> jax.Array:
            return x_bshk.transpose(2, 0, 1, 3)

        k, v = (self.shared(heads_first(x)) for x in (k, v))
        distance_st = np.arange(q.shape[1]) - np.arange(k.shape[2])[:, None]
        bias_hst, same_bst = self._bias(distance_st), None
        if self.causal:
            bias_hst = jnp.where(distance_st >= 0, bias_hst, MASKED)
            if segment is not None:
                same_bst = segment.doc_bt[:, :, None] == segment.doc_bt[:, None, :]
        return attend_all(heads_first(q), k, v, bias_hst, same_bst, kept).transpose(1, 2, 0, 3)

    def _read_window(self, q, k, v, segment, carry, key) -> jax.Array:
        if self.kernel == "pallas":
            return self._read_fused(*self._rotated(q, k, v, carry), segment)
        if self.kernel == "compiled":
            return attend_readings(self._reading(*self._rotated(q, k, v, carry), segment))
        kept = self._kept(key, self.window, self.window)
        out_hbjtk = attend_blocks(*self.blocks_and_bias(q, k, v, segment, carry), kept)
        return out_hbjtk.transpose(1, 2, 3, 0, 4).reshape(q.shape)

    def _rotated(self, q, k, v, carry) -> tuple[jax.Array, ...]:
        """q, k, v and the old keys and values; the position is in those it turns."""
        t, old_k, old_v = q.shape[1], carry["keys"].astype(k.dtype), carry["values"].astype(v.dtype)
        if isinstance(self.position, Rotary):
            q, k = self.position(q, np.arange(t)), self.position(k, np.arange(t))
            old_k = self.position(old_k, np.arange(-self.window, 0))
        return q, k, v, old_k, old_v

    def blocks_and_bias(
        self,
        q_bthk: jax.Array,
        k_bshk: jax.Array,
        v_bshk: jax.Array,
        segment: Segment,
        carry: Carry,
    ) -> tuple[jax.Array, Readable, Readable, jax.Array]:
        """What `attend_blocks` takes, from what `heads` gives: attention in a window, as tiles."""
        w, b = self.window, q_bthk.shape[0]
        q, k, v, old_k, old_v = self._rotated(q_bthk, k_bshk, v_bshk, carry)
        size = tile_size(w)
        bias_hst = by_distance(self._window_bias(np.arange(1 - size, w + size)), w + size)
        docs = segment.doc_bt.reshape(b, -1, w)
        blocks = Readable(self.key_blocks(k), self.key_blocks(v), docs)
        old = Readable(
            self.key_blocks(old_k)[:, :, 0], self.key_blocks(old_v)[:, :, 0], segment.remembered(w)
        )
        return blocks_by_head(q, w), blocks, old, bias_hst

    def _read_fused(self, q, k, v, old_k, old_v, segment) -> jax.Array:
        require_kernel(self.window, q.shape[1])

        def heads_first(*x_bshk: jax.Array) -> jax.Array:
            return jnp.concatenate(x_bshk, axis=1).swapaxes(1, 2)

        k, v = (
            jnp.repeat(heads_first(*x), self.num_heads // self.num_kv_heads, axis=1)
            for x in ((old_k, k), (old_v, v))
        )
        bias_hnm = self._window_bias(distances(self.window))
        return attend_windows(heads_first(q), k, v, segment.ages(), bias_hnm).swapaxes(1, 2)

    def _reading(self, q, k, v, old_k, old_v, segment) -> Reading:
        nearest = 0 if self.include_self else 1
        farthest = nearest + self.window - 1
        place_t = np.arange(q.shape[1]) + self.window  # of a query among the keys
        biased = isinstance(self.position, T5Bias)
        return Reading(
            q,
            (old_k, k),
            (old_v, v),
            place_t - jnp.minimum(segment.ages(), farthest),
            place_t - nearest,
            bias=self._bias(np.arange(farthest + 1)) if biased else None,
            offset=self.window,
        )

    def _window_bias(self, distances: np.ndarray) -> jax.Array:
        """`_bias` [h, ...] inside of the window, `MASKED` outside."""
        nearest = 0 if self.include_self else 1
        inside = (distances >= nearest) & (distances < nearest + self.window)
        return jnp.where(inside, self._bias(distances), MASKED)

    def key_blocks(self, x_bshk: jax.Array) -> jax.Array:
        """Keys or values [b, s, kv heads, k] to blocks [h, b, j, w, k], for each query head."""
        return self.shared(blocks_by_head(x_bshk, self.window))

    def shared(self, x_hn: jax.Array) -> jax.Array:
        """Repeats the key and value heads, first axis, for the queries that share them."""
        return jnp.repeat(x_hn, self.num_heads // self.num_kv_heads, axis=0)


def by_distance(bias_hm: jax.Array, num_keys: int) -> jax.Array:
    """Lays a bias for each distance out as [h, s, t], a row for each of s keys.

    Args:
      bias_hm: [h, s + t - 1], from the smallest distance (the first query, the last key) up to
        the largest (the last query, the first key), one more at each step.
      num_keys: s.

    A row is the one before shifted by one. On a CPU a tiling and a reshape write it without a
    gather; elsewhere, as the compiler for TPUs is slow at such reshapes, squares of it are products
    with a matrix of zeros and ones.

    >>> by_distance(jnp.arange(4.0)[None], 2)[0].tolist()
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]
    """
    h, length = bias_hm.shape
    if platform() != "cpu":
        return _by_distance_in_squares(bias_hm, num_keys, length - num_keys + 1)
    flat = jnp.broadcast_to(bias_hm[:, None], (h, num_keys, length)).reshape(h, -1)
    end = num_keys - 1 + num_keys * (length - 1)
    rows = flat[:, num_keys - 1 : end].reshape(h, num_keys, length - 1)
    return rows[:, :, : length - num_keys + 1]


def _by_distance_in_squares(bias_hm: jax.Array, num_keys: int, num_queries: int) -> jax.Array:
    """`by_distance`, each square of keys and queries from its own range of distances."""
    h, size = bias_hm.shape[0], math.gcd(num_keys, num_queries)
    keys, queries = num_keys // size, num_queries // size
    first = [(keys - 1 - i + j) * size for i in range(keys) for j in range(queries)]
    ranges_hnm = jnp.stack([bias_hm[:, at : at + 2 * size - 1] for at in first], axis=1)
    distance_st = np.arange(size) - np.arange(size)[:, None] + size - 1
    one_mst = jnp.arange(2 * size - 1)[:, None, None] == distance_st
    squares = jnp.einsum(
        "hnm,mst->hnst", ranges_hnm, one_mst.astype(bias_hm.dtype), precision="highest"
    )
    squares = squares.reshape(h, keys, queries, size, size).swapaxes(2, 3)
    return squares.reshape(h, num_keys, num_queries)


def blocks_by_head(x_bthk: jax.Array, window: int) -> jax.Array:
    """[b, t, h, k] to blocks [h, b, j, w, k]."""
    b, t, h, k = x_bthk.shape
    return x_bthk.reshape(b, t // window, window, h, k).transpose(3, 0, 1, 2, 4)


def head_scales(num_heads: int, value: float) -> nnx.Param:
    """A learned scale [h] for the logits of each head."""
    return nnx.Param(jnp.full((num_heads,), value, jnp.float32), axes=("heads",))


def scale_queries(q_bthk: jax.Array, scale: nnx.Param | None) -> jax.Array:
    """`|scale_h| * q / |q|`, or `q / sqrt(k)` without a learned scale."""
    if scale is None:
        return q_bthk * q_bthk.shape[-1] ** -0.5
    return l2_normalise(q_bthk, jnp.abs(scale[...])[:, None])


def require_dropout(rate: float, kernel: str) -> None:
    """Refuses an `attention_dropout` that cannot be.

    Raises:
      UsageError: a rate outside of [0, 1), or one above 0 with the fused kernel.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"attention_dropout={rate} must lie in [0, 1)")
    if rate and kernel != "plain":
        raise UsageError(
            f"attention_dropout={rate} with kernel={kernel!r}, which drops no weights; set "
            "attention_dropout=0.0 or kernel='plain'"
        )


def split_width(width: int, num_heads: int) -> int:
    """`width / num_heads`.

    Raises:
      UsageError: if it is not whole; names the nearest widths.
    """
    if width % num_heads:
        low = width // num_heads * num_heads
        near = ", ".join(str(w) for w in (low, low + num_heads) if w > 0)
        raise UsageError(f"width={width} does not divide by num_heads={num_heads}; nearest: {near}")
    return width // num_heads
