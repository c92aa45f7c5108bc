from __future__ import annotations

import dataclasses
import json
from typing import Literal, Optional

import pytest

from jaxlab.core import UsageError, from_dict, override, to_dict


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 12
    num_heads: int = 3
    rate: float = 0.1
    causal: bool = True
    gate: Literal["fixed", "lstm"] = "fixed"
    window: int | None = 8
    betas: tuple[float, float] = (0.9, 0.99)
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    slots: Optional[tuple[int, ...]] = None  # noqa: UP045
    limit: bool | float | None = None

    def __post_init__(self):
        if self.width % self.num_heads:
            raise UsageError(f"width={self.width} does not divide by {self.num_heads}")


@dataclasses.dataclass(frozen=True)
class Phase:
    steps: int
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"
    model: Model = dataclasses.field(default_factory=Model)
    phases: tuple[Phase, ...] = (Phase(1), Phase(2, 0.5))
    extra: Phase | None = None


@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("width", "24", 24),
        ("width", "-12", -12),
        ("width", "3e2", 300),
        ("rate", "1e-3", 0.001),
        ("rate", "-2", -2.0),
        ("causal", "false", False),
        ("causal", "True", True),
        ("causal", "0", False),
        ("gate", "lstm", "lstm"),
        ("window", "none", None),
        ("window", "4", 4),
        ("betas", "0.5,0.6", (0.5, 0.6)),
        ("sizes", "(3, 4, 5)", (3, 4, 5)),
        ("sizes", "-3,", (-3,)),
        ("sizes", "()", ()),
        ("sizes", "", ()),
        ("names", "a, b c,d", ("a", "b c", "d")),
        ("slots", "1,2", (1, 2)),
        ("slots", "None", None),
        ("limit", "false", False),
        ("limit", "2.5", 2.5),
    ],
)
def test_a_string_becomes_a_value_of_the_field_type(field, text, wanted):
    value = getattr(override(Config(), {f"model.{field}": text}).model, field)
    assert value == wanted and type(value) is type(wanted)


def test_the_rest_of_the_config_stays():
    config = Config()
    changed = override(config, {"name": "other", "model.rate": "0.5"})
    assert changed == dataclasses.replace(config, name="other", model=Model(rate=0.5))
    assert config == Config() and override(config, {}) == config


def test_fields_that_check_one_another_are_set_together_in_any_order():
    pair = [("model.width", "10"), ("model.num_heads", "5")]
    for order in (pair, pair[::-1]):
        changed = override(Config(), dict(order)).model
        assert (changed.width, changed.num_heads) == (10, 5)
    with pytest.raises(UsageError, match="width=10 does not divide by 3"):
        override(Config(), {"model.width": "10"})


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model.widht", "1", "'model.widht': Model has no 'widht'; did you mean 'width'"),
        ("zzz", "1", "'zzz': Config has no 'zzz'; it has name, model, phases, extra"),
        ("model.", "1", "'model.': Model has no ''"),
        ("model", "1", "'model' is a group; set one of its fields: width, "),
        ("name.first", "1", "'name.first': 'name' is 'run' and has no fields"),
        ("extra.steps", "1", "'extra.steps': 'extra' is None and has no fields"),
        ("model.width", "wide", "'model.width' got 'wide'; it takes int"),
        ("model.width", "1.5", "'model.width' got '1.5'; it takes int"),
        ("model.width", "inf", "'model.width' got 'inf'; it takes int"),
        ("model.width", "none", "'model.width' got 'none'; it takes int"),
        ("model.width", "", "'model.width' got ''; it takes int"),
        ("model.rate", "fast", "'model.rate' got 'fast'; it takes float"),
        ("model.causal", "yes", "'model.causal' got 'yes'; it takes bool"),
        ("model.gate", "lst", "one of 'fixed', 'lstm'; did you mean 'lstm'"),
        ("model.window", "big", "'model.window' got 'big'; it takes int"),
        ("model.sizes", "1,x", "'model.sizes' got 'x'; it takes int"),
        ("model.sizes", "1,,2", "'model.sizes' got ''; it takes int"),
        ("model.betas", "0.9", "'model.betas' got '0.9'; it takes 2 values"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(path, text, message):
    with pytest.raises(UsageError) as caught:
        override(Config(), {path: text})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_group_and_its_field_cannot_both_be_set():
    with pytest.raises(UsageError, match="'extra' is set both whole and by field"):
        override(Config(extra=Phase(1)), {"extra": "none", "extra.steps": "2"})


def test_an_optional_group_can_be_left_out_and_changed():
    config = Config(extra=Phase(1))
    assert override(config, {"extra": "none"}).extra is None
    assert override(config, {"extra.steps": "2"}).extra == Phase(2)


@pytest.mark.parametrize(
    "config", [Config(), Config(extra=Phase(3), model=Model(window=None, slots=(1,), names=("a",)))]
)
def test_a_config_survives_json(config):
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_fields_absent_from_a_file_take_their_defaults():
    assert from_dict(Config, {"model": {"width": 6}}) == Config(model=Model(width=6))


def test_unknown_and_missing_fields_of_a_file_are_named():
    with pytest.raises(UsageError, match="Model has no field 'wdth'; did you mean 'width'"):
        from_dict(Config, {"model": {"wdth": 1}})
    with pytest.raises(UsageError, match="Phase needs a value for its field 'steps'"):
        from_dict(Config, {"phases": [{"scale": 1.0}]})


def test_a_config_does_not_differ_from_its_own_file():
    config = to_dict(Config(extra=Phase(3)))
    assert json.loads(json.dumps(config)) == config
