"""Names in a text that were last mentioned long ago: what only a long memory predicts well."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from jaxlab.core import UsageError
from jaxlab.data import Source, Tokenizer

WORD = re.compile(rb"[A-Za-z]+")


def far_names(
    source: Source, tokenizer: Tokenizer, reach: int, *, max_document_tokens: int | None = None
) -> dict[int, np.ndarray]:
    """Marks the tokens of names whose last mention lies further back than attention reaches.

    A name is a word of three letters or more that begins with a capital, and that the document
    never writes in small letters (which tells it from the first word of a sentence). arXiv
    2203.07852 finds that most of what a recurrent state gains is on such words.

    Args:
      source: the documents.
      tokenizer: of the model.
      reach: tokens; marked are mentions that begin more than so many after the beginning of the
        one before them. A stack of l layers with a window w reaches l * w tokens back.
      max_document_tokens: only so many first tokens of each document, as in `data.walk`.

    Returns:
      `{number of the document: bool [tokens]}`; see `evaluate_documents`.

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


def _far_names(
    text: bytes, tokenizer: Tokenizer, reach: int, limit: int | None
) -> np.ndarray:
    tokens = tokenizer.encode(text)[:limit]
    ends = np.cumsum([tokenizer.num_bytes(tokens[i : i + 1]) for i in range(len(tokens))])
    marks, last = np.zeros(len(tokens), bool), dict[bytes, int]()
    small = {word.group() for word in WORD.finditer(text)}
    for word, first, beyond in _words(text, small):
        begin, end = np.searchsorted(ends, (first, beyond - 1), side="right")
        if begin >= len(tokens):
            break
        if begin - last.get(word, begin) > reach:
            marks[begin : end + 1] = True
        last[word] = int(begin)
    return marks


def _words(text: bytes, small: set[bytes]) -> Iterable[tuple[bytes, int, int]]:
    for found in WORD.finditer(text):
        word = found.group()
        if len(word) > 2 and word[:1].isupper() and word.lower() not in small:
            yield word, found.start(), found.end()
