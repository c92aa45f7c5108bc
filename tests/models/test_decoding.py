from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.sampling import generate
from jaxlab.sampling.autoregressive import _continue

T = 14  # three and a half blocks
KINDS = ("plain", "sliding", "recurrent", "rotary", "scanned", "learned", "feedback")


@jax.jit
def steps(model, tokens_bt, cache, start_bt):
    """Logits [b, t, v] of tokens one by one."""

    def step(cache, xs):
        logits, cache = model.step(*xs[:1], cache, xs[1])
        return cache, logits

    cache, logits = jax.lax.scan(step, cache, (tokens_bt.T, start_bt.T))
    return logits.swapaxes(0, 1), cache


NO_STARTS = jnp.zeros((4, T), bool)
prefill = jax.jit(lambda model, *args: model.prefill(*args))
cache_of = jax.jit(lambda model, carry: model.cache_of(carry))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def test_steps_give_the_logits_of_the_parallel_form(tiny, kind):
    model = tiny.model(kind)
    got, _ = steps(model, tiny.tokens[:, :T], model.init_cache(4, 28), NO_STARTS)
    np.testing.assert_allclose(got, tiny.run(model)[0][:, :T], atol=1e-5)


def test_prompts_of_different_lengths_are_read_as_steps_would(tiny, kind):
    model, lengths, rows = tiny.model(kind), np.array([3, 10, 8, 1]), np.arange(4)
    cache = model.init_cache(4, 28)
    logits, cache = prefill(model, tiny.tokens[:, :11], jnp.array(lengths), cache)
    want = np.asarray(tiny.run(model)[0])
    np.testing.assert_allclose(logits, want[rows, lengths - 1], atol=1e-5)
    rest = (rows[:, None], lengths[:, None] + np.arange(T))
    got, _ = steps(model, tiny.tokens[rest], cache, NO_STARTS)
    np.testing.assert_allclose(got, want[rest], atol=1e-5)


def test_steps_go_on_over_the_border_of_a_segment(tiny):
    model = tiny.model("feedback")
    _, carry = tiny.run(model, tiny.tokens[:, :12])
    got, _ = steps(model, tiny.tokens[:, 12 : 12 + T], cache_of(model, carry), NO_STARTS)
    np.testing.assert_allclose(got, tiny.run(model)[0][:, 12 : 12 + T], atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "recurrent"], indirect=True)
def test_rows_that_start_documents_at_different_steps_are_as_fresh_rows(tiny, kind):
    model, tokens = tiny.model(kind), tiny.tokens[:, :T]
    begins = (5, 8, 0, 13)
    start = NO_STARTS.at[jnp.arange(4), jnp.array(begins)].set(True)
    got, _ = steps(model, tokens, model.init_cache(4, 28), start)
    for row, begin in enumerate(begins):
        moved = jnp.roll(tokens, -begin, axis=1)
        first = NO_STARTS.at[:, 0].set(True)
        fresh, _ = steps(model, moved, model.init_cache(4, 28), first)
        np.testing.assert_array_equal(got[row, begin:], fresh[row, : T - begin])
        new, _ = steps(model, moved, model.init_cache(4, 28), NO_STARTS)
        np.testing.assert_allclose(fresh, new, atol=1e-5)
    np.testing.assert_allclose(got[0, :5], tiny.run(model)[0][0, :5], atol=1e-5)


@pytest.mark.parametrize("kind", ["sliding", "recurrent"], indirect=True)
def test_the_cache_does_not_grow_with_the_text(tiny, kind):
    model = tiny.model(kind)

    def shapes(cache):
        return jax.tree.map(lambda x: (x.shape, x.dtype), cache)

    short = jax.eval_shape(lambda: model.init_cache(4, 10))
    assert shapes(short) == shapes(jax.eval_shape(lambda: model.init_cache(4, 10**6)))
    _, after = steps(model, tiny.tokens[:, :T], model.init_cache(4), NO_STARTS)
    assert shapes(after) == shapes(short)


def test_generation_draws_what_the_parallel_form_finds_likeliest(tiny):
    model, prompts = tiny.model("feedback"), [[8, 8, 2, 7, 1, 3], [5, 0]]
    _continue.clear_cache()
    for num_tokens in (4, 18):
        tokens = generate(
            model,
            prompts,
            num_tokens=num_tokens,
            key=jax.random.key(0),
            temperature=0.0,
            num_valid=15,
        ).tokens
    assert _continue._cache_size() == 1
    for row, prompt in zip(tokens, prompts, strict=True):
        text = np.concatenate([prompt, row])
        padded = jnp.zeros((4, 28), jnp.int32).at[:, : len(text)].set(text)
        logits = np.asarray(tiny.run(model, padded)[0][0, len(prompt) - 1 : len(text) - 1, :15])
        np.testing.assert_array_equal(row, logits.argmax(axis=-1))
    assert len(set(tokens.ravel().tolist())) > 2


def test_a_model_without_a_window_has_no_carry_to_decode_from(tiny):
    model = tiny.model("plain")
    with pytest.raises(UsageError, match="has no carry; give the text to prefill"):
        model.cache_of(model.init_carry(1))


@pytest.mark.parametrize(("kind", "room"), [("plain", 128), ("learned", 28)])
def test_a_prompt_longer_than_its_cache_is_refused_and_under_jit_gives_no_logits(tiny, kind, room):
    model, cache = tiny.model(kind), tiny.model(kind).init_cache(2, 20)
    tokens, fits = jnp.ones((2, 160), jnp.int32), jnp.array([room, 3])
    logits, _ = model.prefill(tokens, fits, cache)
    assert np.isfinite(logits).all()
    message = f"longest prompt has {room + 1} tokens, and the cache holds {room}; shorten"
    for lengths in (fits.at[0].add(1), np.array([room + 1, 3])):
        with pytest.raises(UsageError, match=message):
            model.prefill(tokens, lengths, cache)
    logits, _ = prefill(model, tokens, fits.at[0].add(1), cache)
    assert np.isnan(logits[0]).all() and np.isfinite(logits[1]).all()


def test_a_step_beyond_the_room_of_full_attention_is_refused_and_under_jit_gives_no_logits(tiny):
    model = tiny.model("plain")
    tokens, cache = jnp.tile(tiny.tokens[:, :26], 5), model.init_cache(4, 20)
    starts = jnp.zeros(tokens.shape, bool).at[1, 5].set(True).at[3, 129].set(True)
    logits, after = steps(model, tokens[:, :128], cache, starts[:, :128])
    assert np.isfinite(logits).all()
    with pytest.raises(UsageError, match="with the next token a row has 129 tokens, and the cache"):
        model.step(tokens[:, 128], after)
    logits, _ = steps(model, tokens[:, 128:], after, starts[:, 128:])
    assert np.isnan(logits[0]).all() and np.isnan(logits[3, 0]).all()
    # A row that started later still has room, and one that starts anew is as a fresh one.
    assert np.isfinite(logits[1]).all()
    fresh, _ = steps(model, tokens[:, 129:], model.init_cache(4, 20), starts[:, 129:])
    np.testing.assert_allclose(logits[3, 1], fresh[3, 0], atol=1e-6)
    windowed = tiny.model("sliding")
    logits, _ = steps(windowed, tokens, windowed.init_cache(4), jnp.zeros(tokens.shape, bool))
    assert np.isfinite(logits).all()
