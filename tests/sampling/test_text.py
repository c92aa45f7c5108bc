"""Text from a model that writes the alphabet on and on, and ends a document where it is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.data import Bytes
from jaxlab.sampling import generate_text, stream_text

KEY = jax.random.key(0)
LOOP = "abc\u00e9\t\nxyz"  # goes on and on; any other byte ends the document


class Writer(nnx.Module):
    """A byte of LOOP is followed by the next one, the last and a boundary by the first."""

    vocab_size = 260

    def __init__(self):
        data = list(LOOP.encode())
        table = np.full(self.vocab_size, 256)
        table[[256, *data]] = [*data, data[0]]
        self.follows = nnx.Param(jnp.asarray(table))

    def init_cache(self, batch_size, max_length=None):
        return ()

    def prefill(self, tokens_bt, lengths_b, cache):
        return self.step(jnp.take_along_axis(tokens_bt, lengths_b[:, None] - 1, axis=1)[:, 0], ())

    def step(self, tokens_b, cache):
        return 50 * jax.nn.one_hot(self.follows[...][tokens_b], self.vocab_size), cache


PROMPTS = ["", "y", "ab", "."]
WHOLE = [LOOP * 3, "z" + LOOP * 3, "c\u00e9\t\nxyz" + LOOP * 3, ""]


@pytest.mark.parametrize("model", [Writer(), View.of(Writer())], ids=["model", "view"])
def test_rows_end_at_different_stop_strings_and_document_ends(model):
    for stop in ("\t\nx", ["\u00e9", "za"], ("ca",)):
        got = generate_text(model, Bytes(), PROMPTS, num_tokens=20, key=KEY, stop=stop)
        for text, prompt, whole in zip(got, PROMPTS, WHOLE, strict=True):
            ends = [whole.find(s) for s in ([stop] if isinstance(stop, str) else stop)]
            reach = whole.encode()[:20].decode("utf-8", "replace")
            assert text == reach[: min([e for e in ends if e >= 0], default=None)], prompt


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_stream_joins_to_the_text_and_shows_no_part_of_a_stop_string(chunk):
    options = {"num_tokens": 30, "key": KEY, "temperature": 0.0, "stop": ["\u00e9\t\nxyy", "yza"]}
    pieces = list(stream_text(Writer(), Bytes(), ["", "abc"], chunk=chunk, **options))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == ["abc\u00e9\t\nx", "\u00e9\t\nx"]
    if chunk == 1:  # what may be the first string comes when "z" rules it out
        shown = [first for first, _ in pieces if first]
        assert shown == ["a", "b", "c", "\u00e9\t\nx"]


def test_the_stream_ends_with_the_chunk_in_which_its_last_row_does():
    rows = list(
        stream_text(Writer(), Bytes(), ["", "."], num_tokens=400, key=KEY, stop="\t\n", chunk=8)
    )
    assert len(rows) == 2 and rows[0] == ["abc\u00e9", ""]  # and what was held back: nothing


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompts": "abc"}, "prompts='abc' is a string; put a single prompt into a list"),
        ({"prompts": []}, "no prompt was given"),
        ({"stop": ["a", ""]}, "holds an empty string"),
        ({"stop": ""}, "holds an empty string"),
        ({"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(kwargs, message):
    given = {"prompts": ["a"], "num_tokens": 4, "key": KEY, **kwargs}
    with pytest.raises(UsageError, match=message) as error:
        stream_text(Writer(), Bytes(), given.pop("prompts"), **given)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    small = Writer()
    small.vocab_size = 200
    with pytest.raises(UsageError, match="'bytes' has 257 ids and the model knows 200"):
        stream_text(small, Bytes(), ["a"], num_tokens=1, key=KEY)
