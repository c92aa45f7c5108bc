"""Figures in one style: lines, bars and heatmaps.

Figures are drawn on their own Agg canvas, never through pyplot: the user's backend, figures and
rcParams are untouched, also in notebooks and threads. The width fits a report of about 720 CSS
pixels, at 150 dots per inch.
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
    """Draws curves on shared axes.

    Args:
      series: `{name: (x, y)}`, or `{name: (x, y, low, high)}` with a band around the curve; each
        [n]. Colours follow the order. Points that are not finite become gaps.
      xlabel: label of x, with its unit.
      ylabel: label of y, with its unit.
      title: title above the figure.
      xscale: `"linear"`, `"log"` (ticks at powers of ten) or `"log2"` (at powers of two).
      yscale: the same for y.

    Raises:
      UsageError: no series, arrays of different lengths, or an unknown scale.
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
    """Draws one horizontal bar per name, from zero, labelled with its value.

    Args:
      values: `{name: value}`, or `{name: (value, low, high)}` with an interval. A value that is not
        finite has no bar and is labelled `n/a`.
      xlabel: label of the values, with their unit.
      title: title above the figure.

    Raises:
      UsageError: no values, or one that is neither one number nor three.
    """
    rows = [_bar(name, value) for name, value in _non_empty(values).items()]
    with figure(height=1.1 + 0.44 * len(rows) + (0.3 if title else 0)) as (fig, ax):
        centers, lows, highs = np.nan_to_num(np.array(rows), posinf=0.0, neginf=0.0).T
        texts = format_column([row[0] for row in rows])
        positions = np.arange(len(rows))
        colors = [PALETTE[index % len(PALETTE)] for index in positions]
        ax.barh(positions, centers, height=0.62, color=colors)
        ranged = lows < highs
        if ranged.any():
            reach = np.stack([centers - lows, highs - centers])[:, ranged]
            ax.errorbar(
                centers[ranged],
                positions[ranged],
                xerr=reach,
                fmt="none",
                ecolor=INK,
                elinewidth=1.2,
                capsize=3,
            )
        _label_bars(ax, texts, centers, lows, highs)
        names = ["\n".join(textwrap.wrap(name, 30)) for name in values]
        ax.set_yticks(positions, names, color=INK)
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
    """Draws a matrix as colours, with its values as text if it has at most 10 columns.

    Args:
      matrix: real values [rows, columns]; values that are not finite are white.
      xlabel: label of the columns.
      ylabel: label of the rows.
      label: label of the values, with their unit.
      xticks: a name for every column; None: their numbers.
      yticks: a name for every row; None: their numbers.
      title: title above the figure.
      center: a reference value (0 for a difference) from which colours diverge.

    Raises:
      UsageError: not a matrix, or the number of names does not match its shape.
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
            "expected (x, y) or (x, y, low, high), all of the same length"
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
            f"bar {name!r} is {value!r}; expected a value, or (value, low, high) with low <= value "
            "<= high"
        )
    center, low, high = map(float, numbers)
    return center, low, high


def _label_bars(
    ax: Axes, texts: Sequence[str], centers: np.ndarray, lows: np.ndarray, highs: np.ndarray
) -> None:
    """Writes each value after the end of its bar and interval, and makes room for it."""
    for position, (text, center) in enumerate(zip(texts, centers, strict=True)):
        left = center < 0
        ax.annotate(
            minus(text),
            (lows[position] if left else highs[position], position),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    low, high = min(0.0, lows.min()), max(0.0, highs.max())
    room = 0.15 * ((high - low) or 1.0)
    ax.set_xlim(low - room * (centers.min() < 0), high + room * (centers.max() >= 0))


def _colors(values: np.ndarray, center: float | None) -> dict[str, Any]:
    """Returns the colour map and its limits, which are symmetric around `center`."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UsageError("heatmap got no finite value; expected at least one")
    if center is None:
        return {"cmap": "cividis", "vmin": finite.min(), "vmax": finite.max()}
    reach = np.abs(finite - center).max() or 1.0
    return {"cmap": "RdBu_r", "vmin": center - reach, "vmax": center + reach}


def _write_cells(ax: Axes, image: Any, values: np.ndarray) -> None:
    """Writes each finite value in its cell, in white on dark colours."""
    texts = format_column(values.ravel().tolist(), digits=3)
    for text, ((row, column), value) in zip(texts, np.ndenumerate(values), strict=True):
        if np.isfinite(value):
            red, green, blue, _alpha = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            color = "white" if dark else INK
            ax.text(column, row, minus(text), ha="center", va="center", color=color, fontsize=9)
