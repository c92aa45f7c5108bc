"""Incremental decoding, against a search for stop strings in the whole text."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, IncrementalDecoder, SentencePiece, decode_incrementally

TEXT = "ab\n\ncaf\u00e9 \U0001f642 aab\n"


def cut(text, stop):
    """The text before what is complete first, by looking at every beginning of it."""
    for end in range(len(text) + 1):
        if starts := [end - len(s) for s in stop if text[:end].endswith(s)]:
            return text[: min(starts)]
    return text


def in_chunks(ids, size):
    return [ids[i : i + size] for i in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize(
    "stop",
    [
        (),
        ("\n\n",),
        ("\u00e9",),
        ("\U0001f642 a",),
        ("f\u00e9",),
        ("aab",),
        ("b\n",),
        ("nowhere",),
        ("b\n", "ab\n\n"),
        ("\n\nc", "\n"),
        ("a",),
        (TEXT,),
    ],
)
def test_text_ends_before_the_first_stop_string_however_ids_are_cut(stop, size):
    texts = list(decode_incrementally(Bytes(), in_chunks(Bytes().encode(TEXT), size), stop))
    assert "".join(texts) == cut(TEXT, stop) and all(texts)


@pytest.mark.parametrize("seed", range(40))
def test_texts_and_stop_strings_of_few_letters_agree_with_the_search(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("a\u00e9"), 30))
    stop = ["".join(rng.choice(list("a\u00e9"), rng.integers(2, 7))) for _ in range(3)]
    for size in (1, 4, 70):
        texts = decode_incrementally(Bytes(), in_chunks(Bytes().encode(text), size), stop)
        assert "".join(texts) == cut(text, stop)


def test_a_stop_string_inside_and_across_tokens_of_several_characters_is_found():
    pytest.importorskip("sentencepiece")
    words = Documents([("the cat sat on the mat and that was that " * 40).encode()])
    tokenizer = SentencePiece.train(words, vocab_size=300)
    text = "the cat sat on the mat"
    ids = tokenizer.encode(text)
    assert len(ids) < 15  # tokens are longer than a character
    for stop in ("a", "t s", "at on", "mat"):
        got = "".join(decode_incrementally(tokenizer, in_chunks(ids, 1), stop))
        assert got == text[: text.index(stop)]


def test_what_may_become_a_stop_string_is_held_back_until_it_cannot():
    row = IncrementalDecoder(Bytes(), ["END", "\u00e9\u00e9"])
    shown = [row.add([byte]) for byte in "aENxE\u00e9b".encode()]
    assert shown == ["a", "", "", "ENx", "", "", "E", "\u00e9b"]
    assert row.add(list(b"EN")) == "" and not row.stopped
    assert row.finish() == "EN"


def test_no_chunk_is_taken_after_the_stop_string():
    def chunks():
        yield list(b"one.")
        raise AssertionError("asked for more")

    assert list(decode_incrementally(Bytes(), chunks(), ".")) == ["one"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    assert list(decode_incrementally(Bytes(), [[97, 0xE2], [0x82]], "b")) == ["a", "\ufffd"]


def test_an_empty_stop_string_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match=r"stop=\['a', ''\] holds an empty string"):
        decode_incrementally(Bytes(), [], ["a", ""])
