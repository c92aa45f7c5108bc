"""Checks that bytes are UTF-8, and where they are not."""

from __future__ import annotations

import dataclasses
import itertools

from jaxlab.core import UsageError
from jaxlab.data.text.sources import Source


@dataclasses.dataclass(frozen=True)
class InvalidUtf8:
    """The first byte of a document that is not valid UTF-8.

    Attributes:
        name: the name of the document.
        offset: the position of the byte in the document, from 0.
        byte: its value, 0 to 255.
    """

    name: str
    offset: int
    byte: int

    def __str__(self) -> str:
        return f"{self.name} is not UTF-8 (byte 0x{self.byte:02x} at {self.offset})"


def check_utf8(data: bytes, name: str = "text") -> InvalidUtf8 | None:
    """Returns the first byte of `data` that is not UTF-8, or None if all of it is.

    >>> print(check_utf8(b"caf\\xff", "notes.txt"))
    notes.txt is not UTF-8 (byte 0xff at 3)
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidUtf8(name, error.start, data[error.start])
    return None


def find_invalid_utf8(source: Source, max_documents: int | None = None) -> InvalidUtf8 | None:
    """Returns the first byte in `source` that is not UTF-8, or None.

    Args:
        source: the documents; they are read in order up to the first invalid one.
        max_documents: the number of documents to check; None: all.
    """
    for index in itertools.islice(range(len(source)), max_documents):
        invalid = check_utf8(source[index], source.names[index])
        if invalid is not None:
            return invalid
    return None


def decode_utf8(data: bytes) -> str:
    """Decodes `data`.

    Raises:
        UsageError: it is not UTF-8; names the byte and its offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{check_utf8(data)}; expected UTF-8: convert the document, or use the tokenizer "
            f"'bytes', which accepts any bytes"
        ) from error
