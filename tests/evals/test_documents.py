"""Scores of documents against an adaptive model that is written out in NumPy."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab import data, evals
from jaxlab.analysis import mean_over_seeds
from jaxlab.core import MeshConfig, UsageError, View, make_mesh
from jaxlab.evals import (
    bits_per_byte_difference,
    doubling_edges,
    evaluate_documents,
    mean_scores,
    word_perplexity_difference,
)

VOCAB = data.Bytes.vocab_size
TEXTS = [b"abracadabra" * 3, b"", b"to be or not to be", b"z", b"banana bandana" * 4]


class Counts(nnx.Module):
    """Predicts each token by how often it was input in the document: `log(1 + count)`."""

    def __init__(self):
        self.start = nnx.Param(jnp.ones((VOCAB,)))

    def __call__(self, tokens_bt, carry, start_bt):
        def read(count_bv, xs):
            token_b, start_b = xs
            count_bv = jnp.where(start_b[:, None], self.start[...], count_bv)
            count_bv += jax.nn.one_hot(token_b, VOCAB)
            return count_bv, jnp.log(count_bv)

        carry, logits_tbv = jax.lax.scan(read, carry, (tokens_bt.T, start_bt.T))
        return logits_tbv.swapaxes(0, 1), carry


def init_carry(rows: int) -> jax.Array:
    return jnp.zeros((rows, VOCAB))


def reference(text: bytes, limit: int | None = None) -> list[float]:
    """Nats of every token, and of the end where it is reached."""
    boundary = data.Bytes.boundary_id
    tokens = [*text, boundary] if limit is None or len(text) <= limit else [*text[:limit]]
    counts, before, nats = np.ones(VOCAB), boundary, []
    for token in tokens:
        counts[before] += 1
        nats.append(math.log(counts.sum()) - math.log(counts[token]))
        before = token
    return nats


@pytest.fixture(scope="module")
def view() -> View:
    return View.of(Counts())


def walk(limit: int | None = None, rows: int = 2) -> data.Walk:
    return data.walk(
        data.Documents(TEXTS),
        data.Bytes(),
        batch_size=rows,
        segment_length=12,
        align=4,
        max_document_tokens=limit,
    )


@pytest.mark.parametrize("limit", [None, 20])
def test_every_token_of_every_document_counts_once(view: View, limit: int | None):
    edges = (0, 4, 8, 16)
    found = evaluate_documents(
        view,
        walk(limit),
        init_carry=init_carry,
        edges=edges,
    )
    wanted = {i: reference(text, limit) for i, text in enumerate(TEXTS) if text}
    assert found.documents.tolist() == list(wanted)
    assert found.document_counts.tolist() == [len(nats) for nats in wanted.values()]
    assert np.allclose(found.document_nats, [sum(nats) for nats in wanted.values()], rtol=1e-5)
    num_bytes = sum(len(text[:limit]) for text in TEXTS)
    bits = sum(map(sum, wanted.values())) / math.log(2) / num_bytes
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5)
    num_words = sum(len(text[:limit].split()) for text in TEXTS)
    assert found.num_words == num_words
    by_word = math.exp(sum(map(sum, wanted.values())) / num_words)
    assert found.word_perplexity == pytest.approx(by_word, rel=1e-4)
    for i, (low, high) in enumerate(zip(edges, (*edges[1:], 10_000), strict=True)):
        inside = [x for nats in wanted.values() for x in nats[low:high]]
        assert found.bin_counts[i] == len(inside)
        assert found.loss_by_position[i] == pytest.approx(np.mean(inside), rel=1e-5)
    late = [x for nats in wanted.values() for x in nats[8:]]
    assert found.bits_per_token(slice(2, None)) == pytest.approx(np.mean(late) / math.log(2))


def test_marked_tokens_are_counted_on_their_own(view: View):
    marks = {0: np.arange(33) % 5 == 0, 3: np.ones(1, bool)}  # document 0 in part, 3 but its end
    found = evaluate_documents(
        view,
        walk(),
        init_carry=init_carry,
        marks=marks,
    )
    wanted = [nats for i, nats in enumerate(reference(TEXTS[0])[:33]) if i % 5 == 0]
    wanted += reference(TEXTS[3])[:1]
    assert found.marked_count == len(wanted) == 8
    assert found.marked_nats == pytest.approx(sum(wanted), rel=1e-5)
    assert found.marked_bits_per_token == pytest.approx(np.mean(wanted) / math.log(2), rel=1e-5)


def test_rows_sharded_over_devices_give_the_same_scores(view: View):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    one, two = (
        evaluate_documents(of, walk(), init_carry=init_carry) for of in (view, view.on(mesh))
    )
    assert np.allclose(one.document_nats, two.document_nats)


def test_a_change_of_the_carry_comes_before_every_segment(view: View):
    forgetful = evaluate_documents(
        view,
        walk(rows=1),
        init_carry=init_carry,
        before_segment=lambda view, carry: jnp.broadcast_to(view.params["start"], carry.shape),
    )
    whole = evaluate_documents(view, walk(rows=1), init_carry=init_carry)
    # 'z' fits one segment; the repetitive ones lose what they had counted.
    losses = forgetful.document_nats - whole.document_nats
    by_name = dict(zip(whole.documents.tolist(), losses, strict=True))
    assert by_name[3] == pytest.approx(0) and by_name[0] > 1 and by_name[4] > 1


def test_models_of_one_config_share_a_program():
    traced = []

    class Traced(Counts):
        def __call__(self, *args):
            traced.append(1)
            return super().__call__(*args)

    model = Traced()
    scores = [
        evaluate_documents(of, walk(), init_carry=init_carry) for of in (model, View.of(model))
    ]
    model.start[...] = 5 * model.start[...]
    scores.append(evaluate_documents(model, walk(), init_carry=init_carry))
    assert len(traced) == 1
    assert scores[0].nats == scores[1].nats != scores[2].nats


def test_documents_are_scored_in_evaluation_mode():
    class Dropping(Counts):
        def __init__(self):
            super().__init__()
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, *args):
            logits_btv, carry = super().__call__(*args)
            return self.dropout(logits_btv), carry

    scores = [
        evaluate_documents(model, walk(), init_carry=init_carry) for model in (Dropping(), Counts())
    ]
    assert np.array_equal(scores[0].document_nats, scores[1].document_nats)


def test_a_position_without_tokens_has_no_loss(view: View):
    found = evaluate_documents(
        view,
        walk(),
        init_carry=init_carry,
        edges=(0, 500),
    )
    assert found.bin_counts[1] == 0 and math.isnan(found.loss_by_position[1])
    assert math.isnan(found.bits_per_token(slice(1, None)))


@pytest.mark.parametrize("edges", [(), (1, 2), (0, 4, 4), (0, 8, 4)])
def test_edges_must_ascend_from_zero(view: View, edges: tuple[int, ...]):
    with pytest.raises(UsageError, match="expected positions that ascend from 0"):
        evaluate_documents(view, walk(), init_carry=init_carry, edges=edges)


@pytest.mark.parametrize(
    ("window", "longest", "edges"),
    [(4, 1, (0, 4)), (4, 9, (0, 4, 8)), (4, 8, (0, 4)), (4, 33, (0, 4, 8, 16, 32))],
)
def test_bins_double_up_to_the_longest_document(window, longest, edges):
    assert doubling_edges(window, longest) == edges


def scores(nats: list[float], documents: list[int] | None = None) -> evals.DocumentScores:
    numbers = list(range(len(nats))) if documents is None else documents
    return evals.DocumentScores(
        edges=(0,),
        bin_nats=np.array([sum(nats)]),
        bin_counts=np.array([10 * len(nats)]),
        documents=np.array(numbers),
        document_nats=np.array(nats),
        document_counts=np.full(len(nats), 10),
        num_bytes=10 * len(nats),
        num_words=2 * len(nats),
    )


def test_perplexity_by_word_spreads_the_nats_of_all_tokens_over_the_words():
    # Two documents of ten tokens and two words each: 3 + 5 nats over four words.
    assert scores([3.0, 5.0]).word_perplexity == pytest.approx(math.e**2)
    assert scores([1e4]).word_perplexity == math.inf
    wordless = dataclasses.replace(scores([3.0]), num_words=0)
    assert math.isnan(wordless.word_perplexity)
    with pytest.raises(UsageError, match="no words; compare bits per byte"):
        word_perplexity_difference(wordless, wordless)


def test_the_paired_difference_of_perplexities_is_that_of_the_two():
    # Every document has the same nats, so every sample is the estimate.
    found = word_perplexity_difference(scores([2.0] * 5), scores([4.0] * 5), num_samples=50)
    assert found.value == pytest.approx(math.e - math.e**2)
    assert found.low == pytest.approx(found.value) and found.high == pytest.approx(found.value)
    mixed = word_perplexity_difference(scores([2.0, 4.0, 6.0]), scores([3.0, 2.0, 7.0]))
    assert mixed.value == pytest.approx(0) and mixed.low < -1 and mixed.high > 1


def test_the_paired_difference_does_not_feel_how_documents_differ():
    rng = np.random.default_rng(0)
    hard = rng.uniform(5, 50, 40)
    found = bits_per_byte_difference(scores(list(hard - 0.5)), scores(list(hard)))
    assert found.value == pytest.approx(-0.05 / math.log(2))
    assert found.low == pytest.approx(found.value) and found.high == pytest.approx(found.value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        noise = rng.normal(0.2, 1.0, 30)
        found = bits_per_byte_difference(
            scores(list(20 + noise)), scores([20.0] * 30), num_samples=400, seed=trial
        )
        covered += found.low < 0.02 / math.log(2) < found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_scores_of_other_documents_are_refused():
    with pytest.raises(UsageError, match="evaluate both models on one walk"):
        bits_per_byte_difference(scores([1.0, 2.0]), scores([1.0, 2.0], [0, 2]))
    with pytest.raises(UsageError, match="evaluate both models on one walk"):
        word_perplexity_difference(scores([1.0, 2.0]), scores([1.0, 2.0], [0, 2]))


def test_the_mean_over_seeds_covers_the_truth_in_19_of_20_cases():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, (2000, 3))
    covered = [low < 1.0 < high for _, low, high in map(mean_over_seeds, draws)]
    assert abs(np.mean(covered) - 0.95) < 0.015
    assert mean_over_seeds([0.5]) == (0.5, -math.inf, math.inf)
    with pytest.raises(UsageError, match="give one per seed"):
        mean_over_seeds([])


def test_scores_of_seeds_are_averaged_document_by_document():
    mean = mean_scores([scores([1.0, 4.0]), scores([3.0, 8.0])])
    assert mean.document_nats.tolist() == [2.0, 6.0]
    with pytest.raises(UsageError, match="not the same"):
        mean_scores([scores([1.0, 2.0]), scores([1.0, 2.0], [0, 2])])
