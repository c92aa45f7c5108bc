"""Whether bytes are UTF-8, and where they stop being it."""

from __future__ import annotations

import dataclasses
import itertools

from jaxlab.core import UsageError
from jaxlab.data.text.sources import Source


@dataclasses.dataclass(frozen=True)
class InvalidUtf8:
    """The first byte of a document that is not UTF-8.

    Attributes:
        name: name of the document.
        offset: position of the byte in the document, from 0.
        byte: its value, 0 to 255.
    """

    name: str
    offset: int
    byte: int

    def __str__(self) -> str:
        return f"{self.name} is not UTF-8 (byte 0x{self.byte:02x} at {self.offset})"


def check_utf8(data: bytes, name: str = "text") -> InvalidUtf8 | None:
    """Returns where `data` stops being UTF-8, or None where it is UTF-8 to its end.

    >>> print(check_utf8(b"caf\\xff", "notes.txt"))
    notes.txt is not UTF-8 (byte 0xff at 3)
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidUtf8(name, error.start, data[error.start])
    return None


def find_invalid_utf8(source: Source, max_documents: int | None = None) -> InvalidUtf8 | None:
    """Returns the first place in `source` that is not UTF-8, or None.

    Args:
        source: the documents; they are read in order up to the first invalid one.
        max_documents: how many documents to read at most; None reads all.
    """
    for index in itertools.islice(range(len(source)), max_documents):
        found = check_utf8(source[index], source.names[index])
        if found is not None:
            return found
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
            f"'bytes', which takes any bytes"
        ) from error
