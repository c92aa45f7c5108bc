from __future__ import annotations

import json

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, DocumentStream, epoch_order, join_states
from jaxlab.data.text.framing import FramedDocuments

B = Bytes.boundary_id


def texts(lengths):
    """Documents whose bytes name document and position, so that no two agree."""
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=n, dtype=np.uint8).tobytes() for n in lengths]


def stream(documents, **overrides):
    settings = {"batch_size": 2, "segment_length": 8, "align": 4, "seed": 0, **overrides}
    return DocumentStream(Documents(documents), Bytes(), **settings)


def take(batches, count):
    """The next `count` batches joined along time."""
    parts = [next(batches) for _ in range(count)]
    return {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}


def read_back(rows, row):
    """Targets that count, cut at document starts."""
    starts = np.flatnonzero(rows["start"][row]).tolist()
    pieces = [slice(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return [rows["targets"][row, p][rows["mask"][row, p]].tolist() for p in pieces]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batch_has_the_documented_arrays():
    batch = next(stream(texts([30, 20, 10])))
    kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
    assert kinds == {
        "inputs": (np.int32, (2, 8)),
        "targets": (np.int32, (2, 8)),
        "mask": (np.bool_, (2, 8)),
        "start": (np.bool_, (2, 8)),
    }


def test_one_document_is_laid_out_with_boundaries_and_aligned_padding():
    rows = take(stream([b"abcde"], batch_size=1), 2)
    a, b, c, d, e = b"abcde"
    assert rows["inputs"][0].tolist() == [B, a, b, c, d, e, B, B] * 2
    assert rows["targets"][0].tolist() == [a, b, c, d, e, B, B, B] * 2
    assert rows["mask"][0].tolist() == [True] * 6 + [False] * 2 + [True] * 6 + [False] * 2
    assert np.flatnonzero(rows["start"][0]).tolist() == [0, 8]


def test_document_that_fills_its_block_is_not_padded():
    rows = take(stream([b"abc"], batch_size=1), 1)
    assert rows["mask"].all()
    assert np.flatnonzero(rows["start"][0]).tolist() == [0, 4]


def test_row_continues_where_the_last_step_ended():
    rows = take(stream(texts([50, 37, 23, 11])), 40)
    inside = ~rows["start"][:, 1:] & rows["mask"][:, 1:]
    np.testing.assert_array_equal(rows["inputs"][:, 1:][inside], rows["targets"][:, :-1][inside])
    assert (rows["inputs"][rows["start"]] == B).all()


def test_segment_length_does_not_change_what_a_row_reads():
    documents = texts([50, 37, 23, 11])
    short, long = (stream(documents, segment_length=t) for t in (4, 24))
    same(take(short, 30), take(long, 5))


@pytest.mark.parametrize(("align", "segment_length"), [(1, 7), (4, 8), (8, 8), (4, 64)])
def test_every_token_of_an_epoch_is_predicted_exactly_once(align, segment_length):
    documents = texts([50, 3, 37, 1, 23, 11])
    reader = stream(documents, batch_size=3, align=align, segment_length=segment_length)
    rows = take(reader, 400 // segment_length + 1)
    assert (np.nonzero(rows["start"])[1] % align == 0).all()
    read = [tuple(piece) for row in range(3) for piece in read_back(rows, row)[:2]]
    assert sorted(read) == sorted((*d, B) for d in documents)


@pytest.mark.parametrize(("align", "segment_length"), [(1, 1), (1, 7), (3, 6), (17, 17), (4, 64)])
def test_what_a_row_has_read_since_a_start_is_the_head_of_one_document(align, segment_length):
    documents = texts([50, 3, 37, 1, 23, 11])
    framed = [[B, *document, B] for document in documents]
    reader = stream(documents, align=align, segment_length=segment_length)
    rows = take(reader, -(-250 // segment_length))
    for row in range(2):
        read = []
        for i in range(250):
            read = [] if rows["start"][row, i] else read
            read.append(int(rows["inputs"][row, i]))
            if rows["mask"][row, i]:
                seen = [*read, int(rows["targets"][row, i])]
                assert seen in [document[: len(seen)] for document in framed]


def test_row_reads_every_batch_size_th_document_of_the_order():
    documents = texts([5, 6, 7, 8, 9])
    rows = take(stream(documents, batch_size=2, seed=7), 20)
    order = np.concatenate([epoch_order(5, 7, epoch) for epoch in range(4)])
    for row in range(2):
        expected = [[*documents[i], B] for i in order[row::2]]
        assert read_back(rows, row)[:9] == expected[:9]


def test_order_differs_by_epoch_and_seed_and_repeats_under_a_seed():
    orders = [epoch_order(50, *at).tolist() for at in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sorted(orders[1]) == list(range(50))


def test_without_shuffling_documents_come_in_order():
    documents = texts([5, 6, 7])
    rows = take(stream(documents, batch_size=1, shuffle=False), 6)
    assert read_back(rows, 0)[:4] == [[*documents[i], B] for i in (0, 1, 2, 0)]


def part(batch_size, process, processes):
    """The rows of one of several processes, which take every `processes`-th."""
    return range(process, batch_size, processes)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_rows_of_one(processes):
    documents = texts([50, 37, 23, 11, 64, 5])
    one = take(stream(documents, batch_size=4), 12)
    for process in range(processes):
        rows = take(stream(documents, batch_size=4, rows=part(4, process, processes)), 12)
        same(rows, {name: one[name][process::processes] for name in one})


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
@pytest.mark.parametrize("lengths", [[50, 37, 23, 11], [200], [9, 5]])
def test_restored_stream_equals_the_uninterrupted_one(steps, lengths):
    documents = texts(lengths)
    whole = stream(documents, batch_size=4)
    for _ in range(steps):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    resumed = stream(documents, batch_size=4)
    next(resumed)
    resumed.restore(state)
    same(take(resumed, 15), take(whole, 15))


def test_taking_the_state_changes_nothing():
    documents = texts([50, 37])
    watched, plain = stream(documents), stream(documents)
    for _ in range(10):
        watched.state()
        same(next(watched), next(plain))
    assert watched.state() == plain.state()


def test_joined_states_of_two_processes_restore_four():
    documents = texts([50, 37, 23, 11, 64, 5])
    two = [stream(documents, batch_size=4, rows=part(4, h, 2)) for h in range(2)]
    for reader in two:
        take(reader, 5)
    joined = join_states([reader.state() for reader in two[::-1]])
    four = [stream(documents, batch_size=4, rows=part(4, h, 4)) for h in range(4)]
    for reader in four:
        reader.restore(joined)
    expected = [take(reader, 5) for reader in two]
    for process, reader in enumerate(four):
        same(take(reader, 5), {n: x[process // 2 :: 2] for n, x in expected[process % 2].items()})


def test_rows_of_a_single_document_begin_evenly_spaced_and_aligned():
    document = texts([799])[0]
    batch = next(stream([document], batch_size=8, segment_length=100, align=4))
    assert batch["start"][:, 0].all() and batch["start"].sum() == 8
    for row in range(8):
        assert batch["targets"][row].tolist() == [*document, B][100 * row : 100 * (row + 1)]


def test_rows_of_a_single_document_start_at_its_head_after_the_first_round():
    document = texts([799])[0]
    rows = take(stream([document], batch_size=8, segment_length=100, align=4), 20)
    for row in range(8):
        first, second = read_back(rows, row)[:2]
        assert first == [*document, B][100 * row :]
        assert second == [*document, B][: len(second)] and len(second) >= 800


def test_documents_shorter_than_the_rows_sharing_them_are_read_from_the_head():
    rows = take(stream([b"ab"], batch_size=3), 1)
    assert [read_back(rows, row)[0] for row in range(3)] == [[*b"ab", B]] * 3


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_empty_documents_are_passed_over(shuffle, batch_size):
    documents = [b"", b"abc", b"", b"defgh"]
    rows = take(stream(documents, batch_size=batch_size, shuffle=shuffle), 10)
    read = [piece for row in range(batch_size) for piece in read_back(rows, row)[1:-1]]
    assert read and {tuple(p) for p in read} <= {(*b"abc", B), (*b"defgh", B)}


def test_source_without_text_is_refused_instead_of_searched_forever():
    with pytest.raises(UsageError, match="all 2 documents are empty"):
        next(stream([b"", b""]))
    with pytest.raises(UsageError, match="the source has no document"):
        stream([])


def test_small_cache_changes_nothing_but_the_time():
    documents = texts([50, 37, 23, 11, 64, 5])
    same(take(stream(documents, cache_bytes=0), 30), take(stream(documents), 30))


def test_cache_holds_no_more_than_its_bound():
    reader = stream(texts([100] * 20), cache_bytes=1000)
    take(reader, 100)
    cache = reader._documents._cache
    assert 0 < sum(d.ids.nbytes for d in cache.values()) <= 1000


def test_cache_forgets_the_document_used_longest_ago():
    reads = []

    class Watched(Documents):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    kept = FramedDocuments(Watched([b"abc", b"def", b"ghi"]), Bytes(), align=1, cache_bytes=20)
    for index in (0, 1, 0, 2, 0, 1):  # ten bytes each: two fit
        kept[index]
    assert reads == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1}, r"seed=0 \(now 1\)"),
        ({"batch_size": 4, "align": 2}, r"batch_size=2 \(now 4\), align=4 \(now 2\)"),
        ({"shuffle": False}, r"shuffle=True \(now False\)"),
    ],
)
def test_state_of_another_stream_is_refused_with_the_fields_that_differ(overrides, message):
    documents = texts([50, 37])
    with pytest.raises(UsageError, match=message):
        stream(documents, **overrides).restore(stream(documents).state())


def test_state_of_another_source_is_refused():
    with pytest.raises(UsageError, match=r"num_documents=2 \(now 3\), source='\w{16}' \(now"):
        stream(texts([5, 6, 7])).restore(stream(texts([5, 6])).state())


def test_document_that_changed_since_the_state_was_saved_is_named():
    state = stream([b"abcdef"], batch_size=1).state()
    with pytest.raises(UsageError, match="document '0' has 9 targets, but had 7"):
        stream([b"abcdefgh"], batch_size=1).restore(state)


def test_state_without_the_rows_of_this_process_is_refused():
    documents = texts([50, 37])
    state = stream(documents, rows=[0]).state()
    with pytest.raises(UsageError, match="has no row 1.*join_states"):
        stream(documents, rows=[1]).restore(state)


def test_something_else_than_a_state_is_refused():
    with pytest.raises(
        UsageError, match=r"has the keys \['step'\]; expected the result of stream.state"
    ):
        stream(texts([5])).restore({"step": 3})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"segment_length": 100, "align": 16}, "segment_length=100 .* align=16; nearest: 96, 112"),
        ({"segment_length": 8, "align": 16}, "segment_length=8 .* align=16; nearest: 16"),
        ({"batch_size": 6, "rows": (2, 6)}, "rows=.2, 6.; expected rows of a batch of 6"),
        ({"batch_size": 0}, "batch_size=0; expected at least 1"),
        ({"rows": (1, 0)}, r"rows=\(1, 0\); expected"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(UsageError, match=message):
        stream(texts([5]), **overrides)
