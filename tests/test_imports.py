"""Imports go one way through the rooms: read from the source, so that nothing has to be run."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A room may import those on lower levels and itself; rooms on one level do not know each other.
LEVELS = (
    ("core",),
    ("nn", "data", "results", "analysis", "planning", "placement"),
    ("models", "objectives", "sampling", "probes", "sparsity", "checkpoint"),
    ("evals", "simulacra"),
    ("train",),
    ("study",),
    ("configs",),
    ("experiments",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
TREES = ("jaxlab", "configs", "experiments")
NEVER = {(room, "models") for room in ("probes", "evals", "objectives", "train", "study")}
# The package's own table of contents names every room, and loads none until it is asked for.
TABLE = pathlib.PurePath("jaxlab/__init__.py")
VERSION = pathlib.PurePath("jaxlab/_version.py")


def is_private(name: str) -> bool:
    """True for `_x`, False for `x` and `__x__`."""
    return name.startswith("_") and not name.startswith("__")


def room_of(dotted: str) -> str:
    """Returns the room of `jaxlab.nn.conv` (`nn`), of `configs.x` (`configs`), `""` outside."""
    tree, *rest = dotted.split(".")
    if tree == "jaxlab":
        return rest[0] if rest else "jaxlab"
    return tree if tree in TREES else ""


def imported_names(source: str, package: str) -> Iterator[str]:
    """Yields each imported thing of a file that lies in `package`, dotted and absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                above = parents[: len(parents) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # `import jaxlab` loads a room at the first `jaxlab.room`.
            if node.value.id == "jaxlab":
                yield f"jaxlab.{node.attr}"


def wrong(importer: str, name: str) -> str:
    """Says what is wrong with a file of room `importer` that imports `name`; `""` if nothing is."""
    room = room_of(name)
    if not room or room == importer or name in ("jaxlab", "jaxlab.__version__"):
        return ""
    if room not in LEVEL:
        return f"imports {name}, which names no room"
    if LEVEL[room] >= LEVEL[importer] or (importer, room) in NEVER:
        return f"is in {importer} and imports {name}"
    if any(is_private(part) for part in name.split(".")):
        return f"imports {name}, a private name of {room}"
    return ""


def violations(root: pathlib.Path) -> list[str]:
    """Returns one line for each file under `root` that is misplaced and each import that is."""
    found = []
    for path in sorted(file for tree in TREES for file in (root / tree).rglob("*.py")):
        where = path.relative_to(root)
        if any(re.fullmatch(r"utils?|\w+_utils?", part) for part in where.with_suffix("").parts):
            found.append(f"{where}: is named after no mechanism")
        if where in (TABLE, VERSION):
            continue
        importer = room_of(".".join(where.with_suffix("").parts))
        if importer not in LEVEL:
            found.append(f"{where}: is in no room")
            continue
        package = ".".join(where.parent.parts)
        for name in imported_names(path.read_text(encoding="utf-8"), package):
            if problem := wrong(importer, name):
                found.append(f"{where}: {problem}")
    return found


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_the_rule_reads_real_files():
    seen = {
        room_of(name)
        for path in (ROOT / "jaxlab").rglob("*.py")
        for name in imported_names(
            path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parent.parts)
        )
    }
    assert "core" in seen


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxlab/core/a.py", "from jaxlab.nn.conv import Conv"),
        ("jaxlab/core/a.py", "from ..nn import mlp"),
        ("jaxlab/core/a.py", "def f():\n    import jaxlab.train.loop"),
        ("jaxlab/data/a.py", "from jaxlab import nn"),
        ("jaxlab/nn/a.py", "import jaxlab\n\ndef f():\n    return jaxlab.models.MLP"),
        ("jaxlab/nn/a.py", "from jaxlab.misc import f"),
        ("jaxlab/objectives/a.py", "from jaxlab.models import TransformerLM"),
        ("jaxlab/evals/a.py", "from jaxlab.models import TransformerLM"),
        ("jaxlab/train/a.py", "from jaxlab import models"),
        ("jaxlab/train/a.py", "from jaxlab.core.view import _split"),
        ("jaxlab/train/a.py", "from jaxlab.core._view import split"),
        ("jaxlab/train/a.py", "import configs.block_recurrent"),
        ("jaxlab/evals/a.py", "from experiments import block_recurrent"),
        ("configs/a.py", "from experiments.block_recurrent import main"),
        ("jaxlab/nn/utils.py", ""),
        ("jaxlab/nn/shape_utils.py", ""),
        ("jaxlab/utils/a.py", ""),
        ("jaxlab/loose.py", ""),
    ],
)
def test_a_wrong_import_is_caught(tmp_path: pathlib.Path, file: str, source: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    found = violations(tmp_path)
    assert found and all(line.startswith(f"{file}: ") for line in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxlab/__init__.py", "from jaxlab import train as train"),
        ("jaxlab/nn/a.py", "from jaxlab.core import View\nfrom jaxlab.nn.conv import _gate"),
        ("jaxlab/nn/a.py", "from . import conv\nfrom .conv import Conv\nfrom ..core import View"),
        ("jaxlab/results/a.py", "import jax._src\nfrom jaxlab import __version__"),
        ("jaxlab/results/a.py", "import jaxlab\n\nversion = jaxlab.__version__"),
        ("jaxlab/evals/a.py", "from jaxlab import sampling, objectives"),
        ("configs/a.py", "from jaxlab import models, train"),
        ("experiments/a.py", "from configs import block_recurrent\nfrom jaxlab import models"),
    ],
)
def test_a_right_import_passes(tmp_path: pathlib.Path, file: str, source: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []
