"""Examples in docstrings run, and every public name of a room carries a docstring."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Iterator

import pytest

import jaxlab

# Found without importing them: a room that does not load fails its own case, not the collection.
ROOT = pathlib.Path(jaxlab.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
ROOMS = sorted(m.name for m in pkgutil.iter_modules(jaxlab.__path__, "jaxlab.") if m.ispkg)


def strings(path: pathlib.Path) -> list[str]:
    """All strings that stand as a statement, as docstrings do."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
    ]


def has_examples(path: pathlib.Path) -> bool:
    return any(doctest.DocTestParser().get_examples(text) for text in strings(path))


def imported(path: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """Yields `(public name, module, name in the module)` of a room's table of contents."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                yield alias.asname or alias.name, node.module, alias.name


def documented_assignments(module: str) -> set[str]:
    """Names that a module assigns and describes by a string on the next line."""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    found = set()
    for node, after in zip(body, body[1:], strict=False):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def undocumented(room: str) -> list[str]:
    """Public names of a room that have no docstring of their own."""
    missing = []
    table = importlib.import_module(room)
    for public, module, name in imported(pathlib.Path(table.__file__)):
        thing = getattr(table, public)
        if inspect.ismodule(thing) or inspect.isfunction(thing) or inspect.isclass(thing):
            # A dataclass without a docstring is given its signature, which is none.
            generated = f"{public}("
            text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
            described = bool(text) and not text.startswith(generated)
        else:
            described = name in documented_assignments(module)
        if not described:
            missing.append(f"{room}.{public}")
    return missing


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if has_examples(path)])
def test_examples_run(name: str):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0, "the examples stand where doctest does not look"
    assert result.failed == 0, "what was expected and what came is printed above"


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_carry_docstrings(room: str):
    assert importlib.import_module(room).__doc__
    assert undocumented(room) == []


def test_a_name_without_a_docstring_is_found(tmp_path: pathlib.Path, monkeypatch):
    (tmp_path / "bare_room.py").write_text(
        "from bare_parts import A as A, B as B, C as C, F as F, f as f, g as g\n"
    )
    (tmp_path / "bare_parts.py").write_text(
        "import dataclasses\n"
        "A = tuple[int, ...]\n'''Told.'''\n"
        "B = 3\n"
        "@dataclasses.dataclass\nclass C:\n    x: int = 0\n"
        "class F(C):\n    '''Told.'''\n"
        "def f(): ...\n"
        "def g():\n    '''Told.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert undocumented("bare_room") == ["bare_room.B", "bare_room.C", "bare_room.f"]
