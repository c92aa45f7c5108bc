"""Autoregressive generation with any model that decodes with a cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError, View, named
from jaxlab.sampling.logits import Sampler

Prompts = Sequence[Any] | np.ndarray | jax.Array
"""Token ids: an array [b, t], or a list of one-dimensional ones."""

SHORTEST = 16  # prompts are padded to it times a power of two, so that near lengths compile once


class Decoder(Protocol):
    """The methods that generation needs of an `nnx.Module`, such as `models.TransformerLM`."""

    @property
    def vocab_size(self) -> int:
        """The number of logits."""

    def init_cache(self, batch_size: int, max_length: int | None = None) -> Any:
        """A new cache, with room for `max_length` tokens if its size depends on that."""

    def prefill(
        self, tokens_bt: jax.Array, lengths_b: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Logits [b, v] after prompts, which are padded on the right, and the cache."""

    def step(self, tokens_b: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Logits [b, v] after one more token, and the cache."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """The result of `generate`.

    Attributes:
      tokens: int32 [b, num_tokens]; from its stop token on, a row repeats it.
      lengths: int32 [b], tokens before the stop token.
    """

    tokens: np.ndarray
    lengths: np.ndarray


def generate(
    model: Decoder | View,
    prompts: Prompts,
    *,
    num_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    num_valid: int | None = None,
) -> Generated:
    """Continues prompts, in constant memory if the model's cache is of constant size.

    Args:
      model: a decoding model, or a `View` of one.
      prompts: int [b, t], or b one-dimensional arrays of at least one token each; usually they
        begin with the token of a document boundary.
      num_tokens: how many tokens to add to each prompt.
      key: randomness; token i of the continuation is drawn with (key, i).
      temperature: logits are divided by it; 0 is greedy.
      top_k: draw from this many of the likeliest tokens.
      top_p: draw from the fewest likeliest tokens with this probability (see `filter_logits`).
      stop_token: a row ends when it draws this token, which is not counted.
      num_valid: only ids below it are drawn.

    Returns:
      Tokens and lengths, on the host.

    Raises:
      UsageError: an empty prompt, a token outside the vocabulary, a number out of range.
    """
    stream = generate_stream(
        model,
        prompts,
        num_tokens=num_tokens,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token=stop_token,
        num_valid=num_valid,
    )
    tokens = np.concatenate(list(stream), axis=1)
    if stop_token is None:
        return Generated(tokens, np.full(tokens.shape[:1], num_tokens, np.int32))
    tokens = np.pad(tokens, ((0, 0), (0, num_tokens - tokens.shape[1])), constant_values=stop_token)
    return Generated(tokens, (tokens != stop_token).sum(axis=1, dtype=np.int32))


def generate_stream(
    model: Decoder | View,
    prompts: Prompts,
    *,
    num_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    num_valid: int | None = None,
    chunk: int = 32,
) -> Iterator[np.ndarray]:
    """Like `generate`, but yields tokens as they are drawn: int32 [b, n], n at most `chunk`.

    Together they are the tokens of `generate`, up to where all rows have stopped.
    """
    decoder = as_decoder(model)
    sampler = Sampler(temperature, top_k, top_p, num_valid)
    sampler.check(decoder.vocab_size)
    _check(num_tokens, stop_token, chunk, num_valid or decoder.vocab_size)
    tokens_bt, lengths_b = pad_prompts(prompts, decoder.vocab_size)
    room = int(lengths_b.max()) + num_tokens
    cache = _init_cache(decoder, len(lengths_b), room)
    return _chunks(
        decoder, sampler, tokens_bt, lengths_b, cache, num_tokens, key, stop_token, chunk
    )


def as_decoder(model: Decoder | View) -> Decoder:
    """The decoding model itself, of a model or a `View` of one."""
    return cast(Decoder, model.model()) if isinstance(model, View) else model


def _chunks(
    model: Decoder,
    sampler: Sampler,
    tokens_bt: np.ndarray,
    lengths_b: np.ndarray,
    cache: Any,
    num_tokens: int,
    key: jax.Array,
    stop_token: int | None,
    chunk: int,
) -> Iterator[np.ndarray]:
    stop = np.int32(-1 if stop_token is None else stop_token)
    logits_bv, cache = _prefill(model, tokens_bt, lengths_b, cache)
    rows = _Rows(cache, logits_bv, jnp.zeros(lengths_b.shape, bool), jnp.int32(0))
    while num_tokens > 0:
        count = min(chunk, num_tokens)
        tokens_bn, made, rows = _continue(model, rows, sampler, key, stop, np.int32(count), chunk)
        yield np.asarray(tokens_bn)[:, : int(made)]
        num_tokens = 0 if np.asarray(rows.done_b).all() else num_tokens - count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows being generated: cache, logits of the next token, whether each has stopped."""

    cache: Any
    logits_bv: jax.Array
    done_b: jax.Array
    index: jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def _init_cache(model: Decoder, batch_size: int, room: int) -> Any:
    return model.init_cache(batch_size, room)


@functools.partial(jax.jit, donate_argnames="cache")
def _prefill(
    model: Decoder, tokens_bt: jax.Array, lengths_b: jax.Array, cache: Any
) -> tuple[jax.Array, Any]:
    return model.prefill(tokens_bt, lengths_b, cache)


@functools.partial(jax.jit, static_argnames="chunk", donate_argnames="rows")
def _continue(
    model: Decoder,
    rows: _Rows,
    sampler: Sampler,
    key: jax.Array,
    stop: jax.Array,
    count: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array, _Rows]:
    """Up to `count` tokens in an array of `chunk`, their number, and the rows after them."""

    def going(state: tuple[jax.Array, jax.Array, _Rows]) -> jax.Array:
        made, _, rows = state
        return (made < count) & ~rows.done_b.all()

    def one(state: tuple[jax.Array, jax.Array, _Rows]) -> tuple[jax.Array, jax.Array, _Rows]:
        made, tokens_bn, rows = state
        drawn_b = sampler.draw(rows.logits_bv, named(key, "token", rows.index))
        token_b = jnp.where(rows.done_b, stop, drawn_b)
        logits_bv, cache = model.step(token_b, rows.cache)
        _check_kept(model, (rows.logits_bv, rows.cache), (logits_bv, cache))
        done_b = rows.done_b | (token_b == stop)
        rows = _Rows(cache, logits_bv, done_b, rows.index + 1)
        return made + 1, tokens_bn.at[:, made].set(token_b), rows

    tokens_bn = jnp.zeros((rows.done_b.shape[0], chunk), jnp.int32)
    made, tokens_bn, rows = jax.lax.while_loop(going, one, (jnp.int32(0), tokens_bn, rows))
    return tokens_bn, made, rows


def _check_kept(model: Decoder, before: Any, after: Any) -> None:
    """Refuses, when a step is traced, one that changes shapes or dtypes of logits or cache."""

    def kinds(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    given, got = kinds(before), kinds(after)
    for path in sorted(given.keys() | got.keys()):
        if given.get(path) != got.get(path):
            name = "logits" if path == "[0]" else f"cache{path.removeprefix('[1]')}"
            raise UsageError(
                f"{name} is {given.get(path, 'not there')} before a step of "
                f"{type(model).__name__} and {got.get(path, 'not there')} after it; let "
                "init_cache, prefill and step use the same rows, sizes and dtypes"
            )


def pad_prompts(prompts: Prompts, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as int32 [b, t], padded on the right to 16 times a power of two, and lengths [b].

    Raises:
      UsageError: no prompts, an empty one, one that is not a list of ids, or an id out of range.

    >>> tokens, lengths = pad_prompts([[5, 6, 7], [8]], vocab_size=10)
    >>> tokens.shape, tokens[:, :4].tolist(), lengths.tolist()
    ((2, 16), [[5, 6, 7, 0], [8, 0, 0, 0]], [3, 1])
    """
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise UsageError("no prompt was given; give [b, t] tokens or a list of them")
    for i, row in enumerate(rows):
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise UsageError(
                f"prompt {i} has shape {row.shape} and dtype {row.dtype}; a prompt is a list of "
                "ids (encode text first, and put a single prompt into a list)"
            )
        if not row.size:
            raise UsageError(f"prompt {i} is empty; start it with the document boundary's id")
        if row.min() < 0 or row.max() >= vocab_size:
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise UsageError(
                f"prompt {i} holds the id {wrong}, and the model knows 0..{vocab_size - 1}; "
                "encode it with the tokenizer of the model"
            )
    lengths = np.array([row.size for row in rows], np.int32)
    size = SHORTEST
    while size < lengths.max():
        size *= 2
    tokens = np.zeros((len(rows), size), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : row.size] = row
    return tokens, lengths


def _check(num_tokens: int, stop_token: int | None, chunk: int, num_valid: int) -> None:
    for name, value in (("num_tokens", num_tokens), ("chunk", chunk)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    if stop_token is not None and not 0 <= stop_token < num_valid:
        raise UsageError(
            f"stop_token={stop_token} is never drawn: ids lie in 0..{num_valid - 1}; leave it out "
            "to generate num_tokens"
        )
