from __future__ import annotations

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents
from jaxlab.evals import far_names

GAP = b"nothing happened for a while and then the dog barked at it. "


def marked(text: bytes, reach: int, limit: int | None = None) -> list[bytes]:
    """The runs of marked bytes."""
    (marks,) = far_names(
        Documents([text]), Bytes(), reach, max_document_tokens=limit
    ).values()
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


def test_a_reach_below_one_is_refused():
    with pytest.raises(UsageError, match="reach=0; expected a number of tokens"):
        far_names(Documents([b"x"]), Bytes(), 0)
