"""Tables as plain text, Markdown and HTML, and the formatting of numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.core import UsageError, nearest
from jaxlab.results.record import Claim
from jaxlab.results.storage import plain

Rows = Sequence[Mapping[str, Any]]

_DIGITS = 4


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """Returns one line per claim: whether it holds, the claim, and the measured value.

    >>> claim_lines([Claim("It is small.", "below 1", "2", holds=False)])
    ['not shown  It is small. (2)']
    """
    return [f"{'holds' if c.holds else 'not shown':9}  {c.claim} ({c.measured})" for c in claims]


def format_number(value: float | int | bool | None, digits: int = _DIGITS) -> str:
    """Formats one number for display.

    Integers keep all digits, in groups of three. Other numbers get `digits` significant digits, in
    scientific notation below 1e-4 and from 1e7 on. Numbers that are not finite, and None, which
    replaces them in files, are `n/a`; booleans are yes and no. Scalars of NumPy and JAX work too.

    >>> [format_number(value) for value in (1234567, 0.95214, 12.3456, 2.5e-6, True, None)]
    ['1,234,567', '0.9521', '12.35', '2.5e-06', 'yes', 'n/a']
    """
    value = plain(value)
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    decimals = _decimals(value, digits)
    return f"{value:.{digits}g}" if decimals is None else f"{value:,.{decimals}f}"


def format_column(values: Sequence[Any], digits: int = _DIGITS) -> list[str]:
    """Formats the cells of a column, with the same number of decimals for all fractions.

    The largest fraction sets the number of decimals, unless the smallest would keep fewer than two
    digits; then each is formatted separately. Other values become text on one line.

    >>> format_column([1.9042, 12.5, 3])
    ['1.90', '12.50', '3']
    """
    cells = [_plain_cell(value) for value in values]
    fractions = [abs(cell) for cell in cells if isinstance(cell, float) and cell]
    decimals = _decimals(max(fractions), digits) if fractions else None
    shared = decimals is not None and min(fractions) >= 10.0 ** (1 - decimals)

    def written(cell: Any) -> str:
        if isinstance(cell, str):
            return cell
        if shared and isinstance(cell, float):
            return f"{cell:,.{decimals}f}"
        return format_number(cell, digits)

    return [written(cell) for cell in cells]


def table(rows: Rows, columns: Sequence[str] | None = None) -> str:
    """Formats rows as plain text, with numbers right-aligned and text left-aligned.

    Args:
      rows: one mapping per row, from column to cell; a missing cell is empty.
      columns: the columns to show, in this order; None: all, in order of appearance.

    Raises:
      UsageError: a column that no row has.

    >>> print(table([{"model": "slide", "bits": 2.25}, {"model": "recurrent", "bits": 2.125}]))
    model       bits
    ---------  -----
    slide      2.250
    recurrent  2.125
    """
    names, cells, numeric = _layout(rows, columns)
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(_align(line, widths, numeric)).rstrip() for line in lines)


def markdown_table(rows: Rows, columns: Sequence[str] | None = None) -> str:
    """Formats rows as a Markdown table; arguments as for `table`."""
    names, cells, numeric = _layout(rows, columns)
    names, *cells = [[cell.replace("|", "\\|") for cell in line] for line in (names, *cells)]
    widths = [max(3, *map(len, column)) for column in zip(names, *cells, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    ]
    lines = [names, rule, *cells]
    return "\n".join(f"| {' | '.join(_align(line, widths, numeric))} |" for line in lines)


def html_table(rows: Rows, columns: Sequence[str] | None = None) -> str:
    """Formats rows as an escaped HTML `<table>`; number cells have the class `number`."""
    names, cells, numeric = _layout(rows, columns)
    kinds = [' class="number"' if right else "" for right in numeric]

    def line(tag: str, texts: Sequence[str]) -> str:
        inner = (
            f"<{tag}{kind}>{html.escape(text)}</{tag}>"
            for text, kind in zip(texts, kinds, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(line("td", row) for row in cells)
    return f"<table>\n<thead>{line('th', names)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _layout(
    rows: Rows, columns: Sequence[str] | None
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Returns column names, cells as text by row, and which columns are numeric."""
    known = list(dict.fromkeys(name for row in rows for name in row))
    names = list(known if columns is None else columns)
    for name in names:
        if rows and name not in known:
            raise UsageError(
                f"no row has a column {name!r}{nearest(name, known)}; "
                f"columns are {', '.join(known)}"
            )
    if not names:
        raise UsageError("a table needs at least one column: got no rows and no columns")
    by_column = [[row.get(name, "") for row in rows] for name in names]
    written = [format_column(values) for values in by_column]
    cells = [list(line) for line in zip(*written, strict=True)]
    return names, cells, [_is_numeric(values) for values in by_column]


def _align(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(line, widths, numeric, strict=True)
    ]


def _plain_cell(value: Any) -> Any:
    """Converts numbers, booleans and None to Python's types, anything else to a line of text."""
    if value is None or isinstance(value, bool | int | float):
        return plain(value)
    if getattr(value, "shape", None) == ():
        return plain(value)
    return " ".join(str(value).split())


def _is_numeric(values: Sequence[Any]) -> bool:
    """Returns whether a column has only numbers, None and empty cells, and at least one number."""
    cells = [cell for cell in map(_plain_cell, values) if cell not in ("", None)]
    return bool(cells) and not any(isinstance(cell, bool | str) for cell in cells)


def _decimals(value: float, digits: int) -> int | None:
    """Returns the number of decimals for `digits` significant digits, or None for scientific."""
    if value == 0:
        return 0
    power = math.floor(math.log10(abs(value)))
    return None if power < -4 or power >= 7 else max(0, digits - 1 - power)
