"""Generation of text with a model and its tokenizer, from strings and up to stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxlab.core import UsageError, View
from jaxlab.data import IncrementalDecoder, Tokenizer
from jaxlab.sampling.autoregressive import Decoder, as_decoder, generate_stream


def generate_text(
    model: Decoder | View,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    num_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
) -> list[str]:
    """Continues prompts, each of which begins a document.

    A row ends with its document, before the first stop string, or after `num_tokens`.

    Args:
      model: a decoding model, or a `View` of one.
      tokenizer: the one that the model was trained with.
      prompts: b strings; an empty one begins a document.
      num_tokens: the most tokens to add to each prompt.
      key, temperature, top_k, top_p: see `generate`.
      stop: strings, or one, before which the text ends; looked for in what is added alone, across
        the borders of tokens (see `data.IncrementalDecoder`).

    Returns:
      The continuation of each prompt.

    Raises:
      UsageError: no prompts, or a string in their place; an empty stop string; a tokenizer with
        more ids than the model; a number out of range.
    """
    rows = stream_text(
        model,
        tokenizer,
        prompts,
        num_tokens=num_tokens,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
    )
    return ["".join(pieces) for pieces in zip(*rows, strict=True)]


def stream_text(
    model: Decoder | View,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    num_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
    chunk: int = 32,
) -> Iterator[list[str]]:
    """Like `generate_text`, but yields text as tokens are drawn, one piece for each row.

    Pieces can be empty; joined, they are the text. Text that may still become a stop string is held
    back. Once all rows have ended, only the current `chunk` of tokens is finished.
    """
    if isinstance(prompts, str):
        raise UsageError(f"prompts={prompts[:20]!r} is a string; put a single prompt into a list")
    vocab_size = as_decoder(model).vocab_size
    if tokenizer.num_tokens > vocab_size:
        raise UsageError(
            f"tokenizer {tokenizer.spec!r} has {tokenizer.num_tokens} ids and the model knows "
            f"{vocab_size}; use the tokenizer that the model was trained with"
        )
    rows = [IncrementalDecoder(tokenizer, stop) for _ in prompts]
    ids = [np.concatenate([[tokenizer.boundary_id], tokenizer.encode(p)]) for p in prompts]
    chunks = generate_stream(
        model,
        ids,
        num_tokens=num_tokens,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token=tokenizer.boundary_id,
        num_valid=tokenizer.num_tokens,
        chunk=chunk,
    )
    return _pieces(rows, chunks, tokenizer.boundary_id)


def _pieces(
    rows: list[IncrementalDecoder], chunks: Iterator[np.ndarray], boundary_id: int
) -> Iterator[list[str]]:
    for tokens_bn in chunks:
        yield [row.add(ids) for row, ids in zip(rows, tokens_bn, strict=True)]
        at_end_b = tokens_bn[:, -1] == boundary_id
        if all(row.stopped or at_end for row, at_end in zip(rows, at_end_b, strict=True)):
            break
    yield [row.finish() for row in rows]
