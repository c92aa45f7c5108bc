"""Generation from a model that needs no training: next = the token seen two steps ago, plus one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.sampling import autoregressive, generate, generate_stream

V = 20
KEY = jax.random.key(0)


class Counter(nnx.Module):
    """Its cache holds the last two tokens; `sharpness` 0 makes all tokens equally likely."""

    def __init__(self, sharpness: float = 50.0):
        self.sharpness = nnx.Param(jnp.float32(sharpness))
        self.vocab_size = V

    def init_cache(self, batch_size, max_length=None):
        return {"last": jnp.zeros((batch_size, 2), jnp.int32)}

    def prefill(self, tokens_bt, lengths_b, cache):
        at = jnp.stack([lengths_b - 2, lengths_b - 1], axis=1)
        last = jnp.where(at >= 0, jnp.take_along_axis(tokens_bt, at, axis=1), 0)
        return self._logits(last), {"last": last}

    def step(self, tokens_b, cache):
        last = jnp.stack([cache["last"][:, 1], tokens_b], axis=1)
        return self._logits(last), {"last": last}

    def _logits(self, last):
        return self.sharpness[...] * jax.nn.one_hot((last[:, 0] + 1) % V, V)


def count(row, num_tokens):
    row = [0, *row]
    for _ in range(num_tokens):
        row.append((row[-2] + 1) % V)
    return row[-num_tokens:]


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_prompts_of_different_lengths_are_each_continued(temperature):
    prompts = [[3, 9], [7], list(range(19))]
    got = generate(Counter(), prompts, num_tokens=70, key=KEY, temperature=temperature)
    np.testing.assert_array_equal(got.tokens, [count(row, 70) for row in prompts])
    assert got.tokens.dtype == np.int32 and got.lengths.tolist() == [70] * 3


def test_an_array_and_a_view_serve_as_prompts_and_model():
    prompts = np.array([[1, 5], [2, 8]])
    got = generate(View.of(Counter()), prompts, num_tokens=4, key=KEY)
    np.testing.assert_array_equal(got.tokens, [[2, 6, 3, 7], [3, 9, 4, 10]])


def test_a_row_ends_at_the_stop_token():
    got = generate(Counter(), [[1, 5], [8, 3]], num_tokens=50, key=KEY, stop_token=6)
    assert got.lengths.tolist() == [1, count([8, 3], 50).index(6)]
    for tokens, length, row in zip(got.tokens, got.lengths, ([1, 5], [8, 3]), strict=True):
        np.testing.assert_array_equal(tokens[:length], count(row, 50)[:length])
        assert (tokens[length:] == 6).all() and tokens.shape == (50,)


def test_the_stream_is_the_same_text_in_pieces_of_any_size():
    model, prompts = Counter(0.0), [[1, 5], [8, 3]]
    whole = generate(model, prompts, num_tokens=11, key=KEY)
    for chunk in (4, 11):
        pieces = list(generate_stream(model, prompts, num_tokens=11, key=KEY, chunk=chunk))
        assert [p.shape[1] for p in pieces] == ([4, 4, 3] if chunk == 4 else [11])
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole.tokens)
    other = generate(model, prompts, num_tokens=11, key=jax.random.key(1))
    assert (other.tokens != whole.tokens).any()


def test_the_stream_ends_when_all_rows_have_stopped():
    pieces = generate_stream(Counter(), [[5, 5]], num_tokens=500, key=KEY, stop_token=7, chunk=8)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), [[6, 6, 7]])


def test_lengths_numbers_and_prompts_share_one_compilation():
    autoregressive._continue.clear_cache(), autoregressive._prefill.clear_cache()
    for num_tokens, prompt, temperature in ((3, [1], 1.0), (90, [1, 2, 3], 0.3), (40, [4], 0.0)):
        generate(
            Counter(), [prompt], num_tokens=num_tokens, key=KEY, temperature=temperature, top_p=0.9
        )
    assert autoregressive._continue._cache_size() == autoregressive._prefill._cache_size() == 1


@pytest.mark.parametrize(
    ("prompts", "kwargs", "message"),
    [
        ([], {}, "no prompt was given"),
        ([[1], []], {}, "prompt 1 is empty; start it with the document boundary"),
        ([[1, 20]], {}, "prompt 0 holds the id 20, and the model knows 0..19"),
        ([[-1]], {}, "prompt 0 holds the id -1"),
        ([1, 2], {}, "prompt 0 has shape .* put a single prompt into a list"),
        (["text"], {}, "encode text first"),
        ([[0.5]], {}, "dtype float64"),
        ([[1]], {"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ([[1]], {"stop_token": 20}, "stop_token=20 is never drawn"),
        ([[1]], {"stop_token": 12, "num_valid": 12}, "ids lie in 0..11"),
        ([[1]], {"top_p": 2.0}, "top_p=2.0"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(prompts, kwargs, message):
    with pytest.raises(UsageError, match=message) as error:
        generate_stream(Counter(), prompts, key=KEY, **{"num_tokens": 4, **kwargs})
    assert "\n" not in str(error.value)


class Careless(Counter):
    """Its steps do not keep the cache, or the logits, of its prefill."""

    def __init__(self, cache=lambda last: last, logits=lambda logits: logits):
        super().__init__()
        self.cache, self.logits = cache, logits

    def step(self, tokens_b, cache):
        logits, cache = super().step(tokens_b, cache)
        return self.logits(logits), {"last": self.cache(cache["last"])}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Careless(cache=lambda last: last.astype(jnp.float32)),
            r"cache\['last'\] is int32\[2, 2\] before a step of Careless and float32\[2, 2\]",
        ),
        (Careless(cache=lambda last: last[:1]), r"is int32\[2, 2\] before .* int32\[1, 2\] after"),
        (Careless(logits=lambda x: x.astype(jnp.bfloat16)), r"logits is .* bfloat16\[2, 20\]"),
    ],
    ids=["dtype", "rows", "logits"],
)
def test_a_cache_of_other_rows_or_dtype_is_refused_in_one_line(model, message):
    with pytest.raises(UsageError, match=message) as error:
        generate(model, [[1, 2], [3, 4]], num_tokens=3, key=KEY)
    assert "\n" not in str(error.value)
