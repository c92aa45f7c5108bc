from __future__ import annotations

import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.models import ROWS, SIZES, TransformerLM, block_recurrent_config

# Millions of parameters without the embedding, as the authors' code counts them.
MILLIONS = {
    "slide_12l": 151.02,
    "slide_13l": 163.61,
    "rec_fixed_skip": 160.46,
    "rec_fixed_dual": 168.85,
    "rec_fixed_single": 170.95,
    "rec_lstm_skip": 164.66,
    "rec_lstm_single": 179.34,
    "rec_lstm_dual": 181.44,
    "feedback_fixed_skip": 183.53,
}


def millions(row: str, size: str = "150m") -> float:
    config = block_recurrent_config(row, size)
    view = View.abstract(lambda: TransformerLM(config, rngs=nnx.Rngs(0)))
    return (view.num_params - config.vocab_size * config.width) / 1e6


@pytest.mark.parametrize("row", list(MILLIONS))
def test_parameter_counts_are_those_of_the_paper(row):
    assert round(millions(row), 2) == MILLIONS[row]


def test_transformer_xl_has_the_parameters_of_the_sliding_window():
    assert all(millions(row) == millions("slide_12l") for row in ROWS if row.startswith("xl_"))


@pytest.mark.parametrize("size", list(SIZES))
def test_a_size_has_about_the_parameters_of_its_name(size):
    assert millions("slide_12l", size) == pytest.approx(float(size[:-1]), rel=0.04)


def test_every_row_reads_4096_tokens_a_device():
    assert {row.segment_length * row.segments for row in ROWS.values()} == {4096}
    assert {ROWS[f"xl_{w}"].segment_length for w in (512, 1024, 2048)} == {512, 1024, 2048}


def test_an_unknown_row_or_size_names_the_nearest():
    with pytest.raises(UsageError, match="row='rec_fixd_skip' .* mean 'rec_fixed_skip'"):
        block_recurrent_config("rec_fixd_skip")
    with pytest.raises(UsageError, match="size='150' .* mean '150m'"):
        block_recurrent_config("slide_12l", "150")
