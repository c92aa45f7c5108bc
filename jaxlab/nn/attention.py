"""Multi-head attention: causal, bidirectional or cross; full or in a sliding window."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError, constrain
from jaxlab.nn.backend import PLAIN, Backend, require_dropout_rate
from jaxlab.nn.decode import RingDecoding
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import l2_normalise, scale_queries
from jaxlab.nn.position import Rotary, T5Bias
from jaxlab.nn.reading import Heads, WindowReading, share_heads
from jaxlab.nn.segment import Segment
from jaxlab.nn.tiles import MASKED, Kept, attend_all

Carry = dict[str, jax.Array]
"""Keys and values of the last window, `{'keys': [b, w, g, k], 'values': [b, w, g, k]}`."""


class Attention(RingDecoding, nnx.Module):
    """Multi-head attention whose causal form can have a sliding window, carried across segments.

    Logits are `scale_h * (q . k + bias_h(distance))` for L2-normalised q and k with a learned
    scale for each head (`normalise`, arXiv 2203.07852), else `q . k / sqrt(head_dim) + bias`.

    With `window=w` a token sees w tokens: itself and the w - 1 before it, or the w before it
    (`include_self=False`). The last w keys and values are carried to the next segment.

    With `attention_dropout` above 0, a call with a `key` zeroes that share of the weights after the
    softmax and divides the rest by 1 - rate. As in the source's code, there is one mask [h,
    queries, keys] for all rows of the batch and, with a window, for all blocks of the segment: it
    is drawn by the places of the two tokens in their windows, whatever tiles they are read in.

    Args:
      width: d, of inputs and outputs.
      num_heads: h; `num_kv_heads` of keys and values divides it (1: multi-query).
      head_dim: k, by default width / num_heads.
      window: w, or None for all tokens of the segment.
      causal: False looks both ways (no window, no carry).
      position: `T5Bias` (causal), `Rotary` or None.
      extra_heads: heads whose values come from elsewhere and share the output projection.
      use_bias: of every projection.
      backend: computes projections and reads windows; others than the plain one need a window, and
        have neither dropout nor forward mode of differentiation.
      attention_dropout: rate in [0, 1) at which weights are dropped, if a key is given.

    Raises:
      UsageError: sizes that do not divide, or a combination that does not exist; in a call, a
        backend that cannot run there.
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
        backend: Backend = PLAIN,
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
        require_dropout_rate(attention_dropout)
        backend.require_layer(window, attention_dropout)
        heads, kv = (num_heads, head_dim), (num_kv_heads, head_dim)
        axes = ("embed", "heads", None)
        how = {"use_bias": use_bias, "backend": backend, "dtype": dtype, "rngs": rngs}
        self.query = projection(width, heads, axes, **how)
        self.key = projection(width, kv, axes, **how)
        self.value = projection(width, kv, axes, **how)
        out = (num_heads + extra_heads, head_dim)
        self.output = projection(out, width, ("heads", None, "embed"), **how)
        self.scale = head_scales(num_heads, head_scale) if normalise else None
        self.position = position
        self.num_heads, self.head_dim, self.num_kv_heads = num_heads, head_dim, num_kv_heads
        self.window, self.causal, self.include_self = window, causal, include_self
        self.backend, self.attention_dropout, self.dtype = backend, attention_dropout, dtype

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
          segment: its documents; None: each row is one new document.
          carry: keys and values of the window before, from the last call or `init_carry`.
          context_bsd: [b, s, d] for cross-attention (bidirectional: all of it is seen).
          key: switches dropout of the weights on.

        Returns:
          [b, t, d], and the keys and values after the segment: of the last window, or without a
          window of the whole segment (a cache can be filled from them); None if not causal.
        """
        values_bthk, carry = self.read(self.projected(x_btd, context_bsd), segment, carry, key=key)
        return self.output(values_bthk), carry

    def projected(self, x_btd: jax.Array, context_bsd: jax.Array | None = None) -> Heads:
        """Queries, keys and values in the form that the backend reads."""
        q, k, v = self._project(x_btd, context_bsd)
        q, scale = self.backend.queries(q, self.scale)
        if self.scale is None:
            return Heads(q, k, v)
        return Heads(q, self.backend.keys(k), v, scale, unit=self.backend.normalises)

    def heads(
        self, x_btd: jax.Array, context_bsd: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [b, t, h, k], scaled; keys, normalised, and values [b, s, kv heads, k]."""
        q, k, v = self._project(x_btd, context_bsd)
        return scale_queries(q, self.scale), self._unit(k), v

    def _project(self, x_btd: jax.Array, context_bsd: jax.Array | None) -> tuple[jax.Array, ...]:
        source = x_btd if context_bsd is None else context_bsd
        return self.query(x_btd), self.key(source), self.value(source)

    def read(
        self,
        heads: Heads,
        segment: Segment | None,
        carry: Carry | None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry | None]:
        """Values [b, t, h, k] that the queries find, and the carry after the segment."""
        if self.window is None:
            after = {"keys": heads.k, "values": heads.v} if self.causal else None
            return self._read_all(heads.q, heads.k, heads.v, segment, key), after
        reading, after = self.reading(heads, segment, carry, key=key)
        return self.backend.read(reading), after

    def reading(
        self,
        heads: Heads,
        segment: Segment | None,
        carry: Carry | None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[WindowReading, Carry]:
        """What a backend reads of the window, and the carry after the segment.

        Args:
          heads: of `projected`, or those of `heads`.
          segment, carry, key: as in the call.

        Raises:
          UsageError: a segment that is not made of whole windows.
        """
        b, t = heads.q.shape[:2]
        w = self.require_blocks(t)
        segment = Segment.of(jnp.zeros((b, t), bool)) if segment is None else segment
        carry = self.init_carry(b) if carry is None else carry
        last_k = heads.k[:, -w:]
        after = {
            name: constrain(x, "batch", None, "heads", None)
            for name, x in {
                "keys": self._unit(last_k) if heads.unit else last_k,
                "values": heads.v[:, -w:],
            }.items()
        }
        q, k = heads.q, heads.k
        old_k, old_v = carry["keys"].astype(k.dtype), carry["values"].astype(heads.v.dtype)
        if isinstance(self.position, Rotary):  # leaves lengths as they are
            q, k = self.position(q, np.arange(t)), self.position(k, np.arange(t))
            old_k = self.position(old_k, np.arange(-w, 0))
        reading = WindowReading(
            Heads(q, k, heads.v, heads.scale, heads.unit),
            old_k,
            old_v,
            segment,
            self._bias if isinstance(self.position, T5Bias) else None,
            self.include_self,
            self._kept(key, w, w),
        )
        return reading, after

    def require_blocks(self, num_tokens: int) -> int:
        """Returns the window; refuses a segment that is not made of whole ones.

        Raises:
          UsageError: such a segment; names the nearest lengths. Attention without a window.
        """
        w, t = self.window, num_tokens
        if w is None:
            raise UsageError("attention without a window is not read in blocks")
        if t % w:
            raise UsageError(
                f"a segment of {t} tokens is not a multiple of window={w}; nearest: "
                f"{max(t // w, 1) * w}, {-(-t // w) * w}"
            )
        return w

    def init_carry(self, batch_size: int) -> Carry:
        """Keys and values [b, w, kv heads, k] of an empty window."""
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

    def _read_all(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segment: Segment | None,
        key: jax.Array | None,
    ) -> jax.Array:
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

    def _read_dropped(
        self, q: jax.Array, k: jax.Array, v: jax.Array, segment: Segment | None, kept: Kept
    ) -> jax.Array:
        def heads_first(x_bshk: jax.Array) -> jax.Array:
            return share_heads(x_bshk.transpose(2, 0, 1, 3), self.num_heads)

        distance_st = np.arange(q.shape[1]) - np.arange(k.shape[1])[:, None]
        bias_hst, same_bst = self._bias(distance_st), None
        if self.causal:
            bias_hst = jnp.where((distance_st >= 0)[None], bias_hst, MASKED)
            if segment is not None:
                same_bst = segment.doc_bt[:, :, None] == segment.doc_bt[:, None, :]
        q, k, v = (heads_first(x) for x in (q, k, v))
        return attend_all(q, k, v, bias_hst, same_bst, kept).transpose(1, 2, 0, 3)


def head_scales(num_heads: int, value: float) -> nnx.Param:
    """A learned scale [h] for the logits of each head."""
    return nnx.Param(jnp.full((num_heads,), value, jnp.float32), axes=("heads",))


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
