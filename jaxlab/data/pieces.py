"""Text from token ids that come bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from jaxlab.data.tokenizers import Tokenizer


def decode_pieces(tokenizer: Tokenizer, chunks: Iterable[npt.ArrayLike]) -> Iterator[str]:
    """Yields the text of chunks of ids as it becomes certain; joined, it is that of all ids.

    A character whose bytes are not all there yet is held back.

    >>> from jaxlab.data import Bytes
    >>> list(decode_pieces(Bytes(), [[104, 105, 0xC3], [0xA9]]))
    ['hi', 'é']
    """
    ids, shown = np.zeros(0, np.int64), 0
    for chunk in chunks:
        ids = np.concatenate([ids, np.asarray(chunk, np.int64).reshape(-1)])
        text = tokenizer.decode(ids)
        whole = len(text.rstrip("\ufffd"))
        if whole > shown:
            yield text[shown:whole]
            shown = whole
    if rest := tokenizer.decode(ids)[shown:]:
        yield rest
