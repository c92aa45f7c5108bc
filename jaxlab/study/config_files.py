"""Configs from Python files: `FILE[:VARIANT]` and `FIELD=VALUE` of the command line."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxlab.core import UsageError, nearest, override


def split_assignments(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.FIELD=VALUE` and `--config.FIELD VALUE` out of the arguments.

    Raises:
      UsageError: a field without a value.

    >>> split_assignments(['--config.train.steps=5', '--config=a.py', '--config.seed', '1'])
    ({'train.steps': '5', 'seed': '1'}, ['--config=a.py'])
    """
    assignments, rest = {}, []
    arguments = iter(argv)
    for argument in arguments:
        matched = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if matched is None:
            rest.append(argument)
            continue
        field, value = matched.groups()
        value = next(arguments, None) if value is None else value
        if value is None:
            raise UsageError(f"flag --config.{field} has no value; give --config.{field}=VALUE")
        assignments[field] = value
    return assignments, rest


def resolve_config(
    flag: str | None, assignments: Mapping[str, str], example: str
) -> tuple[str, Any]:
    """The variant's name and the config with its fields set.

    Args:
      flag: the value of `--config`.
      assignments: dotted fields and their values as text.
      example: shown where the flag is missing.

    Raises:
      UsageError: what cannot be found, or a value that a field does not take.
    """
    if not flag:
        raise UsageError(f"--config is missing; give {example}")
    path, variant = split_variant(flag)
    variants, default = load_variants(path)
    variant = variant or default
    if variant is None:
        names = ", ".join(variants)
        raise UsageError(f"--config={flag} names no variant; give {path}:X with X one of {names}")
    if variant not in variants:
        names = ", ".join(variants)
        raise UsageError(
            f"--config={flag}: no variant {variant!r} in {path}; it has {names}"
            f"{nearest(variant, variants)}"
        )
    return variant, override(variants[variant](), assignments)


def split_variant(flag: str) -> tuple[pathlib.Path, str | None]:
    """Splits `FILE[:VARIANT]`.

    Raises:
      UsageError: a file that is not there; names the nearest in its folder.
    """
    name, colon, variant = flag.rpartition(":")
    path = pathlib.Path(name if colon else flag)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py") if p.name != "__init__.py"]
        raise UsageError(
            f"--config={flag}: there is no file {os.fspath(path)!r}{nearest(path.name, siblings)}"
            "; it takes FILE[:VARIANT]"
        )
    return path, variant if colon and variant else None


def load_variants(
    path: pathlib.Path,
) -> tuple[Mapping[str, Callable[[], Any]], str | None]:
    """The `VARIANTS` of a config file and its `DEFAULT`.

    Raises:
      UsageError: a file that cannot be loaded, or without variants.
    """
    module = _load(path)
    variants = getattr(module, "VARIANTS", None)
    if not isinstance(variants, Mapping) or not variants:
        raise UsageError(
            f"config file {os.fspath(path)!r} has no VARIANTS; it needs a dict from names to "
            "functions that return a config"
        )
    return variants, getattr(module, "DEFAULT", None)


def _load(path: pathlib.Path) -> ModuleType:
    # An experiment imports its own config file: a second copy of it would have other classes.
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if (
            file
            and os.path.basename(file) == path.name
            and os.path.realpath(file) == (os.path.realpath(path))
        ):
            return module
    name = f"jaxlab_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"config file {os.fspath(path)!r} is no Python file; it must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look the names in their annotations up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"config file {os.fspath(path)!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module
