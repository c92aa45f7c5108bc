"""The page of a study: a summary, figures and tables, drawn from what is on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab import results
from jaxlab.results import Record, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Lines:
    """A figure of curves that share their axes.

    Attributes:
      caption: what it shows, in a sentence.
      series: by name `(x, y)`, or `(x, y, low, high)` with a band; each [n].
      xlabel, ylabel: labels, with units.
      xscale: `linear`, `log` or `log2`.
    """

    caption: str
    series: Mapping[str, Sequence[Any]]
    xlabel: str
    ylabel: str
    xscale: str = "linear"

    def draw(self) -> Figure:
        """Draws it in the style of the house."""
        return figures.lines(
            self.series, xlabel=self.xlabel, ylabel=self.ylabel, xscale=self.xscale
        )


@dataclasses.dataclass(frozen=True)
class Bars:
    """A figure of one horizontal bar for each name.

    Attributes:
      caption: what it shows, in a sentence.
      values: by name a number, or `(value, low, high)` with its interval.
      xlabel: label, with its unit.
    """

    caption: str
    values: Mapping[str, Any]
    xlabel: str

    def draw(self) -> Figure:
        """Draws it in the style of the house."""
        return figures.bars(self.values, xlabel=self.xlabel)


@dataclasses.dataclass(frozen=True)
class Page:
    """What the report of a study shows, beside its claims and numbers.

    Attributes:
      title: heading.
      summary: what was asked and how; blank lines part paragraphs.
      figures: by file name without its ending.
      tables: rows by caption; the command line prints them too.
      samples: text by title.
      introduction: the sentence that the command line prints over the tables.
      hints: further lines for the end of the command line, such as what to try next.
    """

    title: str
    summary: str
    figures: Mapping[str, Lines | Bars] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, str] = dataclasses.field(default_factory=dict)
    introduction: str = ""
    hints: Sequence[str] = ()


def curves(numbers: Mapping[str, Any], metric: str, scale: float = 1.0) -> dict[str, np.ndarray]:
    """The curve of each group of trainings: one metric over their places on the axis.

    Args:
      numbers: see `numbers_of`.
      metric: by `split/name`.
      scale: factor of the values, such as 100 for percent.

    Returns:
      By group, float64 [4, n]: x, mean, and the ends of the 95% interval, which are the mean where
      one seed gives no interval.
    """
    points: dict[str, list[tuple[float, ...]]] = {}
    for name, group in numbers["trainings/group"].items():
        mean, low, high = numbers[metric][name]
        ends = (mean, mean) if low is None else (low, high)
        values = [scale * value for value in (mean, *ends)]
        points.setdefault(group, []).append((numbers["trainings/x"][name], *values))
    return {group: np.array(sorted(of_group), float).T for group, of_group in points.items()}


def write_page(record: Record, page: Page, commands: Mapping[str, str]) -> None:
    """Draws the figures and writes the report of a complete study.

    Args:
      record: of the study.
      page: what to show.
      commands: shell command by what it does.
    """
    drawn = {
        figure.caption: figures.save(figure.draw(), record.figures_dir / f"{name}.png")
        for name, figure in page.figures.items()
    }
    results.write_report(
        record,
        title=page.title,
        summary=page.summary,
        figures=drawn,
        tables=page.tables,
        samples=page.samples,
        commands=commands,
    )


def closing_words(record: Record, page: Page) -> str:
    """What the command line prints at the end: tables, the claims, where things are, hints."""
    tables = [f"{caption}\n{results.table(rows)}" for caption, rows in page.tables.items()]
    blocks = [
        page.introduction,
        *tables,
        "\n".join(results.claim_lines(record.claims)),
        "\n".join([f"report   {record.report_path}", *page.hints]),
    ]
    return "\n" + "\n\n".join(block for block in blocks if block)
