"""Names last mentioned long ago in a text, which only a long memory predicts well."""

from __future__ import annotations

import re
import string

import numpy as np

from jaxlab.core import UsageError
from jaxlab.data import Source, Tokenizer

CAPITAL = re.compile(rb"(?<![A-Za-z])[A-Z][A-Za-z]{2,}")
# A table for `bytes.translate`: everything except letters becomes a space.
LETTERS = bytes(c if chr(c) in string.ascii_letters else 32 for c in range(256))


def far_names(
    source: Source, tokenizer: Tokenizer, reach: int, *, max_document_tokens: int | None = None
) -> dict[int, np.ndarray]:
    """Marks the tokens of names whose last mention lies further back than attention reaches.

    A name is a word of three letters or more that begins with a capital letter and that the
    document never writes in lower case, which excludes first words of sentences. arXiv 2203.07852
    finds that a recurrent state helps most on such words.

    Args:
      source: the documents.
      tokenizer: the tokenizer of the model.
      reach: distance in tokens; a mention is marked if it begins more than `reach` tokens after the
        beginning of the previous one. A stack of l layers with a window w reaches l * w tokens
        back.
      max_document_tokens: use only the first tokens of each document, as in `data.walk`.

    Returns:
      `{number of the document: bool [tokens]}`, for `evaluate_documents`.

    Raises:
      UsageError: a reach below 1.

    >>> from jaxlab.data import Bytes
    >>> marks = far_names([b"Ada met Bob. They ate. Ada left."], Bytes(), reach=20)
    >>> [int(i) for i in np.flatnonzero(marks[0])]
    [23, 24, 25]
    """
    if reach < 1:
        raise UsageError(f"reach={reach}; expected a number of tokens, 1 or more")
    return {
        index: _far_names(bytes(source[index]), tokenizer, reach, max_document_tokens)
        for index in range(len(source))
    }


def _far_names(text: bytes, tokenizer: Tokenizer, reach: int, limit: int | None) -> np.ndarray:
    tokens = np.asarray(tokenizer.encode(text)[:limit])
    ends = np.cumsum(_lengths(tokens, tokenizer))
    spelling, first, beyond = _names(text)
    begin = np.searchsorted(ends, first, side="right")
    read = begin < len(tokens)  # a limit cuts the rest
    spelling, begin = spelling[read], begin[read]
    end = np.searchsorted(ends, beyond[read] - 1, side="right") + 1
    order = np.argsort(spelling, kind="stable")  # groups the mentions of one name
    again = spelling[order][1:] == spelling[order][:-1]
    far = order[1:][again & (np.diff(begin[order]) > reach)]
    edges = np.zeros(len(tokens) + 1, np.int64)
    np.add.at(edges, begin[far], 1)
    np.add.at(edges, np.minimum(end[far], len(tokens)), -1)
    return np.cumsum(edges[:-1]) > 0


def _lengths(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Bytes that each token stands for; the tokenizer is asked once for each id."""
    count = np.bincount(tokens) if len(tokens) else np.zeros(0, np.int64)
    length_of_id = np.zeros(len(count), np.int64)
    for i in np.flatnonzero(count):
        length_of_id[i] = tokenizer.num_bytes(np.array([i], tokens.dtype))
    return length_of_id[tokens]


def _names(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each mention of a name: a number for its spelling, its first byte, the byte after it."""
    words = set(text.translate(LETTERS).split())
    number = {
        word: i
        for i, word in enumerate(words)
        if len(word) > 2 and word[:1].isupper() and word.lower() not in words
    }
    mentions = [
        (number[word], at.start(), at.end())
        for at in CAPITAL.finditer(text)
        if (word := at.group()) in number
    ]
    spellings, begins, ends = np.array(mentions, np.int64).reshape(-1, 3).T
    return spellings, begins, ends
