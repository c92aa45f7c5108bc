"""The fields in which two configs differ, described in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ABSENT = object()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested config as one dict of dotted fields; lists are values.

    >>> flatten({"train": {"steps": 10, "betas": [0.9, 0.95]}, "seed": 0})
    {'train.steps': 10, 'train.betas': [0.9, 0.95], 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields `(field, "field: old -> new")` for the dotted fields that differ, in order.

    >>> list(differences({"train": {"lr": 0.1}, "seed": 0}, {"train": {"lr": 0.2}, "seed": 0}))
    [('train.lr', 'train.lr: 0.1 -> 0.2')]
    """
    before, after = flatten(old), flatten(new)
    for field in before | after:
        was, now = before.get(field, _ABSENT), after.get(field, _ABSENT)
        if was != now:
            yield field, f"{field}: {_shown(was)} -> {_shown(now)}"


def matches(field: str, names: Sequence[str]) -> bool:
    """Returns whether a dotted field is one of `names` or is nested in one."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def listed(lines: Sequence[str], most: int = 5) -> str:
    """Joins lines into one; after the first `most`, gives only the number of the rest.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = len(lines) - most
    return ", ".join(lines[:most]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
