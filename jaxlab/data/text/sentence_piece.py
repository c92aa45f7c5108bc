"""SentencePiece models, loaded or trained, with lossless decoding."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError
from jaxlab.data.text.encoding import decode_utf8
from jaxlab.data.text.sources import Source

# SentencePiece writes a space as U+2581, so it would read a real U+2581 as a space.
_SPACE_MARK = "\u2581"
# Table rows are padded to the lane width of accelerators, which also divides over a mesh.
_ROW_MULTIPLE = 128
# The trainer works on sentences; longer lines (minified code, base64) are split.
_MAX_LINE = 4096


class SentencePiece:
    """A SentencePiece model as a `Tokenizer`.

    `decode(encode(x)) == x` for every text if the model has byte fallback and no normalisation, as
    models made by `train` do. The boundary is the model's end-of-sentence id, or its
    begin-of-sentence id if it has no end. `num_bytes` counts the bytes of the decoded pieces.

    Args:
        model: the path of a `.model` file, or its content.

    Raises:
        UsageError: `sentencepiece` is not installed; the file is missing or not a model; the model
            has neither an end- nor a begin-of-sentence id.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes):
        spm = _import_sentencepiece()
        if isinstance(model, bytes):
            self.model = model
            self._sha256 = hashlib.sha256(model).hexdigest()
            origin = f"in memory, sha256 {self._sha256[:12]}"
        else:
            self.model = _read_model(pathlib.Path(model).expanduser())
            self._sha256 = hashlib.sha256(self.model).hexdigest()
            origin = str(model)
        self.spec = f"sentencepiece:{origin}"
        try:
            self._processor = spm.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise UsageError(
                f"{origin!r} ({len(self.model)} bytes) is not a SentencePiece model"
            ) from error
        self.num_tokens: int = self._processor.vocab_size()
        self.vocab_size = -(-self.num_tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self.boundary_id = _boundary(self._processor, origin)
        self._pieces = [_piece_bytes(self._processor, i) for i in range(self.num_tokens)]
        self._lengths = np.array([len(p) for p in self._pieces] + [0], np.int64)
        self._newline = self._lone_newline() if self._keeps_spaces() else None
        self._mark = self._byte_ids(_SPACE_MARK.encode()) if self._keeps_spaces() else []

    @classmethod
    def train(
        cls,
        source: Source,
        vocab_size: int,
        path: str | os.PathLike[str] | None = None,
        *,
        kind: str = "bpe",
        seed: int = 0,
        sample_bytes: int = 20_000_000,
    ) -> SentencePiece:
        """Trains a model on documents of `source`, with byte fallback and no normalisation.

        Newline and tab are separate pieces, so no piece spans two lines. All spaces are preserved;
        runs of spaces can become pieces.

        Args:
            source: UTF-8 documents.
            vocab_size: number of pieces, at least 256 bytes + 4 + the characters of the text.
            path: where to write the model; None: only in memory.
            kind: `bpe` or `unigram`.
            seed: determines which documents are sampled.
            sample_bytes: sampling stops after this many bytes.

        Raises:
            UsageError: an unknown kind; a `vocab_size` too large for the text or too small for its
                characters; no text; a document that is not UTF-8.
        """
        spm = _import_sentencepiece()
        if kind not in ("bpe", "unigram"):
            raise UsageError(f"kind={kind!r}; expected 'bpe' or 'unigram'")
        lines = list(_sample_lines(source, seed, sample_bytes))
        if not lines:
            raise UsageError(f"the source ({len(source)} documents) has no text to train on")
        out = io.BytesIO()
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=out,
                vocab_size=vocab_size,
                model_type=kind,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n", "\t"],
                unk_id=0,
                eos_id=1,
                bos_id=-1,
                pad_id=-1,
                max_sentence_length=8 * _MAX_LINE,  # in bytes
                num_threads=1,  # sums over several threads are not reproducible
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _training_error(error, vocab_size) from error
        if path is None:
            return cls(out.getvalue())
        pathlib.Path(path).expanduser().write_bytes(out.getvalue())
        return cls(path)

    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]:
        """Returns the ids int32 [n] of `text`, without boundaries.

        Raises:
            UsageError: the bytes are not UTF-8; names the byte and its offset.
        """
        text = decode_utf8(text) if isinstance(text, bytes) else text
        parts = text.split(_SPACE_MARK) if self._mark else [text]
        ids = self._encode_lines(parts[0])
        for part in parts[1:]:
            ids += self._mark
            ids += self._encode_lines(part)
        return np.array(ids, np.int32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids [n]; invalid UTF-8 becomes U+FFFD."""
        flat = np.asarray(ids, np.int64).reshape(-1)
        known = flat[(flat >= 0) & (flat < self.num_tokens)].tolist()
        return b"".join([self._pieces[i] for i in known]).decode("utf-8", "replace")

    def num_bytes(self, ids: npt.ArrayLike) -> int:
        """Returns the number of bytes of text in ids [n]; control ids have none."""
        flat = np.asarray(ids, np.int64).reshape(-1)
        known = (flat >= 0) & (flat < self.num_tokens)
        return int(self._lengths[np.where(known, flat, self.num_tokens)].sum())

    def fingerprint(self) -> dict[str, str | int]:
        """Returns the name, table size and boundary, and the sha256 of the model."""
        return {
            "name": "sentencepiece",
            "vocab_size": self.vocab_size,
            "boundary_id": self.boundary_id,
            "sha256": self._sha256,
        }

    def _encode_lines(self, text: str) -> list[int]:
        if self._newline is None:
            return self._processor.encode(text)
        # No piece spans a newline, so encoding line by line gives the same ids in half the time.
        ids: list[int] = []
        for line in self._processor.encode(text.split("\n"), num_threads=1):
            ids += line
            ids.append(self._newline)
        return ids[:-1]

    def _keeps_spaces(self) -> bool:
        """Returns whether text can be split before encoding: no space is added or removed."""
        return self.decode(self._processor.encode(" ")) == " "

    def _lone_newline(self) -> int | None:
        """Returns the id of the newline if no other piece contains one, else None."""
        holders = [i for i, piece in enumerate(self._pieces) if b"\n" in piece]
        holders = [i for i in holders if not self._processor.is_byte(i)]
        return holders[0] if len(holders) == 1 and self._pieces[holders[0]] == b"\n" else None

    def _byte_ids(self, data: bytes) -> list[int]:
        """Returns the byte-fallback ids of `data`, or [] if the model has no byte fallback."""
        ids = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in data]
        return ids if all(self._processor.is_byte(i) for i in ids) else []


def _import_sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UsageError(
            "package 'sentencepiece' is missing; run: pip install sentencepiece, or use the "
            "tokenizer 'bytes'"
        ) from error
    return sentencepiece


def _read_model(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"SentencePiece model {str(path)!r} cannot be read ({error.strerror}); pass the path "
            f"of a .model file, or train one with SentencePiece.train"
        ) from error


def _boundary(processor: Any, origin: str) -> int:
    for boundary in (processor.eos_id(), processor.bos_id()):
        if boundary >= 0:
            return boundary
    raise UsageError(
        f"SentencePiece model {origin!r} has neither an end- nor a begin-of-sentence id; expected "
        f"one to separate documents"
    )


def _piece_bytes(processor: Any, index: int) -> bytes:
    """Returns the bytes of a piece; control, unknown and unused pieces have none."""
    if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
        return b""
    piece = processor.id_to_piece(index)
    if processor.is_byte(index):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace(_SPACE_MARK, " ").encode()


def _sample_lines(source: Source, seed: int, sample_bytes: int) -> Iterator[str]:
    read = 0
    for index in np.random.default_rng(seed).permutation(len(source)):
        if read >= sample_bytes:
            return
        data = source[int(index)]
        read += len(data)
        for line in decode_utf8(data).split("\n"):
            yield from (line[i : i + _MAX_LINE] for i in range(0, len(line), _MAX_LINE))


def _training_error(error: RuntimeError, vocab_size: int) -> UsageError:
    reason = str(error)
    most = re.search(r"value <= (\d+)", reason)
    least = re.search(r"required_chars\. \d+ vs (\d+)", reason)
    if most:
        return UsageError(f"vocab_size={vocab_size} is too large for the text; at most {most[1]}")
    if least:
        return UsageError(
            f"vocab_size={vocab_size} is too small for the 256 bytes and the characters of the "
            f"text; at least {least[1]}"
        )
    return UsageError(f"SentencePiece training with vocab_size={vocab_size} failed: {reason}")
