from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.results import format_number, html_table, markdown_table, table
from jaxlab.results.tables import format_column

ROWS = [
    {"model": "slide", "bits": 2.1198, "parameters": 912384, "ok": True},
    {"model": "block-recurrent", "bits": 12.04, "parameters": None, "extra": "x"},
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (-1234567, "-1,234,567"), (1.0, "1.000"), (-0.0123456, "-0.01235"),
        (99999.5, "100,000"), (1e-4, "0.0001000"), (9.9e-5, "9.9e-05"), (1e7, "1e+07"),
        (float("nan"), "n/a"), (float("inf"), "n/a"), (None, "n/a"), (True, "yes"),
        (np.float32(0.5), "0.5000"), (np.int64(1000), "1,000"), (jnp.float32(0.25), "0.2500"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert format_number(value) == text


def test_written_numbers_keep_four_significant_digits():
    for value in np.random.default_rng(0).lognormal(sigma=6, size=200):
        assert float(format_number(value).replace(",", "")) == pytest.approx(value, rel=5.001e-4)


def test_fractions_of_a_column_share_their_decimals():
    assert format_column([2.1198, 12.04, 0.0, 3, "", None]) == [
        "2.12", "12.04", "0.00", "3", "", "n/a"
    ]  # fmt: skip


def test_a_column_of_many_magnitudes_loses_no_digits():
    assert format_column([0.00123, 123.4]) == ["0.001230", "123.4"]


def test_numbers_stand_right_and_words_left_with_every_line_aligned():
    lines = table(ROWS).splitlines()
    assert lines[0].split() == ["model", "bits", "parameters", "ok", "extra"]
    rule = lines[1]
    ends = [index for index in range(len(rule)) if rule[index : index + 2] in ("- ", "-")]
    for line in lines[2:]:
        assert line[ends[1]].isdigit()
        assert line[ends[2]] in "4a"
        assert line[0] != " "
    assert all(line == line.rstrip() for line in lines)


def test_columns_are_chosen_and_ordered():
    assert table(ROWS, ["bits", "model"]).splitlines()[0].split() == ["bits", "model"]
    with pytest.raises(UsageError, match="column 'bit'; did you mean 'bits'"):
        table(ROWS, ["bit"])
    with pytest.raises(UsageError, match="at least one column"):
        table([])


def test_no_rows_give_the_header_alone():
    assert table([], ["a", "b"]).splitlines()[0].split() == ["a", "b"]


def test_a_cell_stays_on_its_line():
    assert len(table([{"a": "one\ntwo"}]).splitlines()) == 3
    assert len(markdown_table([{"a": "one\ntwo"}]).splitlines()) == 3


def test_markdown_marks_numbers_and_escapes_bars():
    header, rule, first, *_ = markdown_table([{"a|b": "x|y", "n": 1.5}]).splitlines()
    assert header.startswith("| a\\|b |")
    assert rule.endswith("---: |")
    assert first == "| x\\|y | 1.500 |"


def test_html_escapes_and_marks_numbers():
    text = html_table([{"<b>": "<i>&", "n": 1234}])
    assert "<th>&lt;b&gt;</th>" in text
    assert "<td>&lt;i&gt;&amp;</td>" in text
    assert '<td class="number">1,234</td>' in text


def test_rows_are_left_as_they_were():
    rows = [{"a": np.float32(1.5)}]
    table(rows)
    assert rows == [{"a": np.float32(1.5)}]
