from __future__ import annotations

import pytest

from jaxlab.core import UsageError, nearest


def test_the_message_is_one_line():
    assert str(UsageError("a\n  b\tc ")) == "a b c"


def test_a_usage_error_is_a_value_error():
    with pytest.raises(ValueError, match="^bad$"):
        raise UsageError("bad")


@pytest.mark.parametrize(
    ("name", "known", "wanted"),
    [
        ("widht", ["width", "depth"], "; did you mean 'width'?"),
        ("width", iter(["width"]), "; did you mean 'width'?"),
        ("blocks/0/mlp/kernl", {"blocks/0/mlp/kernel": 1}, "; did you mean 'blocks/0/mlp/kernel'?"),
        ("zzz", ["width", "depth"], ""),
        ("width", [], ""),
        ("", ["width"], ""),
    ],
)
def test_nearest_is_the_closest_known_name_or_nothing(name, known, wanted):
    assert nearest(name, known) == wanted
