"""The site: the pages of this folder, and one page for each room from its docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import sys

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util.docutils import SphinxDirective

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import jaxlab  # noqa: E402

project = "jaxlab"
author = "The jaxlab Authors"
copyright = author
release = jaxlab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"jaxlab {release}"
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False

BEFORE_NAPOLEON = 400  # Sphinx calls in order of priority, and napoleon at 500
QUOTED = re.compile(r"(?<![`:])`([^`]+)`(?![`_])")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
DIRECTIVES = (
    (inspect.ismodule, "automodule"),
    (inspect.isclass, "autoclass"),
    (inspect.isfunction, "autofunction"),
)


class Room(SphinxDirective):
    """`.. room:: jaxlab.core`: the docstring of a room, then every name that it exports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parses one autodoc directive for each exported name."""
        room = importlib.import_module(self.arguments[0])
        lines = [f".. automodule:: {room.__name__}", "   :no-members:", ""]
        for node in ast.parse(inspect.getsource(room)).body:
            if not isinstance(node, ast.ImportFrom) or node.module == "__future__":
                continue
            for alias in node.names:
                lines += [*self.entry(room, node.module or "", alias), ""]
        return self.parse_lines(lines)

    def entry(self, room: object, module: str, alias: ast.alias) -> list[str]:
        """The directive that documents one import of the room's `__init__`."""
        name = alias.asname or alias.name
        for is_kind, directive in DIRECTIVES:
            if is_kind(getattr(room, name)):
                return [f".. {directive}:: {self.arguments[0]}.{name}"]
        # The text of a constant or an alias stands below its assignment, in its own module.
        return [f".. autodata:: {module}.{alias.name}", "   :no-value:"]

    def parse_lines(self, lines: list[str]) -> list[nodes.Node]:
        """The document nodes of generated reStructuredText."""
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "room"), self.content_offset, container)
        return container.children


def translate_backticks(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Turns `code`, as docstrings write it, into what reStructuredText calls so, in place.

    A name becomes a link where it is a public one; anything else is shown as it stands.
    """

    def translated(match: re.Match[str]) -> str:
        text = " ".join(match[1].split())
        return f":py:obj:`{text}`" if DOTTED.fullmatch(text) else f"``{text}``"

    lines[:] = QUOTED.sub(translated, "\n".join(lines)).split("\n")
    if what in ("data", "attribute", "property"):
        # Napoleon would take what stands before a colon in the first line for a type.
        lines.insert(0, "")


def skip_tuple_fields(
    app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object
) -> bool | None:
    """Leaves out the fields of a named tuple, which its docstring describes."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    """Registers the directive, and sees that no room is without its page."""
    pages = {path.stem for path in (DOCS / "rooms").glob("*.rst")}
    if pages != set(jaxlab.__all__):
        raise ConfigError(f"docs/rooms has the pages {sorted(pages)}, not {jaxlab.__all__}")
    app.add_directive("room", Room)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-docstring", translate_backticks, priority=BEFORE_NAPOLEON)
