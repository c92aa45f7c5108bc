from __future__ import annotations

import inspect
import textwrap

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, SentencePiece, count_words, walk

B = Bytes.boundary_id
LENGTHS = [50, 3, 0, 37, 1, 23, 11]


@pytest.fixture
def documents():
    rng = np.random.default_rng(1)
    return [rng.integers(256, size=n, dtype=np.uint8).tobytes() for n in LENGTHS]


def plan(documents, **overrides):
    settings = {"batch_size": 3, "segment_length": 8, "align": 4, **overrides}
    return walk(Documents(documents), Bytes(), **settings)


def joined(batches):
    batches = list(batches)
    return {name: np.concatenate([b[name] for b in batches], axis=1) for name in batches[0]}


# 51 targets of the first document: divided by 1, 3 and 17, not by the others.
SEGMENTS = [(1, 1), (1, 7), (3, 3), (17, 17), (4, 8), (4, 64)]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize(("align", "segment_length"), SEGMENTS)
def test_every_document_is_read_whole_and_once(documents, batch_size, align, segment_length):
    settings = {"batch_size": batch_size, "align": align, "segment_length": segment_length}
    rows = joined(plan(documents, **settings))
    for index, document in enumerate(documents):
        here = rows["index"] == index
        if not document:
            assert not here.any()
            continue
        assert here.any(axis=1).sum() == 1
        assert rows["targets"][here].tolist() == [*document, B]
        assert rows["position"][here].tolist() == list(range(len(document) + 1))
        assert rows["inputs"][here].tolist() == [B, *document]


@pytest.mark.parametrize(("align", "segment_length"), SEGMENTS)
def test_what_a_row_has_read_since_a_start_is_the_head_of_the_document_it_predicts(
    documents, align, segment_length
):
    rows = joined(plan(documents, align=align, segment_length=segment_length))
    for row in range(3):
        read: list[int] = []
        for i in range(rows["mask"].shape[1]):
            read = [] if rows["start"][row, i] else read
            read.append(int(rows["inputs"][row, i]))
            if rows["mask"][row, i]:
                document = [B, *documents[rows["index"][row, i]], B]
                assert [*read, rows["targets"][row, i]] == document[: len(read) + 1]


def test_mask_is_true_exactly_where_a_document_is(documents):
    rows = joined(plan(documents))
    np.testing.assert_array_equal(rows["mask"], rows["index"] >= 0)
    assert (rows["position"][~rows["mask"]] == 0).all()


def test_start_stands_at_the_first_position_of_each_document(documents):
    rows = joined(plan(documents))
    np.testing.assert_array_equal(rows["start"], rows["mask"] & (rows["position"] == 0))
    assert (np.nonzero(rows["start"])[1] % 4 == 0).all()


def test_counts_are_those_of_the_batches(documents):
    held_out = plan(documents)
    batches = list(held_out)
    assert len(batches) == len(held_out) == held_out.num_batches
    assert {a.shape for b in batches for a in b.values()} == {(3, 8)}
    assert held_out.num_targets == sum(int(b["mask"].sum()) for b in batches) == sum(LENGTHS) + 6
    assert (held_out.num_bytes, held_out.num_documents) == (sum(LENGTHS), 6)


def test_walk_can_be_walked_again(documents):
    held_out = plan(documents, cache_bytes=0)
    first, second = joined(held_out), joined(held_out)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_long_documents_are_dealt_first_so_that_rows_are_balanced():
    documents = [b"x" * n for n in (7, 7, 7, 7, 31)]
    rows = joined(plan(documents, batch_size=2))
    assert rows["mask"].sum(axis=1).tolist() == [32, 32]
    assert rows["mask"].shape == (2, 32)


def test_processes_together_walk_the_rows_of_one(documents):
    one = joined(plan(documents, batch_size=4))
    processes = [plan(documents, batch_size=4, rows=[2 * h, 2 * h + 1]) for h in range(2)]
    assert processes[0].num_batches == processes[1].num_batches
    parts = [joined(h) for h in processes]
    for name in one:
        np.testing.assert_array_equal(one[name], np.concatenate([p[name] for p in parts]))


def test_documents_are_cut_off_without_an_end(documents):
    held_out = plan(documents, max_document_tokens=11)
    rows = joined(held_out)
    for index, document in enumerate(documents):
        expected = [*document[:11]] if len(document) > 11 else [*document, B] * (len(document) > 0)
        assert rows["targets"][rows["index"] == index].tolist() == expected
    assert held_out.num_bytes == sum(min(n, 11) for n in LENGTHS)
    assert held_out.num_targets == int(rows["mask"].sum())


def test_words_are_those_of_the_text_that_is_read():
    documents = [b"to be  or\nnot", b"", b" \n", "caf\u00e9\u00a0noir".encode(), b"\xff x"]
    assert plan(documents).num_words == 4 + 0 + 2 + 2
    assert plan(documents, max_document_tokens=4).num_words == 2 + 0 + 1 + 2
    cut = [Documents(["a b c d e f"]), Documents([b"a b c d", b"e f"])]
    assert [walk(s, Bytes(), batch_size=1, segment_length=8).num_words for s in cut] == [6, 6]


def test_words_are_parted_as_by_python():
    text = "".join(f"a{chr(i)}" for i in [*range(0xD800), *range(0xE000, 0x11000)])
    assert count_words(text) == len(text.split()) == count_words(text.encode()) > 20


def test_bytes_of_cut_off_pieces_are_those_of_their_text():
    pytest.importorskip("sentencepiece")
    text = inspect.getsource(textwrap) + "é😀"
    tokenizer = SentencePiece.train(Documents([text]), 350)
    source = Documents([text, "😀" * 30])
    held_out = walk(source, tokenizer, batch_size=2, segment_length=16, max_document_tokens=40)
    rows = joined(held_out)
    read = [tokenizer.decode(rows["targets"][rows["index"] == i]) for i in range(2)]
    assert text.startswith(read[0]) and read[1] == "😀" * 10
    assert held_out.num_bytes == len(read[0]) + 40


def test_unusable_input_is_refused(documents):
    with pytest.raises(UsageError, match="all 2 documents are empty"):
        plan([b"", b""])
    with pytest.raises(UsageError, match="max_document_tokens=0; expected at least 1"):
        plan(documents, max_document_tokens=0)
    with pytest.raises(UsageError, match="segment_length=9 is not a multiple of align=4"):
        plan(documents, segment_length=9)
