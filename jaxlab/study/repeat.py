"""Numbers that come with the command that repeats them."""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from jaxlab.core import flatten, to_dict
from jaxlab.results import Record
from jaxlab.study.config_files import load_variants


def python_command() -> str:
    """How this interpreter is called from here: `.venv/bin/python`, or `python` where it is far."""
    path = os.path.relpath(sys.executable)
    return "python" if path.startswith(os.pardir) else path


def repeat_command(
    record: Record, config_file: str | os.PathLike[str], workdir: str = "runs/again"
) -> str:
    """The command line that runs the config of `record` again, in another workdir.

    Args:
      record: its variant names the config to begin with; fields that differ from it are set.
      config_file: the file with the experiment's `VARIANTS`; where the record's variant is not
        among them, the file's default is the one to begin with.
      workdir: the other workdir.
    """
    path = pathlib.Path(config_file)
    variants, default = load_variants(path)
    variant = record.variant if record.variant in variants else default
    begin = {} if variant is None else flatten(to_dict(variants[variant]()))
    fields = [
        f"--config.{path.replace('/', '.')}={_as_text(value)}"
        for path, value in flatten(record.config).items()
        if path not in begin or begin[path] != value
    ]
    parts = [
        "-m",
        f"experiments.{record.experiment}",
        f"--config={_near(path)}" + (f":{variant}" if variant else ""),
        f"--workdir={workdir}",
        *fields,
    ]
    return shlex.join([python_command(), *parts])


def with_command(numbers: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Numbers in groups, each number as `{"value": ..., "command": ...}`.

    >>> with_command({"loss": {"train": 1.5}}, "python -m study")
    {'loss': {'train': {'value': 1.5, 'command': 'python -m study'}}}
    """
    return {
        name: with_command(value, command)
        if isinstance(value, Mapping)
        else {"value": value, "command": command}
        for name, value in numbers.items()
    }


def values_of(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `with_command`.

    >>> values_of({"loss": {"train": {"value": 1.5, "command": "python -m study"}}})
    {'loss': {'train': 1.5}}
    """
    return {
        name: value["value"] if "value" in value else values_of(value)
        for name, value in numbers.items()
    }


def _near(path: pathlib.Path) -> str:
    """The path from here, where it is below here."""
    near = os.path.relpath(path)
    return os.fspath(path) if near.startswith(os.pardir) else near


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ",".join(map(_as_text, value)) + ")"
    return "none" if value is None else str(value)
