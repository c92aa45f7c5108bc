"""The one figure style of the house.

Figures are drawn on their own Agg canvas, never through pyplot: the user's backend, open figures
and rcParams stay as they are, in notebooks and threads too. The width is made for a report of
about 720 CSS pixels, at 150 dots an inch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.core import UsageError
from jaxlab.results.figure_style import (
    DASHES,
    EDGE,
    INK,
    PALETTE,
    figure,
    head,
    minus,
    name_ticks,
    save,
    set_scale,
)
from jaxlab.results.tables import format_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "figure", "heatmap", "lines", "save"]


def lines(
    series: Mapping[str, Sequence[Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
) -> Figure:
    """Draws curves that share their axes.

    Args:
      series: by name `(x, y)`, or `(x, y, low, high)` with a band around the curve; each [n].
        Colours follow the order. Points that are not finite are gaps.
      xlabel: label of x, with its unit.
      ylabel: label of y, with its unit.
      title: a line above the figure.
      xscale: `"linear"`, `"log"` (ticks at powers of ten) or `"log2"` (at powers of two).
      yscale: the same for y.

    Raises:
      UsageError: for no series, arrays of unequal length, or an unknown scale.
    """
    curves = {name: _curve(name, values) for name, values in _non_empty(series).items()}
    with figure() as (fig, ax):
        for index, (name, (x, y, *band)) in enumerate(curves.items()):
            color = PALETTE[index % len(PALETTE)]
            dashes = DASHES[index // len(PALETTE) % len(DASHES)]
            marker = "o" if len(x) <= 16 else ""
            ax.plot(x, y, color=color, linestyle=dashes, label=name, marker=marker, markersize=4.5)
            if band:
                low, high = band
                ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        ax.margins(x=0.015)
        set_scale(ax, "x", xscale)
        set_scale(ax, "y", yscale)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        head(fig, ax, title, legend=len(curves) > 1)
    return fig


def bars(
    values: Mapping[str, float | Sequence[float]],
    *,
    xlabel: str,
    title: str | None = None,
) -> Figure:
    """Draws one horizontal bar a name, from zero, each with its value beside it.

    Args:
      values: by name a value, or `(value, low, high)` with the ends of an interval. One that is
        not finite has no bar and reads `n/a`.
      xlabel: label of the values, with their unit.
      title: a line above the figure.

    Raises:
      UsageError: for no values, or one that is neither a number nor three.
    """
    rows = [_bar(name, value) for name, value in _non_empty(values).items()]
    with figure(height=1.1 + 0.44 * len(rows) + (0.3 if title else 0)) as (fig, ax):
        centers, lows, highs = np.nan_to_num(np.array(rows), posinf=0.0, neginf=0.0).T
        texts = format_column([row[0] for row in rows])
        places = np.arange(len(rows))
        colors = [PALETTE[index % len(PALETTE)] for index in places]
        ax.barh(places, centers, height=0.62, color=colors)
        ranged = lows < highs
        if ranged.any():
            reach = np.stack([centers - lows, highs - centers])[:, ranged]
            ax.errorbar(
                centers[ranged],
                places[ranged],
                xerr=reach,
                fmt="none",
                ecolor=INK,
                elinewidth=1.2,
                capsize=3,
            )
        _label_bars(ax, texts, centers, lows, highs)
        names = ["\n".join(textwrap.wrap(name, 30)) for name in values]
        ax.set_yticks(places, names, color=INK)
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        if centers.min() < 0 < centers.max():
            ax.axvline(0, color=EDGE, linewidth=0.8)
        ax.set_xlabel(xlabel)
        head(fig, ax, title, legend=False)
    return fig


def heatmap(
    matrix: Any,
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    xticks: Sequence[str] | None = None,
    yticks: Sequence[str] | None = None,
    title: str | None = None,
    center: float | None = None,
) -> Figure:
    """Draws a matrix as colours; a small one (up to 10 columns) with its values written in.

    Args:
      matrix: real values [rows, columns]; values that are not finite stay white.
      xlabel: label of the columns.
      ylabel: label of the rows.
      label: label of the values, with their unit.
      xticks: a name for every column; their numbers when absent.
      yticks: a name for every row.
      title: a line above the figure.
      center: a value that has a meaning (0 for a difference): colours diverge from it.

    Raises:
      UsageError: for what is not a matrix, or names that do not match its sides.
    """
    values = np.asarray(matrix, float)
    if values.ndim != 2 or not values.size:
        raise UsageError(f"heatmap got an array of shape {values.shape}; expected [rows, columns]")
    rows, columns = values.shape
    height = min(max(2.6, 1.2 + 0.42 * rows), max(5.0, 1.2 + 0.22 * rows))
    with figure(height=height) as (fig, ax):
        image = ax.imshow(values, aspect="auto", **_colors(values, center))
        bar = fig.colorbar(image, ax=ax, pad=0.02, aspect=24)
        bar.outline.set_visible(False)
        bar.set_label(label)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        name_ticks(ax, "x", xticks, columns)
        name_ticks(ax, "y", yticks, rows)
        if columns <= 10 and rows <= 18:
            _write_cells(ax, image, values)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        head(fig, ax, title, legend=False)
    return fig


def _non_empty(values: Mapping[str, Any]) -> Mapping[str, Any]:
    if not values:
        raise UsageError("nothing to draw: got an empty mapping; expected at least one named entry")
    return values


def _curve(name: str, values: Sequence[Any]) -> list[np.ndarray]:
    arrays = [np.asarray(part, float) for part in values]
    shapes = {array.shape for array in arrays}
    if len(arrays) not in (2, 4) or len(shapes) != 1 or arrays[0].ndim != 1:
        raise UsageError(
            f"curve {name!r} has {len(arrays)} arrays of shapes {[a.shape for a in arrays]}; "
            "expected (x, y) or (x, y, low, high), each of one length"
        )
    return arrays


def _bar(name: str, value: float | Sequence[float]) -> tuple[float, float, float]:
    numbers = np.atleast_1d(np.asarray(value, float))
    is_triple = numbers.shape == (3,)
    if numbers.shape == (1,) or (is_triple and not np.isfinite(numbers[0])):
        center = float(numbers[0])
        return center, center, center
    if not is_triple or not numbers[1] <= numbers[0] <= numbers[2]:
        raise UsageError(
            f"bar {name!r} is {value!r}; expected a value, or (value, low, high) in that interval"
        )
    center, low, high = map(float, numbers)
    return center, low, high


def _label_bars(
    ax: Axes, texts: Sequence[str], centers: np.ndarray, lows: np.ndarray, highs: np.ndarray
) -> None:
    """Writes each value past the end of its bar and interval, and makes room for it."""
    for place, (text, center) in enumerate(zip(texts, centers, strict=True)):
        left = center < 0
        ax.annotate(
            minus(text),
            (lows[place] if left else highs[place], place),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    low, high = min(0.0, lows.min()), max(0.0, highs.max())
    room = 0.15 * ((high - low) or 1.0)
    ax.set_xlim(low - room * (centers.min() < 0), high + room * (centers.max() >= 0))


def _colors(values: np.ndarray, center: float | None) -> dict[str, Any]:
    """Returns colour map and limits; around `center` both colours reach equally far."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UsageError("heatmap got no finite value; expected at least one")
    if center is None:
        return {"cmap": "cividis", "vmin": finite.min(), "vmax": finite.max()}
    reach = np.abs(finite - center).max() or 1.0
    return {"cmap": "RdBu_r", "vmin": center - reach, "vmax": center + reach}


def _write_cells(ax: Axes, image: Any, values: np.ndarray) -> None:
    """Writes each finite value in its cell, light on dark and dark on light."""
    texts = format_column(values.ravel().tolist(), digits=3)
    for text, ((row, column), value) in zip(texts, np.ndenumerate(values), strict=True):
        if np.isfinite(value):
            red, green, blue, _alpha = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            color = "white" if dark else INK
            ax.text(column, row, minus(text), ha="center", va="center", color=color, fontsize=9)
