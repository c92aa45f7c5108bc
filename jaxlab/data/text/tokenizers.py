"""Tokenizers: bytes, and SentencePiece models."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, nearest
from jaxlab.data.text.sentence_piece import SentencePiece as SentencePiece


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    @property
    def spec(self) -> str:
        """The string from which `open_tokenizer` makes this tokenizer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding table."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of ids in use, at most `vocab_size`; the rest never occur."""
        ...

    @property
    def boundary_id(self) -> int:
        """The id before and after each document; no text encodes to it."""
        ...

    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]:
        """Returns the ids int32 [n] of `text`, without boundaries."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids [n]; boundary and unknown ids are dropped."""
        ...

    def num_bytes(self, ids: npt.ArrayLike) -> int:
        """Returns the number of bytes of text in ids [n]."""
        ...

    def fingerprint(self) -> dict[str, str | int]:
        """Returns plain JSON that identifies this tokenizer."""
        ...


class Bytes:
    """The byte vocabulary of arXiv 2203.07852: 256 bytes, one boundary and three unused ids.

    >>> Bytes().encode("hi").tolist()
    [104, 105]
    >>> Bytes().decode([104, 105, 256])
    'hi'
    """

    spec = "bytes"
    vocab_size = 260
    num_tokens = 257
    boundary_id = 256

    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]:
        """Returns the bytes of `text` (UTF-8 if it is a str) as int32 [n]."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids [n]; invalid UTF-8 becomes U+FFFD."""
        return self._bytes(ids).tobytes().decode("utf-8", "replace")

    def num_bytes(self, ids: npt.ArrayLike) -> int:
        """Returns how many of the ids [n] are bytes."""
        return self._bytes(ids).size

    def fingerprint(self) -> dict[str, str | int]:
        """Returns the name, table size and boundary."""
        return {"name": self.spec, "vocab_size": self.vocab_size, "boundary_id": self.boundary_id}

    def _bytes(self, ids: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        flat = np.asarray(ids, np.int64).reshape(-1)
        return flat[(flat >= 0) & (flat < 256)].astype(np.uint8)


def open_tokenizer(spec: str) -> Tokenizer:
    """Opens the tokenizer that `spec` names: `bytes`, or `sentencepiece:/path/to.model`.

    Raises:
        UsageError: an unknown form, or a model file that is missing or cannot be read.
    """
    kind, _, path = spec.partition(":")
    if spec == "bytes":
        return Bytes()
    if kind == "sentencepiece" and path:
        return SentencePiece(path)
    raise UsageError(
        f"unknown tokenizer {spec!r}; expected 'bytes' or 'sentencepiece:<model file>'"
        f"{nearest(kind, ['bytes', 'sentencepiece'])}"
    )
