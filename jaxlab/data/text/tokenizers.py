"""Tokenizers: bytes, and SentencePiece models that give back every character."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError, nearest
from jaxlab.data.text.sentence_piece import SentencePiece as SentencePiece


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def spec(self) -> str:
        """The string that `open_tokenizer` takes to make it again."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding table."""
        ...

    @property
    def num_tokens(self) -> int:
        """Ids with a meaning; at most `vocab_size`, the rest are never produced."""
        ...

    @property
    def boundary_id(self) -> int:
        """The id that stands before and after each document; no text encodes to it."""
        ...

    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]:
        """Returns the ids int32 [n] of `text`, without boundaries."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids [n]; boundary and unknown ids are dropped."""
        ...

    def num_bytes(self, ids: npt.ArrayLike) -> int:
        """Returns how many bytes of text the ids [n] stand for."""
        ...

    def fingerprint(self) -> dict[str, str | int]:
        """Returns what tells this tokenizer from another, as plain JSON."""
        ...


class Bytes:
    """The 256 bytes, one boundary, and three unused ids: the byte vocabulary of arXiv 2203.07852.

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
        """Returns the UTF-8 bytes of `text` as int32 [n]; bytes need not be UTF-8."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids [n]; what is not UTF-8 becomes U+FFFD."""
        return self._bytes(ids).tobytes().decode("utf-8", "replace")

    def num_bytes(self, ids: npt.ArrayLike) -> int:
        """Returns how many of the ids [n] are bytes."""
        return self._bytes(ids).size

    def fingerprint(self) -> dict[str, str | int]:
        """Returns name, table size and boundary."""
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
