from __future__ import annotations

import re

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents
from jaxlab.evals import far_names

GAP = b"nothing happened for a while and then the dog barked at it. "


def marked(text: bytes, reach: int, limit: int | None = None) -> list[bytes]:
    """The runs of marked bytes."""
    (marks,) = far_names(Documents([text]), Bytes(), reach, max_document_tokens=limit).values()
    assert len(marks) == len(text[:limit])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks, [0]])))
    return [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_a_name_is_marked_where_its_last_mention_is_out_of_reach():
    text = b"Alice came. Alice spoke. " + GAP + b"Alice left. Bob stayed. " + GAP + b"Bob slept."
    assert marked(text, 50) == [b"Alice", b"Bob"]
    assert marked(text, 10) == [b"Alice", b"Alice", b"Bob"]
    assert marked(text, 1000) == []


def test_words_that_are_also_written_small_are_no_names():
    assert marked(b"Nothing stirred. " + GAP + b"Nothing Nothing", 5) == []


def test_the_distance_is_from_beginning_to_beginning():
    text = b"Anna" + b" " * 6 + b"Anna"  # ten apart
    assert marked(text, 10) == [] and marked(text, 9) == [b"Anna"]


def test_a_limit_cuts_the_marks():
    text = b"Clara " + GAP + b"Clara"
    assert marked(text, 5, len(text) - 2) == [b"Cla"]
    assert marked(text, 5, len(GAP)) == []


def test_tokens_of_several_bytes_are_marked_whole():
    class Pairs(Bytes):
        def encode(self, text):
            return np.arange((len(text) + 1) // 2, dtype=np.int32)

        def num_bytes(self, ids):
            return 2 * len(ids)

    text = b"Eve met it" + b"." * 20 + b"xEve"  # the second begins inside a token
    (marks,) = far_names(Documents([text.replace(b"xEve", b" Eve")]), Pairs(), 5).values()
    assert np.flatnonzero(marks).tolist() == [15, 16]


class Pieces(Bytes):
    """Tokens of one to four bytes, by what follows from the bytes themselves; some of none."""

    def encode(self, text):
        ids, at = [], 0
        while at < len(text):
            ids += [0] * (text[at] % 5 == 0) + [1 + text[at] % 4]
            at += ids[-1]
        return np.array(ids, np.int32)

    def num_bytes(self, ids):
        return int(np.sum(ids))


def by_definition(text: bytes, tokens, sizes, reach: int) -> list[bool]:
    """Marks by asking of every word of the text for the mentions before it."""
    words = [(w.group().decode(), *w.span()) for w in re.finditer(rb"[A-Za-z]+", text)]
    written = {word for word, _, _ in words}
    cover = [set(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(tokens))]
    marks, mentions = [False] * len(tokens), []
    for word, first, beyond in words:
        held = [i for i, piece in enumerate(cover) if piece & set(range(first, beyond))]
        if len(word) < 3 or not word[0].isupper() or word.lower() in written:
            continue
        if not held or first not in cover[held[0]]:
            continue
        before = [begin for other, begin in mentions if other == word]
        if before and held[0] - before[-1] > reach:
            for i in range(held[0], held[-1] + 1):
                marks[i] = True
        mentions.append((word, held[0]))
    return marks


@pytest.mark.parametrize("tokenizer", [Bytes(), Pieces()])
@pytest.mark.parametrize("seed", range(3))
def test_random_text_is_marked_as_by_the_definition(tokenizer, seed):
    rng = np.random.default_rng(seed)
    known = b"Ann ANN Bob bob Cleo AnnCleo Di dog Dog x \xc3".split()
    text = b"".join(
        known[i] + b" .\n-'\xa9"[k : k + 1] * n
        for i, k, n in zip(
            rng.integers(0, len(known), 90),
            rng.integers(0, 6, 90),
            rng.integers(0, 4, 90),
            strict=True,
        )
    )
    marked_tokens = 0
    for reach, limit in ((1, None), (20, None), (20, 120), (90, None)):
        tokens = tokenizer.encode(text)[:limit]
        sizes = [tokenizer.num_bytes(tokens[i : i + 1]) for i in range(len(tokens))]
        (marks,) = far_names(
            Documents([text]), tokenizer, reach, max_document_tokens=limit
        ).values()
        assert marks.tolist() == by_definition(text, tokens, sizes, reach)
        marked_tokens += marks.sum()
    assert marked_tokens > 20


def test_a_text_without_a_token_has_no_marks():
    (marks,) = far_names(Documents([b"x Ann Ann"]), Bytes(), 1, max_document_tokens=0).values()
    assert marks.dtype == bool and marks.shape == (0,)


def test_a_reach_below_one_is_refused():
    with pytest.raises(UsageError, match="reach=0; expected a number of tokens"):
        far_names(Documents([b"x"]), Bytes(), 0)
