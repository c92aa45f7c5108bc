"""Frozen dataclasses as configuration: dotted overrides, plain dicts, differences.

The public config libraries do not take frozen dataclasses with tuples, literals and optional
fields from the command line; this resolver does, and names the nearest field on a typo.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from jaxlab.core.errors import UsageError, nearest
from jaxlab.core.paths import flatten

C = TypeVar("C")


def override(config: C, assignments: Mapping[str, str]) -> C:
    """Returns `config` with dotted fields set from strings.

    Raises:
      UsageError: an unknown field or a value that its type does not accept.

    >>> @dataclasses.dataclass(frozen=True)
    ... class M:
    ...     width: int = 8
    ...     sizes: tuple[int, ...] = ()
    >>> override(M(), {'width': '1e3', 'sizes': '1,2'})
    M(width=1000, sizes=(1, 2))
    """
    for path, text in assignments.items():
        config = _set(config, path, path.split("."), text)
    return config


def _set(config: Any, path: str, names: list[str], text: str) -> Any:
    name, *rest = names
    known = [f.name for f in dataclasses.fields(config)]
    if name not in known:
        raise UsageError(
            f"unknown config field {path!r}: {type(config).__name__} has no {name!r}"
            f"{nearest(name, known) or '; it has ' + ', '.join(known)}"
        )
    current = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise UsageError(f"config field {path!r}: {name!r} is {current!r} and has no fields")
        value = _set(current, path, rest, text)
    else:
        value = _parse(typing.get_type_hints(type(config))[name], text, path)
    return dataclasses.replace(config, **{name: value})


def _parse(kind: Any, text: str, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return _parse(next(a for a in args if a is not type(None)), text, path)
    if origin is Literal:
        if text not in map(str, args):
            accepted = ", ".join(map(repr, args))
            raise UsageError(
                f"config field {path!r} got {text!r}; it takes one of {accepted}"
                f"{nearest(text, map(str, args))}"
            )
        return args[[str(a) for a in args].index(text)]
    if origin is tuple:
        pieces = [piece for piece in text.strip("()").split(",") if piece.strip()]
        return tuple(_parse(args[0], piece.strip(), path) for piece in pieces)
    if dataclasses.is_dataclass(kind):
        names = ", ".join(f.name for f in dataclasses.fields(kind))
        raise UsageError(f"config field {path!r} is a group; set one of its fields: {names}")
    try:
        return _SCALARS[kind](text)
    except (KeyError, ValueError):
        wanted = getattr(kind, "__name__", str(kind))
        raise UsageError(f"config field {path!r} got {text!r}; it takes {wanted}") from None


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if value != int(value):
            raise ValueError(text) from None
        return int(value)


def _bool(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


_SCALARS = {int: _int, float: float, str: str, bool: _bool}


def to_dict(config: Any) -> Any:
    """A config as nested dicts and lists, fit for JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_dict` for a config class.

    Raises:
      UsageError: a field that the class does not have.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise UsageError(f"{kind.__name__} has no field {name!r}{nearest(name, hints)}")
    return kind(**{name: _build(hints[name], value) for name, value in values.items()})


def _build(kind: Any, value: Any) -> Any:
    for option in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_dict(option, value)
    if isinstance(value, list):
        inner = typing.get_args(kind)
        return tuple(_build(inner[0] if inner else Any, item) for item in value)
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `field: old -> new` for every dotted field in which two nested dicts differ.

    >>> differences({'train': {'steps': 1}}, {'train': {'steps': 2}})
    ['train.steps: 1 -> 2']
    """
    a = {path.replace("/", "."): value for path, value in flatten(old).items()}
    b = {path.replace("/", "."): value for path, value in flatten(new).items()}
    absent = "absent"
    return [
        f"{field}: {a.get(field, absent)} -> {b.get(field, absent)}"
        for field in sorted(a.keys() | b.keys())
        if a.get(field, absent) != b.get(field, absent)
    ]
