"""The style of every figure: colours, fonts, axes, and the position of the legend."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import textwrap
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxlab.core import UsageError, nearest
from jaxlab.results.storage import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WIDTH = 7.2
"""Inches; 1080 pixels, which look sharp at 720 CSS pixels on a high-density screen."""

# The Okabe-Ito palette, which is safe for all common kinds of colour blindness, without its yellow,
# which is too light for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))

INK, MUTED, EDGE, GRID = "#1F2328", "#59636E", "#B4BBC3", "#E3E6EA"
_STYLE = {
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": EDGE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.55,
    "legend.columnspacing": 1.5,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

# matplotlib's settings are one global dict: two threads swapping it at once would mix theirs.
_settings_lock = threading.RLock()


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """A context in which matplotlib has this style; the user's settings are restored after it."""
    import matplotlib.style

    with _settings_lock, matplotlib.style.context(_STYLE, after_reset=True):
        yield


@contextlib.contextmanager
def figure(width: float = WIDTH, height: float = 4.0) -> Iterator[tuple[Figure, Axes]]:
    """A context that gives a figure with one axes, drawn in this style.

    Args:
      width: inches.
      height: inches.

    >>> with figure() as (fig, ax):
    ...     _ = ax.plot([1, 2, 3])
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with house_style():
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        fig = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        FigureCanvasAgg(fig)
        yield fig, fig.subplots()


def save(fig: Figure, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a figure as a PNG atomically; creates the folder if it is missing.

    Raises:
      UsageError: the name does not end in `.png`.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"figure path {os.fspath(path)!r} does not end in .png; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    with house_style():
        # Without matplotlib's version in the file, redrawing a figure gives the same bytes.
        fig.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return replace_file(path, image.getvalue())


def head(fig: Figure, ax: Axes, title: str | None, legend: bool) -> None:
    """Puts the title and the legend above the axes, where they hide no data."""
    if not legend:
        if title:
            ax.set_title("\n".join(textwrap.wrap(title, 68)))
        return
    handles, names = ax.get_legend_handles_labels()
    names = ["\n".join(textwrap.wrap(name, 64)) for name in names]
    for num_columns in range(len(names), 0, -1):
        box = ax.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(0, 1.03),
            ncols=num_columns,
            title="\n".join(textwrap.wrap(title, 68)) if title else None,
            title_fontproperties={"weight": "bold", "size": 11.5},
            alignment="left",
        )
        if box.get_window_extent().width <= 0.86 * fig.bbox.width:
            return


def set_scale(ax: Axes, side: str, scale: str) -> None:
    """Sets the scale of one axis, with plain numbers as tick labels.

    Args:
      ax: the axes, with the data already drawn.
      side: `"x"` or `"y"`.
      scale: `"linear"`, `"log"` (ticks at 1, 10, 100, ...) or `"log2"` (at 1, 2, 4, ...).
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    bases = {"linear": None, "log": 10, "log2": 2}
    if scale not in bases:
        known = ", ".join(bases)
        raise UsageError(f"{side}scale {scale!r} is not one of {known}{nearest(scale, bases)}")
    axis = ax.xaxis if side == "x" else ax.yaxis
    base = bases[scale]
    if base is None:
        axis.set_major_formatter(_linear_formatter())
        return
    set_log = ax.set_xscale if side == "x" else ax.set_yscale
    set_log("log", base=base)
    low, high = axis.get_view_interval()
    powers = math.log(high / low, base)
    between = (1, 2, 5) if base == 10 and powers < 3 else (1,)
    few = powers < (1 if base == 10 else 2)
    axis.set_major_locator(MaxNLocator(5) if few else LogLocator(base, between, numticks=11))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain_tick))


def name_ticks(ax: Axes, side: str, names: Sequence[str] | None, length: int) -> None:
    """Names the rows or columns of a matrix; long column names are slanted.

    Raises:
      UsageError: the number of names is wrong.
    """
    from matplotlib.ticker import MaxNLocator

    axis = ax.xaxis if side == "x" else ax.yaxis
    if names is None:
        axis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        return
    if len(names) != length:
        raise UsageError(f"{side}ticks has {len(names)} names for {length} {side} positions")
    axis.set_ticks(range(length), [shortened(name) for name in names], color=INK)
    if side == "x" and max(map(len, names)) * length > 60:
        for tick in axis.get_ticklabels():
            tick.set(rotation=40, ha="right", rotation_mode="anchor")


def minus(text: str) -> str:
    """Replaces hyphens in a number by the minus sign that matplotlib uses."""
    return text.replace("-", "\u2212")


def shortened(name: str, length: int = 32) -> str:
    """Shortens a name to `length` characters, with an ellipsis at the end."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "\u2026"


def _plain_tick(value: float, _position: int | None = None) -> str:
    """Writes a number in full; round numbers from a million on get a suffix: 2.5M."""
    value = float(f"{value:.10g}")
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= unit and value % (unit / 1000) == 0:
            return minus(f"{value / unit:.10g}{suffix}")
    return minus(f"{value:,.10g}")


def _linear_formatter() -> Any:
    from matplotlib.ticker import ScalarFormatter

    class Formatter(ScalarFormatter):
        """Ticks below a thousand have the same number of decimals; larger ones are grouped."""

        def __call__(self, value: float, position: int | None = None) -> str:
            return _plain_tick(value) if abs(value) >= 1000 else super().__call__(value, position)

    formatter = Formatter(useOffset=False, useMathText=False)
    # matplotlib would write a common power of ten above the axes, over the title and the legend.
    formatter.set_scientific(False)
    return formatter
