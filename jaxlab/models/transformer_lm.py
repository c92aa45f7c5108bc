"""One causal transformer language model with layers chosen by slots.

A plain decoder, a sliding-window decoder, a Transformer-XL-style decoder and the Block-Recurrent
Transformer (arXiv 2203.07852) are this class with different configs:

| model | config |
|---|---|
| plain decoder | `window=None` |
| sliding window | `window=512`, segments of many windows |
| Transformer-XL style | `window=512`, segments of one window: its keys are cached |
| block-recurrent | `window=512, recurrent_layers=(-3,)` |
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, View, constrain, from_dict, named, platform
from jaxlab.models.decoding import Decoding, require_like
from jaxlab.models.registry import register, tokens
from jaxlab.nn import (
    GATES,
    UPDATES,
    Attention,
    Backend,
    Block,
    BlockRecurrentAttention,
    BlockRecurrentCell,
    Embedding,
    FeedForward,
    RMSNorm,
    Rotary,
    Segment,
    StateReadingAttention,
    T5Bias,
    dropout,
    known_backend,
    make_backend,
)
from jaxlab.nn.attention import split_width
from jaxlab.nn.backend import require_dropout_rate


@dataclasses.dataclass(frozen=True)
class TransformerLMConfig:
    """Sizes and slots of a `TransformerLM`.

    Attributes:
      vocab_size: token ids; the embedding is also the output layer (tied, over sqrt(width)).
      vocab_multiple: the table of the embedding gets rows of zeros up to a multiple of it, so that
        devices can share it; nothing sees them, and `View.num_params` does not count them. 1: none.
      width, depth, num_heads: of the stack; head_dim defaults to width / num_heads, mlp_dim to
        4 * width, num_kv_heads to num_heads.
      gated, activation: of the feed-forward layers ('gelu' and gated is GEGLU).
      window: how many tokens back a token sees; None: all of its segment.
      include_self: whether these include the token itself (always so without a window).
      position: 't5' (relative bias), 'rotary', 'learned' (absolute, up to `max_length`, only
        without a window) or 'none'.
      recurrent_layers: indices of the layers with a recurrent state; negative from the end.
      num_states: state vectors of each of these layers.
      gate: of the state, see `nn.GATES`; gate_bias: where the bias of what it keeps starts.
      update: how the state takes in what it read, see `nn.UPDATES`; hidden layers in it are
        `mlp_dim` wide.
      state_readers: indices of other layers whose tokens read the state of the next recurrent
        layer above them (or of the last, if there is none) as it was before their block. The stack
        then runs block by block. With all other layers it is the paper's feedback variant.
      normalise: L2-normalised queries and keys with a learned scale for each head, which starts at
        `head_scale`: 1 in the paper, for Adafactor; with Adam, 8 learns where 1 may not.
      dropout_rate: on the residual path (see `nn.Block`) and before the logits, if a key is given.
      attention_dropout: of the weights with which tokens read tokens, if a key is given; one mask
        for all rows and blocks, see `nn.Attention`.
      scan_layers: run neighbouring equal layers as a scan over their stacked parameters: they
        compile once, at the cost of copying the parameters in each step. Parameters and paths stay
        the same; `View.taps` does not see outputs inside a scan.
      remat: compute each block again in the backward pass instead of saving its activations.
      backend: what layers compute with, a name of `nn.BACKENDS`: 'plain' operations; 'pallas' reads
        windows by a fused kernel, on TPUs; 'compiled' reads windows and states, and computes
        products with parameters, in C++, on CPUs. The last two need a window.
      dtype: of the computation; 'auto' is bfloat16 on TPU and GPU, else float32. Parameters and
        logits are float32.
    """

    vocab_size: int = 260
    vocab_multiple: int = 128
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
    gate: Literal["fixed", "lstm", "gru"] = "fixed"
    gate_bias: float = 0.0
    update: Literal["skip", "single", "dual"] = "skip"
    state_readers: tuple[int, ...] = ()
    normalise: bool = True
    head_scale: float = 1.0
    dropout_rate: float = 0.0
    attention_dropout: float = 0.0
    scan_layers: bool = False
    remat: bool = False
    backend: Literal["plain", "pallas", "compiled"] = "plain"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self):
        sizes = ("vocab_size", "vocab_multiple", "width", "depth", "num_heads", "num_states")
        for name in (*sizes, "max_length", "head_dim", "num_kv_heads", "mlp_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not 0 <= self.dropout_rate < 1:
            raise UsageError(f"dropout_rate={self.dropout_rate} must lie in [0, 1)")
        if self.head_dim is None:
            split_width(self.width, self.num_heads)
        for name in ("recurrent_layers", "state_readers"):
            for layer in getattr(self, name):
                if not -self.depth <= layer < self.depth:
                    raise UsageError(f"{name} holds {layer}, but depth={self.depth}")
        if self.state_readers and not self.recurrent_layers:
            raise UsageError("state_readers read a state: set recurrent_layers, e.g. -3")
        if both := self._layers("state_readers") & self._layers("recurrent_layers"):
            raise UsageError(
                f"layer {min(both)} is in recurrent_layers and in state_readers; a recurrent layer "
                "reads its own state"
            )
        for name, known in (("gate", GATES), ("update", UPDATES)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r}; it takes {', '.join(known)}")
        if self.recurrent_layers and self.window is None:
            raise UsageError("recurrent_layers need a window: set window, the length of a block")
        require_dropout_rate(self.attention_dropout)
        known_backend(self.backend).require_layer(self.window, self.attention_dropout)
        if self.position == "learned" and self.window is not None:
            raise UsageError("position='learned' knows no carried window; use 't5' or 'rotary'")

    def slots(self) -> tuple[str, ...]:
        """The kind of each layer: 'attention', 'recurrent', or 'reader' of a state."""
        kinds = {layer: "recurrent" for layer in self._layers("recurrent_layers")}
        kinds |= {layer: "reader" for layer in self._layers("state_readers")}
        return tuple(kinds.get(i, "attention") for i in range(self.depth))

    def build(self, rngs: nnx.Rngs) -> TransformerLM:
        """Makes the model."""
        return TransformerLM(self, rngs=rngs)

    def read_states(self) -> dict[int, int]:
        """The recurrent layer whose state each reader reads."""
        recurrent = sorted(self._layers("recurrent_layers"))
        return {
            layer: next((above for above in recurrent if above > layer), recurrent[-1])
            for layer in sorted(self._layers("state_readers"))
        }

    def _layers(self, name: str) -> set[int]:
        return {layer % self.depth for layer in getattr(self, name)}

    def runs(self) -> list[tuple[int, int]]:
        """(first layer, number) of neighbours that run as one scan; one each without scans."""
        if not self.scan_layers:
            return [(i, 1) for i in range(self.depth)]
        runs, first = [], 0
        kinds = [(slot, self.read_states().get(i)) for i, slot in enumerate(self.slots())]
        for _, layers in itertools.groupby(kinds):
            count = len(list(layers))
            runs.append((first, count))
            first += count
        return runs


class TransformerLM(Decoding, nnx.Module):
    """Tokens to logits, segment by segment with a carry, or one by one (see `Decoding`).

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> config = TransformerLMConfig(width=32, depth=2, num_heads=2, window=8,
    ...                              recurrent_layers=(-1,), num_states=4)
    >>> model = TransformerLM(config, rngs=nnx.Rngs(0))
    >>> logits, carry = model(jnp.zeros((1, 16), jnp.int32))
    >>> logits, carry = model(jnp.zeros((1, 8), jnp.int32), carry)   # the document continues
    >>> logits.shape
    (1, 8, 260)
    """

    def __init__(self, config: TransformerLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        self.embedding = Embedding(
            config.vocab_size,
            config.width,
            multiple=config.vocab_multiple,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.positions = learned_positions(config, rngs=rngs)
        self.backend = make_backend(config.backend)
        self.blocks = nnx.List(
            [make_block(config, slot, backend=self.backend, rngs=rngs) for slot in config.slots()]
        )
        self.final_norm = RMSNorm(config.width, dtype=self.dtype, rngs=rngs)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], *, rngs: nnx.Rngs | None = None) -> Self:
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
            With recurrent layers, starts should be at block borders (see
            `nn.BlockRecurrentAttention`).
          key: switches dropout on.

        Returns:
          float32 logits [b, t, v] and the carry.

        Raises:
          UsageError: a carry for another number of rows, model or dtype; tokens that are not whole
            windows, or more of them than learned positions.
        """
        x_btd, after = self.read(tokens_bt, carry, start_bt, key=key)
        x_btd = self.final_norm(x_btd)
        x_btd = dropout(
            x_btd, self.config.dropout_rate, None if key is None else named(key, "logits")
        )
        if self.config.window is None:
            after["blocks"] = {layer: {} for layer in after["blocks"]}
        return self.logits(x_btd), after

    def read(
        self,
        tokens_bt: jax.Array,
        carry: Any = None,
        start_bt: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """`__call__` without the output layer: [b, t, d] of the last block, and the carry.

        Without a window the carry holds all keys and values, from which a cache can be filled.
        """
        b, t = tokens_bt.shape
        if carry is None:
            carry = self.init_carry(b)
        else:
            require_like(carry, self.init_carry, b, "carry")
        start_bt = jnp.zeros((b, t), bool) if start_bt is None else start_bt
        x_btd = self.embed(tokens_bt)
        if self.config.state_readers:
            return self._read_block_by_block(x_btd, carry, start_bt, key)
        return self.read_segment(x_btd, carry, start_bt, key)

    def read_segment(
        self, x_btd: jax.Array, carry: Any, start_bt: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """`read` for embedded tokens, layer after layer."""
        segment = Segment.of(start_bt, carry["length"])
        carry = {**carry, "blocks": self._with_states(segment, carry["blocks"])}
        after: dict[str, Any] = {}
        for first, count in self.config.runs():
            layers = [str(i) for i in range(first, first + count)]
            blocks, carries = self.blocks[first : first + count], carry["blocks"]
            run = scan_blocks if count > 1 else call_blocks
            x_btd, carries = run(
                list(blocks),
                x_btd,
                segment,
                [carries[i] for i in layers],
                key,
                first,
                self.config.remat,
            )
            after |= dict(zip(layers, carries, strict=True))
        return x_btd, {"length": segment.length_after(), "blocks": after}

    def _read_block_by_block(
        self, x_btd: jax.Array, carry: Any, start_bt: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """`read_segment` window by window, so that layers can read a state above them."""
        b, t, d = x_btd.shape
        w: int = self.blocks[0].attention.attention.require_blocks(t)
        if t == w:  # without a scan `View.taps` sees the layers
            key = None if key is None else named(key, "window", 0)
            return self.read_segment(x_btd, carry, start_bt, key)
        view = View.of(self)  # `nnx.remat` needs variables of the scan's own trace

        def block(carry: Any, xs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
            j, x_bwd, start_bw = xs
            block_key = None if key is None else named(key, "window", j)
            x_bwd, carry = view.apply(
                view.params, x_bwd, carry, start_bw, block_key, method="read_segment"
            )
            return carry, x_bwd

        x_jbwd = x_btd.reshape(b, t // w, w, d).swapaxes(0, 1)
        start_jbw = start_bt.reshape(b, t // w, w).swapaxes(0, 1)
        carry, x_jbwd = jax.lax.scan(block, carry, (jnp.arange(t // w), x_jbwd, start_jbw))
        return x_jbwd.swapaxes(0, 1).reshape(b, t, d), carry

    def _with_states(self, segment: Segment, carries: dict[str, Any]) -> dict[str, Any]:
        """The carries of all layers; those of readers include the state that they read."""
        shown = dict(carries)
        for layer, source in self.config.read_states().items():
            keys, values = self.blocks[source].attention.state_before(segment, carries[str(source)])
            shown[str(layer)] = {**carries[str(layer)], "state_keys": keys, "state_values": values}
        return shown

    def init_carry(self, batch_size: int) -> Any:
        """The carry of rows that have read nothing: windows, states, document length."""
        blocks = {str(i): b.attention.init_carry(batch_size) for i, b in enumerate(self.blocks)}
        return {"length": jnp.zeros((batch_size,), jnp.int32), "blocks": blocks}

    def reset_states(self, carry: Any) -> Any:
        """The carry with all recurrent states at their learned start; windows are unchanged."""
        rows = carry["length"].shape[0]
        return self._change_states(carry, lambda cell, state: cell.initial_state(rows))

    def swap_states(self, carry: Any) -> Any:
        """The carry in which each row has the states of the row before; windows are unchanged."""
        return self._change_states(carry, lambda cell, state: jnp.roll(state, 1, axis=0))

    def _change_states(self, carry: Any, change: Callable[[Any, jax.Array], jax.Array]) -> Any:
        changed = {
            str(i): carry["blocks"][str(i)]
            | {"state": change(block.attention.cell, carry["blocks"][str(i)]["state"])}
            for i, block in enumerate(self.blocks)
            if isinstance(block.attention, BlockRecurrentAttention)
        }
        return {**carry, "blocks": carry["blocks"] | changed}

    def embed(self, tokens_bt: jax.Array) -> jax.Array:
        """Embedded tokens [b, t, d]."""
        x_btd = self.embedding(tokens_bt)
        if self.positions is not None:
            t = tokens_bt.shape[1]
            if t > self.config.max_length:
                raise UsageError(f"{t} tokens exceed max_length={self.config.max_length}")
            x_btd += self.positions[:t].astype(self.dtype)[None]
        return constrain(x_btd, "batch", "length", None)

    def logits(self, x_btd: jax.Array) -> jax.Array:
        """float32 [b, t, v] from normalised outputs: tied embedding over sqrt(d)."""
        logits = self.backend.tied_logits(x_btd, self.embedding.table())
        return logits * self.config.width**-0.5


def call_block(
    block: Block, x_btd: jax.Array, segment: Segment, carry: Any, key: jax.Array | None
) -> tuple[jax.Array, Any]:
    """The block with a positional key: `nnx.remat` takes no keyword arguments."""
    return block(x_btd, segment, carry, key=key)


def call_blocks(
    blocks: Sequence[Block],
    x_btd: jax.Array,
    segment: Segment,
    carries: Sequence[Any],
    key: jax.Array | None,
    first: int | jax.Array,
    remat: bool,
) -> tuple[jax.Array, list[Any]]:
    """Calls blocks in order, from layer `first`; returns the output and the carries."""
    call = nnx.remat(call_block) if remat else call_block
    after = []
    for i, (block, carry) in enumerate(zip(blocks, carries, strict=True)):
        block_key = None if key is None else named(key, "block", first + i)
        x_btd, carry = call(block, x_btd, segment, carry, block_key)
        after.append(carry)
    return x_btd, after


def scan_blocks(
    blocks: Sequence[Block],
    x_btd: jax.Array,
    segment: Segment,
    carries: Sequence[Any],
    key: jax.Array | None,
    first: int,
    remat: bool,
) -> tuple[jax.Array, list[Any]]:
    """`call_blocks` for equal blocks, as a scan over their stacked arrays: it compiles once."""
    graph = nnx.split(blocks[0])[0]
    stacked = jax.tree.map(_stack, *[nnx.split(block)[1] for block in blocks])

    def body(x_btd: jax.Array, xs: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        i, state, carry = xs
        x_btd, (carry,) = call_blocks(
            [nnx.merge(graph, state)], x_btd, segment, [carry], key, i, remat=False
        )
        return x_btd, carry

    xs = (jnp.arange(first, first + len(blocks)), stacked, jax.tree.map(_stack, *carries))
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    x_btd, after = jax.lax.scan(body, x_btd, xs)
    return x_btd, [jax.tree.map(lambda a, i=i: a[i], after) for i in range(len(blocks))]


def _stack(*arrays: jax.Array) -> jax.Array:
    return jnp.stack(arrays)


def learned_positions(config: TransformerLMConfig, *, rngs: nnx.Rngs) -> nnx.Param | None:
    """The table [max_length, d] for `position='learned'`, which starts as N(0, 0.02)."""
    if config.position != "learned":
        return None
    init = 0.02 * jax.random.normal(rngs.params(), (config.max_length, config.width))
    return nnx.Param(init, axes=(None, "embed"))


def make_block(
    config: TransformerLMConfig, slot: str, *, backend: Backend, rngs: nnx.Rngs
) -> Block:
    """The block of one slot (see `TransformerLMConfig.slots`), with the sizes of a config."""
    dtype = compute_dtype(config.dtype)
    head_dim = config.head_dim or config.width // config.num_heads
    position: Any = None
    if config.position == "t5":
        position = T5Bias(config.num_heads, rngs=rngs)
    elif config.position == "rotary":
        position = Rotary(head_dim)
    attention = Attention(
        config.width,
        config.num_heads,
        head_dim,
        num_kv_heads=config.num_kv_heads,
        window=config.window,
        include_self=config.include_self or config.window is None,
        normalise=config.normalise,
        head_scale=config.head_scale,
        position=position,
        extra_heads=0 if slot == "attention" else config.num_heads,
        backend=backend,
        attention_dropout=config.attention_dropout,
        dtype=dtype,
        rngs=rngs,
    )
    mixer: nnx.Module = attention
    if slot == "recurrent":
        mixer = BlockRecurrentAttention(
            attention,
            make_cell(config, backend=backend, rngs=rngs),
            config.width,
            head_scale=config.head_scale,
            dtype=dtype,
            rngs=rngs,
        )
    elif slot == "reader":
        mixer = StateReadingAttention(
            attention, config.width, head_scale=config.head_scale, dtype=dtype, rngs=rngs
        )
    mlp = FeedForward(
        config.width,
        config.mlp_dim or 4 * config.width,
        activation=config.activation,
        gated=config.gated,
        backend=backend,
        dtype=dtype,
        rngs=rngs,
    )
    return Block(config.width, mixer, mlp, dropout_rate=config.dropout_rate, dtype=dtype, rngs=rngs)


def make_cell(
    config: TransformerLMConfig, *, backend: Backend, rngs: nnx.Rngs
) -> BlockRecurrentCell:
    """The recurrent cell of a config."""
    dtype = compute_dtype(config.dtype)
    head_dim = config.head_dim or config.width // config.num_heads
    sizes = [config.width, 2 * config.num_heads, head_dim]
    if config.update != "skip":
        sizes.append(config.mlp_dim or 4 * config.width)
    gate = functools.partial(GATES[config.gate], bias=config.gate_bias)
    return BlockRecurrentCell(
        config.width,
        config.num_states,
        config.num_heads,
        head_dim,
        update=UPDATES[config.update](*sizes, gate=gate, backend=backend, dtype=dtype, rngs=rngs),
        head_scale=config.head_scale,
        backend=backend,
        dtype=dtype,
        rngs=rngs,
    )


def compute_dtype(name: str) -> Any:
    """The dtype that a config's `dtype` names; 'auto' depends on the platform."""
    if name == "auto":
        name = "float32" if platform() == "cpu" else "bfloat16"
    return jnp.dtype(name)


_TINY = TransformerLMConfig(
    vocab_size=32,
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=32,
    window=4,
    num_states=4,
    head_scale=3.0,
    dtype="float32",
)
_REPLACE: dict[str, dict[str, Any]] = {
    "plain": {"window": None, "position": "learned", "max_length": 16, "normalise": False},
    "sliding_scanned": {"depth": 2, "position": "rotary", "scan_layers": True, "remat": True},
    "block_recurrent": {"recurrent_layers": (0,), "gated": True, "activation": "silu"},
    "feedback": {
        "depth": 2,
        "recurrent_layers": (1,),
        "state_readers": (0,),
        "gate": "lstm",
        "update": "dual",
    },
}
for _name, _fields in _REPLACE.items():
    register(
        f"transformer_lm/{_name}",
        TransformerLM,
        dataclasses.replace(_TINY, **_fields),
        tokens(16, _TINY.vocab_size),
    )
