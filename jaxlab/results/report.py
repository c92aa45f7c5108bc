"""The HTML report of a run: one self-contained page with its claims, numbers and figures."""

from __future__ import annotations

import base64
import html
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlab.core import UsageError
from jaxlab.results.page import page
from jaxlab.results.record import Claim, Record
from jaxlab.results.storage import replace_file
from jaxlab.results.tables import Rows, format_number, html_table

_ARXIV_ID = re.compile(r"(?:arXiv:\s*)?\b(\d{4}\.\d{4,5})(?:v\d+)?\b", re.IGNORECASE)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_report(
    record: Record,
    *,
    title: str,
    summary: str,
    figures: Mapping[str, str | os.PathLike[str]] | None = None,
    tables: Mapping[str, Rows] | None = None,
    samples: Mapping[str, str] | None = None,
    commands: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes report.html of a complete run and returns its path.

    Claims, numbers, config and environment come from the record, so the page always agrees with
    results.json. The page refers to no other file, runs no script, and is reproducible.

    Args:
      record: a complete run.
      title: heading of the page.
      summary: what the study asks and how; blank lines separate paragraphs. Results in it must come
        from the record's numbers.
      figures: `{caption: path of a PNG}`.
      tables: `{caption: rows}`, with rows as for `html_table`.
      samples: `{title: text}`, shown verbatim.
      commands: `{purpose: shell command}`. The commands of the numbers are added automatically.

    Raises:
      UsageError: the run is not complete, or a figure is missing or is not a PNG.
    """
    numbers = dict(_flat_numbers(record.results["numbers"]))
    repeated = {name: number["command"] for name, number in numbers.items() if "command" in number}
    parts = [
        _header(record, title, summary),
        _claims(record.claims),
        _numbers(numbers),
        _figures(figures or {}),
        _tables(tables or {}),
        _samples(samples or {}),
        _commands({**(commands or {}), **repeated}),
        _details(record),
    ]
    return replace_file(record.report_path, page(title, "\n".join(filter(None, parts))))


def _header(record: Record, title: str, summary: str) -> str:
    paragraphs = (f'<p class="summary">{_text(part)}</p>' for part in summary.split("\n\n"))
    environment = record.environment()
    devices = f"{environment['device_count']} \u00d7 {environment['device_kind']}"
    facts = {
        "Experiment": _text(record.experiment),
        "Variant": _text(record.variant),
        "Paper": _paper(record.paper),
        "Devices": _text(devices),
    }
    items = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f"<header>\n<h1>{_text(title)}</h1>\n{''.join(paragraphs)}\n"
        f'<dl class="facts">{"".join(items)}</dl>\n</header>'
    )


def _claims(claims: Sequence[Claim]) -> str:
    if not claims:
        return ""
    held = sum(claim.holds for claim in claims)
    rows = "\n".join(map(_claim, claims))
    return _section(
        "Claims",
        f"<p>{held} of {len(claims)} {'claim holds' if len(claims) == 1 else 'claims hold'}.</p>\n"
        '<table class="claims"><thead><tr><th>Claim</th><th>Expected</th><th>Measured</th>'
        f"<th>Holds</th></tr></thead>\n<tbody>\n{rows}\n</tbody></table>",
    )


def _claim(claim: Claim) -> str:
    word = "yes" if claim.holds else "no"
    return (
        f'<tr><td class="claim">{_text(claim.claim)}</td>'
        f'<td data-label="Expected">{_text(claim.expected)}</td>'
        f'<td data-label="Measured">{_text(_value(claim.measured))}</td>'
        f'<td data-label="Holds"><span class="mark {word}">{word}</span></td></tr>'
    )


def _numbers(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    tiles = []
    for name, number in numbers.items():
        kind = ' class="words"' if isinstance(number["value"], str | list) else ""
        value = _text(_value(number["value"]))
        tiles.append(f"<div><dt>{_text(name)}</dt><dd{kind}>{value}</dd></div>")
    return _section("Numbers", f'<dl class="tiles">{"".join(tiles)}</dl>') if tiles else ""


def _flat_numbers(
    numbers: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `(name, {"value": ...})`, with a `"command"` if there is one; joins nested names."""
    for name, number in numbers.items():
        if not isinstance(number, Mapping):
            yield f"{prefix}{name}", {"value": number}
        elif "value" in number:
            yield f"{prefix}{name}", dict(number)
        else:
            yield from _flat_numbers(number, f"{prefix}{name} / ")


def _figures(figures: Mapping[str, str | os.PathLike[str]]) -> str:
    shown = "\n".join(
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{_png(path)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for caption, path in figures.items()
    )
    return _section("Figures", shown) if shown else ""


def _png(path: str | os.PathLike[str]) -> str:
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"figure {os.fspath(path)!r} cannot be read ({error.strerror}); draw it first"
        ) from None
    if not content.startswith(_PNG_SIGNATURE):
        raise UsageError(f"figure {os.fspath(path)!r} is not a PNG; save it as one")
    return base64.b64encode(content).decode()


def _tables(tables: Mapping[str, Rows]) -> str:
    shown = "\n".join(
        f'<h3>{_text(caption)}</h3>\n<div class="scroll">{html_table(rows)}</div>'
        for caption, rows in tables.items()
    )
    return _section("Tables", shown) if shown else ""


def _samples(samples: Mapping[str, str]) -> str:
    shown = "\n".join(
        f'<h3>{_text(title)}</h3>\n<pre class="wrap">{_pre(sample)}</pre>'
        for title, sample in samples.items()
    )
    return _section("Samples", shown) if shown else ""


def _commands(commands: Mapping[str, str]) -> str:
    purposes: dict[str, list[str]] = {}
    for purpose, command in commands.items():
        purposes.setdefault(command, []).append(purpose)
    shown = "\n".join(
        f'<p class="caption">{_text(", ".join(names))}</p>\n<pre class="wrap">{_pre(command)}</pre>'
        for command, names in purposes.items()
    )
    return _section("Run it again", shown) if shown else ""


def _details(record: Record) -> str:
    environment = [
        {"": name, "this run": str(value)} for name, value in record.environment().items()
    ]
    config = json.dumps(record.config, indent=2, ensure_ascii=False)
    return _section(
        "Setting",
        f"<details><summary>Resolved config</summary>\n<pre>{_pre(config)}</pre></details>\n"
        "<details><summary>Environment</summary>\n"
        f'<div class="scroll">{html_table(environment)}</div></details>',
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def _paper(paper: str) -> str:
    """Returns the paper with its arXiv id, if any, as a link."""
    match = _ARXIV_ID.search(paper)
    if not match:
        return _text(paper)
    before, after = paper[: match.start()], paper[match.end() :]
    link = f'<a href="https://arxiv.org/abs/{match[1]}">arXiv:{match[1]}</a>'
    return f"{_text(before)}{link}{_text(after)}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return format_number(value)


def _text(text: str) -> str:
    return html.escape(text)


def _pre(text: str) -> str:
    # HTML drops one line break right after <pre>.
    return html.escape("\n" + text if text.startswith("\n") else text)
