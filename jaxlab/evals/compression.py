"""What a general-purpose compressor needs for the same text: a yardstick for bits per byte."""

from __future__ import annotations

import lzma
from collections.abc import Iterable

from jaxlab.core import UsageError
from jaxlab.data import Source, Tokenizer


def evaluated_texts(source: Source, tokenizer: Tokenizer, limit: int | None) -> list[bytes]:
    """The documents, each cut to the text of its first `limit` tokens; None: whole.

    >>> from jaxlab.data import Bytes
    >>> evaluated_texts([b"abc", b"d"], Bytes(), 2)
    [b'ab', b'd']
    """

    def cut(document: bytes) -> bytes:
        tokens = tokenizer.encode(document)
        if limit is None or len(tokens) <= limit:
            return document
        return document[: tokenizer.num_bytes(tokens[:limit])]

    return [cut(source[index]) for index in range(len(source))]


def xz_bits_per_byte(documents: Iterable[bytes]) -> float:
    """Bits per byte of `xz -9e`, each document compressed on its own.

    Like a language model under evaluation, it meets each document without the others. Unlike the
    model, it has learned from no text before, and its container adds about 60 bytes per document.

    Args:
      documents: the text, as bytes.

    Raises:
      UsageError: no document, or only empty ones.

    >>> xz_bits_per_byte([b"a" * 10_000]) < 0.1
    True
    """
    text_bytes = compressed_bytes = 0
    for document in documents:
        text_bytes += len(document)
        compressed_bytes += len(lzma.compress(document, preset=9 | lzma.PRESET_EXTREME))
    if not text_bytes:
        raise UsageError("there is no text to compress; pass at least one document with text")
    return 8 * compressed_bytes / text_bytes
