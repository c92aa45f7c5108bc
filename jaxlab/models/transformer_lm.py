"""One causal transformer language model; its layers are chosen by slots.

A plain decoder, a sliding-window decoder, a Transformer-XL-style decoder and the Block-Recurrent
Transformer (arXiv 2203.07852) are this class with other numbers in its config:

| model | config |
|---|---|
| plain decoder | `window=None` |
| sliding window | `window=512`, segments of many windows |
| Transformer-XL style | `window=512`, segments of one window: its keys are cached |
| block-recurrent | `window=512, recurrent_layers=(-3,)` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, constrain, from_dict, named
from jaxlab.nn import (
    MLP,
    Attention,
    Block,
    BlockRecurrentAttention,
    BlockRecurrentCell,
    Rotary,
    Segment,
    T5Bias,
    dropout,
    rms_norm,
)
from jaxlab.nn.attention import split_width


@dataclasses.dataclass(frozen=True)
class TransformerLMConfig:
    """Sizes and slots of a `TransformerLM`.

    Attributes:
      vocab_size: rows of the embedding, which is also the output layer (tied, over sqrt(width)).
      width, depth, num_heads: of the stack; head_dim defaults to width / num_heads, mlp_dim to
        4 * width, num_kv_heads to num_heads.
      gated, activation: of the MLP ('gelu' and gated is GEGLU).
      window: tokens that a token sees, counted back from it; None: all of its segment.
      include_self: whether they include the token itself (always so without a window).
      position: 't5' (relative bias), 'rotary', 'learned' (absolute, up to `max_length`, only
        without a window) or 'none'.
      recurrent_layers: indices of the layers with a recurrent state; negative from the end.
      num_states: state vectors of each of them.
      normalise: L2-normalised queries and keys with a learned scale a head, from `head_scale`.
        1 is the paper's, for Adafactor; with Adam 8 learns where 1 may not.
      dropout_rate: where a key is given.
      scan_layers: hold runs of equal layers stacked and scan over them: compiles once a run.
      remat: compute each block again in the backward pass instead of keeping its insides.
      dtype: of the computation; 'auto' is bfloat16 on TPU and GPU, else float32. Parameters and
        logits are float32.
    """

    vocab_size: int = 260
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    head_dim: int | None = None
    num_kv_heads: int | None = None
    mlp_dim: int | None = None
    activation: Literal["relu", "gelu", "silu"] = "relu"
    gated: bool = False
    window: int | None = 128
    include_self: bool = False
    position: Literal["t5", "rotary", "learned", "none"] = "t5"
    max_length: int = 2048
    recurrent_layers: tuple[int, ...] = ()
    num_states: int = 128
    normalise: bool = True
    head_scale: float = 1.0
    dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self):
        sizes = ("vocab_size", "width", "depth", "num_heads", "num_states", "max_length")
        for name in (*sizes, "head_dim", "num_kv_heads", "mlp_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not 0 <= self.dropout_rate < 1:
            raise UsageError(f"dropout_rate={self.dropout_rate} must lie in [0, 1)")
        if self.head_dim is None:
            split_width(self.width, self.num_heads)
        for layer in self.recurrent_layers:
            if not -self.depth <= layer < self.depth:
                raise UsageError(f"recurrent_layers holds {layer}, but depth={self.depth}")
        if self.recurrent_layers and self.window is None:
            raise UsageError("recurrent_layers need a window: set window, the length of a block")
        if self.position == "learned" and self.window is not None:
            raise UsageError("position='learned' knows no carried window; use 't5' or 'rotary'")

    def slots(self) -> tuple[str, ...]:
        """The kind of each layer: 'attention' or 'recurrent'."""
        recurrent = {layer % self.depth for layer in self.recurrent_layers}
        return tuple("recurrent" if i in recurrent else "attention" for i in range(self.depth))


class TransformerLM(nnx.Module):
    """Tokens to logits, with a carry from segment to segment.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> config = TransformerLMConfig(width=32, depth=2, num_heads=2, window=8,
    ...                              recurrent_layers=(-1,), num_states=4)
    >>> model = TransformerLM(config, rngs=nnx.Rngs(0))
    >>> logits, carry = model(jnp.zeros((1, 16), jnp.int32))
    >>> logits, carry = model(jnp.zeros((1, 8), jnp.int32), carry)   # the document goes on
    >>> logits.shape
    (1, 8, 260)
    """

    def __init__(self, config: TransformerLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.width,
            dtype=self.dtype,
            embedding_init=jax.nn.initializers.normal(1.0),
            embedding_metadata={"axes": ("vocab", "embed")},
            rngs=rngs,
        )
        self.positions = None
        if config.position == "learned":
            init = 0.02 * jax.random.normal(rngs.params(), (config.max_length, config.width))
            self.positions = nnx.Param(init, axes=(None, "embed"))
        self.blocks = nnx.List([make_block(config, slot, rngs=rngs) for slot in config.slots()])
        self.final_norm = rms_norm(config.width, dtype=self.dtype, rngs=rngs)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], *, rngs: nnx.Rngs | None = None):
        """Builds the model from the dict form of its config (`core.to_dict`)."""
        config = from_dict(TransformerLMConfig, values)
        return cls(config, rngs=nnx.Rngs(0) if rngs is None else rngs)

    def __call__(
        self,
        tokens_bt: jax.Array,
        carry: Any = None,
        start_bt: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """One segment.

        Args:
          tokens_bt: int32 [b, t]; with a window, t is a multiple of it.
          carry: what the last call returned; None: nothing came before.
          start_bt: bool [b, t], true where a document starts: nothing before it has influence.
            Recurrent layers want starts at block borders (see `nn.BlockRecurrentAttention`).
          key: turns dropout on.

        Returns:
          float32 logits [b, t, v] and the carry.
        """
        b, t = tokens_bt.shape
        carry = self.init_carry(b) if carry is None else carry
        start_bt = jnp.zeros((b, t), bool) if start_bt is None else start_bt
        segment = Segment.of(start_bt, carry["length"])
        x_btd = self.embed(tokens_bt)
        after = {}
        for i, block in enumerate(self.blocks):
            block_key = None if key is None else named(key, "block", i)
            call = nnx.remat(Block.__call__) if self.config.remat else Block.__call__
            x_btd, after[str(i)] = call(
                block, x_btd, segment, carry["blocks"][str(i)], key=block_key
            )
        x_btd = self.final_norm(x_btd)
        x_btd = dropout(x_btd, self.config.dropout_rate, key and named(key, "logits"))
        return self.logits(x_btd), {"length": segment.length_after(), "blocks": after}

    def init_carry(self, batch_size: int) -> Any:
        """The carry of rows in which nothing has been read: windows, states, document length."""
        blocks = {str(i): b.attention.init_carry(batch_size) for i, b in enumerate(self.blocks)}
        return {"length": jnp.zeros((batch_size,), jnp.int32), "blocks": blocks}

    def embed(self, tokens_bt: jax.Array) -> jax.Array:
        """Embedded tokens [b, t, d]."""
        x_btd = self.embedding(tokens_bt)
        if self.positions is not None:
            t = tokens_bt.shape[1]
            if t > self.config.max_length:
                raise UsageError(f"{t} tokens exceed max_length={self.config.max_length}")
            x_btd += self.positions[:t].astype(self.dtype)
        return constrain(x_btd, "batch", "length", None)

    def logits(self, x_btd: jax.Array) -> jax.Array:
        """float32 [b, t, v] from normalised outputs: tied embedding over sqrt(d)."""
        table_vd = self.embedding.embedding[...].astype(self.dtype)
        logits = jnp.einsum("...d,vd->...v", x_btd, table_vd, preferred_element_type=jnp.float32)
        return logits * self.config.width**-0.5


def make_block(config: TransformerLMConfig, slot: str, *, rngs: nnx.Rngs) -> Block:
    """The block of one slot ('attention' or 'recurrent') by the sizes of a config."""
    dtype = compute_dtype(config.dtype)
    head_dim = config.head_dim or config.width // config.num_heads
    position: Any = None
    if config.position == "t5":
        position = T5Bias(config.num_heads, rngs=rngs)
    elif config.position == "rotary":
        position = Rotary(head_dim)
    recurrent = slot == "recurrent"
    mixer: nnx.Module = Attention(
        config.width,
        config.num_heads,
        head_dim,
        num_kv_heads=config.num_kv_heads,
        window=config.window,
        include_self=config.include_self or config.window is None,
        normalise=config.normalise,
        head_scale=config.head_scale,
        position=position,
        extra_heads=config.num_heads if recurrent else 0,
        dtype=dtype,
        rngs=rngs,
    )
    if recurrent:
        cell = BlockRecurrentCell(
            config.width,
            config.num_states,
            config.num_heads,
            head_dim,
            head_scale=config.head_scale,
            dtype=dtype,
            rngs=rngs,
        )
        mixer = BlockRecurrentAttention(
            mixer, cell, config.width, head_scale=config.head_scale, dtype=dtype, rngs=rngs
        )
    mlp = MLP(
        config.width,
        config.mlp_dim or 4 * config.width,
        activation=config.activation,
        gated=config.gated,
        dtype=dtype,
        rngs=rngs,
    )
    return Block(
        config.width, mixer, mlp, dropout_rate=config.dropout_rate, dtype=dtype, rngs=rngs
    )


def compute_dtype(name: str) -> Any:
    """The dtype of a config's `dtype`; 'auto' asks which backend jax runs on."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
