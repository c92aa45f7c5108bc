"""Frozen dataclasses as configs: dotted overrides and plain dicts.

Public config libraries cannot set frozen dataclasses with tuples, literals and optional fields from
the command line; this one can, and suggests the nearest field for a typo.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from jaxlab.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


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
    return _assign(config, assignments, "")


def _assign(config: Any, assignments: Mapping[str, str], prefix: str) -> Any:
    # A group is replaced once with all its values, so fields that are checked together (width and
    # num_heads) can be set in any order.
    known = [f.name for f in dataclasses.fields(config)]
    parts: dict[str, dict[str, str]] = {}
    for path, text in assignments.items():
        name, dot, rest = path.partition(".")
        if name not in known:
            raise UsageError(
                f"unknown config field {prefix + path!r}: {type(config).__name__} has no {name!r}"
                f"{nearest(name, known) or '; it has ' + ', '.join(known)}"
            )
        parts.setdefault(name, {})[dot + rest] = text
    values = {name: _value(config, name, part, prefix + name) for name, part in parts.items()}
    return dataclasses.replace(config, **values)


def _value(config: Any, name: str, part: Mapping[str, str], path: str) -> Any:
    if "" in part:
        if len(part) > 1:
            raise UsageError(f"config field {path!r} is set both whole and by field; choose one")
        return _parse(typing.get_type_hints(type(config))[name], part[""], path)
    current = getattr(config, name)
    if not dataclasses.is_dataclass(current):
        inner = path + next(iter(part))
        raise UsageError(f"config field {inner!r}: {name!r} is {current!r} and has no fields")
    return _assign(current, {rest[1:]: text for rest, text in part.items()}, path + ".")


def _parse(kind: Any, text: str, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return _parse_any([a for a in args if a is not type(None)], text, path)
    if origin is Literal:
        if text not in map(str, args):
            accepted = ", ".join(map(repr, args))
            raise UsageError(
                f"config field {path!r} got {text!r}; it takes one of {accepted}"
                f"{nearest(text, map(str, args))}"
            )
        return args[[str(a) for a in args].index(text)]
    if origin is tuple:
        return _parse_tuple(args, text, path)
    if dataclasses.is_dataclass(kind):
        names = ", ".join(f.name for f in dataclasses.fields(kind))
        raise UsageError(f"config field {path!r} is a group; set one of its fields: {names}")
    try:
        return _SCALARS[kind](text)
    except (KeyError, ValueError, OverflowError):
        wanted = getattr(kind, "__name__", str(kind))
        raise UsageError(f"config field {path!r} got {text!r}; it takes {wanted}") from None


def _parse_any(kinds: list[Any], text: str, path: str) -> Any:
    for kind in kinds[:-1]:
        with contextlib.suppress(UsageError):
            return _parse(kind, text, path)
    return _parse(kinds[-1], text, path)


def _parse_tuple(kinds: tuple[Any, ...], text: str, path: str) -> tuple:
    inner = text.strip().removeprefix("(").removesuffix(")").strip().removesuffix(",")
    items = [item.strip() for item in inner.split(",")] if inner else []
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise UsageError(f"config field {path!r} got {text!r}; it takes {len(kinds)} values")
    return tuple(_parse(kind, item, path) for kind, item in zip(kinds, items, strict=True))


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


_SCALARS: dict[type, Callable[[str], Any]] = {int: _int, float: float, str: str, bool: _bool}


def to_dict(config: Any) -> Any:
    """Converts a config to nested dicts and lists, as for JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_dict` for a config class.

    Raises:
      UsageError: an unknown field, or a missing field without a default.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UsageError(f"{kind.__name__} has no field {name!r}{nearest(name, fields)}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{kind.__name__} needs a value for its field {name!r}")
    return kind(**{name: _build(hints[name], value) for name, value in values.items()})


def _build(kind: Any, value: Any) -> Any:
    for option in (kind, *typing.get_args(kind)):
        is_config = isinstance(option, type) and dataclasses.is_dataclass(option)
        if is_config and isinstance(value, Mapping):
            return from_dict(option, value)
    if isinstance(value, list):
        inner = typing.get_args(kind)
        return tuple(_build(inner[0] if inner else Any, item) for item in value)
    return value
