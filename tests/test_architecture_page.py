"""The page on the architecture names files, names and levels that exist."""

from __future__ import annotations

import importlib
import pathlib
import re
import runpy

import pytest

import jaxlab

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
FILES = [
    name
    for name in QUOTED
    if re.fullmatch(r"(jaxlab|tests|configs|experiments)/[a-z0-9_/.]*", name)
]
NAMES = [name for name in QUOTED if name.split(".")[0] in jaxlab.__all__ and "." in name]


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_named_exists(file: str):
    assert (ROOT / file).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_that_is_named_exists(name: str):
    room, *attributes = re.match(r"[\w.]+", name)[0].split(".")
    thing = importlib.import_module(f"jaxlab.{room}")
    for attribute in attributes:
        thing = getattr(thing, attribute)


def test_every_room_has_a_row():
    assert set(re.findall(r"^\| `jaxlab/(\w+)` \|", PAGE, re.M)) == set(jaxlab.__all__)


def test_the_levels_are_those_that_the_imports_keep():
    rooms = {*jaxlab.__all__, "configs", "experiments"}
    told = re.search(r"```text\n(.*?)```", PAGE, re.S)[1].splitlines()
    kept = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["LEVELS"]
    levels = [rooms.intersection(level) for level in kept]
    assert [set(line.split()) for line in told] == [level for level in levels if level]
