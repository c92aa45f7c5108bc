"""Rows of a batch that begin and end at different times, against the same rows alone."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxlab.core import UsageError, View
from jaxlab.sampling import generate

# Of windows of 4: within one block, one block, over two, four and a half.
PROMPTS = ([3, 1], [2, 7, 1, 8], [5, 9, 2, 6, 5, 3, 5, 8, 9], [*range(17), 4])
NUM_TOKENS, KEY = 22, jax.random.key(0)


@functools.cache
def alone(model) -> list[list[int]]:
    """Greedy tokens of each prompt by itself, with nothing to stop it."""
    options = {"num_tokens": NUM_TOKENS, "key": KEY, "temperature": 0.0}
    return [generate(model, [prompt], **options).tokens[0].tolist() for prompt in PROMPTS]


def before(row: list[int], stop: int) -> list[int]:
    return row[: row.index(stop)] if stop in row else row


@pytest.fixture(scope="module")
def model(tiny):
    """One whose text does not soon repeat itself, as that of a tied embedding does."""
    view = View.of(tiny.model("recurrent"))
    params = {path: p * (4 if "output" in path else 1) for path, p in view.params.items()}
    params["final_norm/scale"] *= np.random.default_rng(0).choice([-1, 1], tiny.width)
    return view.model(params)


def test_rows_of_a_batch_are_as_alone_whenever_the_others_begin_and_end(model):
    seen = set()
    for stop in sorted({token for row in alone(model) for token in row}):
        got = generate(
            model, PROMPTS, num_tokens=NUM_TOKENS, key=KEY, temperature=0.0, stop_token=stop
        )
        want = [before(row, stop) for row in alone(model)]
        assert got.lengths.tolist() == [len(row) for row in want]
        for tokens, row in zip(got.tokens.tolist(), want, strict=True):
            assert tokens == row + [stop] * (NUM_TOKENS - len(row))
        seen.add(tuple(got.lengths.tolist()))
    assert any(len(set(lengths)) == len(PROMPTS) for lengths in seen)  # all stop apart
    assert any(max(lengths) == NUM_TOKENS for lengths in seen)  # some never do


def test_the_order_of_the_rows_has_no_influence(model):
    got = generate(model, PROMPTS[::-1], num_tokens=NUM_TOKENS, key=KEY, temperature=0.0)
    assert got.tokens.tolist() == alone(model)[::-1]


def test_more_than_a_model_with_learned_positions_can_hold_is_refused(tiny):
    model = tiny.model("learned")  # 28 of them
    generate(model, [[1] * 20, [2]], num_tokens=8, key=KEY)
    for prompt, num_tokens in (([1] * 21, 8), ([1] * 40, 1)):
        with pytest.raises(UsageError, match="exceed the 28 learned positions") as error:
            generate(model, [prompt, [2]], num_tokens=num_tokens, key=KEY)
        assert "\n" not in str(error.value)


def test_full_attention_has_room_for_prompts_longer_than_its_training(tiny):
    long = np.arange(300) % 20
    model = tiny.model("plain", max_length=8)
    got = generate(model, [long, [1]], num_tokens=5, key=KEY, temperature=0.0)
    want = generate(model, [long], num_tokens=5, key=KEY, temperature=0.0)
    np.testing.assert_array_equal(got.tokens[0], want.tokens[0])
