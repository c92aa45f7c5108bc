"""Decoding with a stack of blocks: the prompt in parallel, then token by token with a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import UsageError, View, constrain
from jaxlab.nn import Cursor

if TYPE_CHECKING:
    from jaxlab.models.transformer_lm import TransformerLMConfig

Cache = dict[str, Any]


class Decoding(nnx.Module):
    """The part of `TransformerLM` that generates text.

    A cache is `{'position': int32 [b], 'length': int32 [b], 'blocks': {layer: cache}}`, see
    `nn.Cursor`. With a window its size does not depend on the length of the text. Each row of a
    cache has its own block borders, counted from where it started.
    """

    if TYPE_CHECKING:  # what `TransformerLM` brings along
        config: TransformerLMConfig
        dtype: Any
        embedding: Any
        positions: nnx.Param | None
        blocks: nnx.List
        final_norm: Any
        init_carry: Any
        logits: Any
        read: Any

    @property
    def vocab_size(self) -> int:
        """The number of logits; ids are below it."""
        return self.config.vocab_size

    def init_cache(self, batch_size: int, max_length: int | None = None) -> Cache:
        """The cache of rows that have read nothing.

        Args:
          batch_size: b.
          max_length: for attention without a window, the tokens that each row must be able to hold;
            by default that of the config. `prefill` and `step` refuse more than the cache holds.

        Raises:
          UsageError: more tokens than learned positions.
        """
        max_length = self.config.max_length if max_length is None else max_length
        if self.positions is not None and max_length > self.config.max_length:
            raise UsageError(
                f"{max_length} tokens exceed the {self.config.max_length} learned positions; "
                "shorten the text, or train with a larger max_length"
            )
        blocks = {
            str(i): block.attention.init_cache(batch_size, max_length)
            for i, block in enumerate(self.blocks)
        }
        numbers = {name: jnp.zeros((batch_size,), jnp.int32) for name in ("position", "length")}
        return {**numbers, "blocks": blocks}

    def cache_of(self, carry: Any) -> Cache:
        """The cache that continues where a call with a window stopped, from the carry it returned.

        Raises:
          UsageError: a model without a window, which carries nothing.
        """
        if self.config.window is None:
            raise UsageError("a model without a window has no carry; give the text to prefill")
        blocks = {
            str(i): block.attention.cache_of(carry["blocks"][str(i)])
            for i, block in enumerate(self.blocks)
        }
        length_b = carry["length"]
        cache = {"position": jnp.zeros_like(length_b), "length": length_b, "blocks": blocks}
        return self.reset_rows(cache, length_b == 0)

    def reset_rows(self, cache: Cache, rows_b: jax.Array) -> Cache:
        """The cache in which these rows, bool [b], have read nothing."""
        blocks = {
            str(i): block.attention.reset(cache["blocks"][str(i)], rows_b)
            for i, block in enumerate(self.blocks)
        }
        numbers = {name: jnp.where(rows_b, 0, cache[name]) for name in ("position", "length")}
        return {**numbers, "blocks": blocks}

    def step(
        self, tokens_b: jax.Array, cache: Cache, start_b: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """The next token of each row.

        Args:
          tokens_b: int32 [b].
          cache: from `init_cache`, `cache_of`, `prefill` or the last step.
          start_b: bool [b], rows in which this token starts a document, as if with a new cache.

        Returns:
          float32 logits [b, v] of the token after it, and the cache. Under jit, where lengths are
          unknown, a row that exceeds its cache has NaN logits until it starts a new document.

        Raises:
          UsageError: a cache for another number of rows, model or dtype; outside jit, a row that
            exceeds the cache of full attention.
        """
        require_like(cache, self.init_cache, tokens_b.shape[0], "cache", room=True)
        if start_b is not None:
            cache = self.reset_rows(cache, start_b)
        room = self._room(cache)
        require_room(cache["length"] + 1, room, "with the next token a row has")
        cursor = Cursor(cache["position"], cache["length"])
        x_bd = self.embedding(tokens_b)
        if self.positions is not None:
            x_bd += jnp.take(self.positions[...], cursor.length_b, axis=0, mode="clip").astype(
                self.dtype
            )
        x_bd = constrain(x_bd, "batch", None)
        blocks, sources = {}, self.config.read_states()
        for i, block in enumerate(self.blocks):
            own = cache["blocks"][str(i)]
            if i in sources:
                state = cache["blocks"][str(sources[i])]
                own = {**own, **{name: state[name] for name in ("state_keys", "state_values")}}
            x_bd, blocks[str(i)] = block.step(x_bd, cursor, own)
        after = {"position": cursor.position_b + 1, "length": cursor.length_b + 1}
        logits_bv = self.logits(self.final_norm(x_bd))
        return within_room(logits_bv, after["length"], room), {**after, "blocks": blocks}

    def prefill(
        self, tokens_bt: jax.Array, lengths_b: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Reads prompts in parallel: block by block with a window, else all at once.

        Args:
          tokens_bt: int32 [b, t], prompts padded on the right with any token.
          lengths_b: int32 [b], the tokens of each prompt, at least 1.
          cache: a new one of `init_cache`, with room for the prompts.

        Returns:
          float32 logits [b, v] after the last token of each prompt, and the cache, as steps would
          leave them. Under jit a prompt that exceeds its cache has NaN logits.

        Raises:
          UsageError: outside jit, a prompt that exceeds the cache of full attention.
        """
        room = self._room(cache)
        require_room(lengths_b, room, "the longest prompt has")
        window = self.config.window
        if window is None:
            x_bd, blocks = self._read_at_once(tokens_bt, lengths_b, cache)
            position_b = lengths_b
        else:
            x_bd, blocks = self._read_blocks(tokens_bt, lengths_b, window)
            position_b = lengths_b % window
        cache = {"position": position_b, "length": lengths_b, "blocks": blocks}
        return within_room(self.logits(self.final_norm(x_bd)), lengths_b, room), cache

    def _room(self, cache: Cache) -> int | None:
        """Tokens that a row can hold; None with a window, which takes any length."""
        if self.config.window is not None:
            return None
        held = cache["blocks"]["0"]["keys"].shape[2]
        return held if self.positions is None else min(held, self.config.max_length)

    def _read_at_once(
        self, tokens_bt: jax.Array, lengths_b: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        if self.positions is not None:
            tokens_bt = tokens_bt[:, : self.config.max_length]
        x_btd, after = self.read(tokens_bt)
        return take_token(x_btd, lengths_b - 1), self._filled(cache, after, lengths_b)

    def _read_blocks(
        self, tokens_bt: jax.Array, lengths_b: jax.Array, w: int
    ) -> tuple[jax.Array, Cache]:
        """Whole blocks pass on their carry; of the last, partial one only the tokens are kept."""
        b = tokens_bt.shape[0]
        tokens_bt = jnp.pad(tokens_bt, ((0, 0), (0, -tokens_bt.shape[1] % w)))
        carry = self.init_carry(b)
        x_bd = jnp.zeros((b, self.config.width), self.dtype)
        view = View.of(self)  # `nnx.remat` needs variables of the loop's own trace

        def block(j: jax.Array, state: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            carry, partial, x_bd = state
            count_b = jnp.clip(lengths_b - j * w, 0, w)
            tokens_bw = jax.lax.dynamic_slice_in_dim(tokens_bt, j * w, w, axis=1)
            x_bwd, after = view.apply(view.params, tokens_bw, carry, method="read")
            x_bd = where_rows(count_b > 0, take_token(x_bwd, count_b - 1), x_bd)
            partial = where_rows(count_b > 0, after, partial)
            return where_rows(count_b == w, after, carry), partial, x_bd

        num_blocks = -(-lengths_b.max() // w)
        carry, partial, x_bd = jax.lax.fori_loop(0, num_blocks, block, (carry, carry, x_bd))
        return x_bd, self._filled(self.cache_of(carry), partial, lengths_b % w)

    def _filled(self, cache: Cache, carry: Any, count_b: jax.Array) -> Cache:
        return {
            str(i): block.attention.fill(cache["blocks"][str(i)], carry["blocks"][str(i)], count_b)
            for i, block in enumerate(self.blocks)
        }


def require_like(
    given: Any, make: Callable[[int], Any], rows: int, noun: str, *, room: bool = False
) -> None:
    """Refuses a carry or cache that this model did not make for this number of rows.

    Args:
      given: the carry or cache.
      make: makes a new one for a number of rows.
      rows: b, those of the tokens.
      noun: its name in the message.
      room: whether keys and values may have any number s of tokens, [b, n, s, k].

    Raises:
      UsageError: names the first array that differs, its shape and dtype, and what is needed.
    """
    wanted = jax.eval_shape(lambda: make(rows))
    found, known = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (given, wanted))
    advice = f"start from init_{noun}({rows}) or from what the model returned"
    if found.keys() != known.keys():
        first = jax.tree_util.keystr(min(found.keys() ^ known.keys(), key=str))
        raise UsageError(f"the {noun} is of another model: {first} is in one alone; {advice}")
    for path, array in found.items():
        shape, like = tuple(array.shape), known[path].shape
        if room and len(shape) == 4 and len(like) == 4 and shape[2] != like[2]:
            like = (*like[:2], shape[2], like[3])
        if shape != like or array.dtype != known[path].dtype:
            raise UsageError(
                f"the {noun} holds {jax.tree_util.keystr(path)} as {array.dtype}{list(shape)}, but "
                f"{rows} rows of tokens need {known[path].dtype}{list(like)}; {advice}"
            )


def require_room(lengths_b: jax.Array, room: int | None, what: str) -> None:
    """Refuses rows of more tokens than a cache holds, if the lengths are known.

    Args:
      lengths_b: int [b]; traced lengths, and those of other processes, are not checked.
      room: tokens that a row can hold; None: any number.
      what: the start of the message, before the length.

    Raises:
      UsageError: names the longest row and the room.
    """
    known = not isinstance(lengths_b, jax.core.Tracer)
    if room is None or not known or not getattr(lengths_b, "is_fully_addressable", True):
        return
    if (longest := int(np.max(lengths_b))) > room:
        raise UsageError(
            f"{what} {longest} tokens, and the cache holds {room}; shorten the text, or give "
            "init_cache a larger max_length"
        )


def within_room(logits_bv: jax.Array, lengths_b: jax.Array, room: int | None) -> jax.Array:
    """The logits, NaN in rows of more tokens than `room`, some of which are lost."""
    if room is None:
        return logits_bv
    return jnp.where((lengths_b > room)[:, None], jnp.nan, logits_bv)


def take_token(x_btd: jax.Array, index_b: jax.Array) -> jax.Array:
    """One token a row, [b, d]."""
    return jnp.take_along_axis(x_btd, index_b[:, None, None], axis=1, mode="clip")[:, 0]


def where_rows(rows_b: jax.Array, new: Any, old: Any) -> Any:
    """Each array of `new` in these rows, of `old` in the others."""
    return jax.tree.map(
        lambda x, y: jnp.where(rows_b.reshape(-1, *(1,) * (x.ndim - 1)), x, y), new, old
    )
