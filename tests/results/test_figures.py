from __future__ import annotations

import os
import subprocess
import sys
import threading

import matplotlib
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.results import figures
from jaxlab.results.figure_style import DPI, PALETTE, WIDTH

STEPS = np.arange(1, 6)
POSITIONS = 2.0 ** np.arange(7, 14)
LABELS = {"xlabel": "step", "ylabel": "loss (nats)"}


def drawn(fig):
    """Draws a figure and returns its axes."""
    fig.draw_without_rendering()
    return fig.axes[0]


def tick_labels(axis):
    """Returns the tick labels within the view, those that are drawn."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1.get_text()
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]


def texts_outside(fig):
    """Returns the texts that do not lie wholly within the figure."""
    fig.draw_without_rendering()
    hidden = {
        tick.label1
        for axes in fig.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    outside = []
    for text in fig.findobj(matplotlib.text.Text):
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
        if text.get_visible() and text.get_text() and text not in hidden and not inside:
            outside.append(text.get_text())
    return outside


def test_a_saved_figure_is_a_png_of_report_width(tmp_path):
    from PIL import Image

    path = figures.save(figures.lines({"a": (STEPS, STEPS)}, **LABELS), tmp_path / "f" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert Image.open(path).size == (round(WIDTH * DPI), 4 * DPI)


def test_a_figure_drawn_again_is_the_same_file(tmp_path):
    paths = [
        figures.save(figures.bars({"a": 1.0}, xlabel="x"), tmp_path / f"{i}.png") for i in "ab"
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_only_png_paths_are_taken(tmp_path):
    with pytest.raises(UsageError, match="does not end in .png"):
        figures.save(figures.bars({"a": 1.0}, xlabel="x"), tmp_path / "a.pdf")


def test_a_save_that_fails_leaves_the_old_picture(tmp_path, monkeypatch):
    path = figures.save(figures.bars({"a": 1.0}, xlabel="x"), tmp_path / "a.png")
    before = path.read_bytes()

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save(figures.bars({"a": 2.0}, xlabel="x"), path)
    assert path.read_bytes() == before


def test_drawing_leaves_the_settings_and_backend_of_matplotlib_alone(tmp_path):
    program = """
import sys
import matplotlib
from jaxlab.results import figures
def settings():
    return {name: repr(dict.__getitem__(matplotlib.rcParams, name)) for name in matplotlib.rcParams}
matplotlib.rcParams["lines.linewidth"] = 7.5
before = settings()
figures.save(figures.lines({"a": ([1, 2], [1, 2])}, xlabel="x", ylabel="y"), sys.argv[1])
changed = {name: value for name, value in settings().items() if value != before[name]}
assert not changed, changed
assert "matplotlib.pyplot" not in sys.modules
"""
    path = tmp_path / "a.png"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    assert path.exists()


def test_the_settings_of_the_user_do_not_reach_our_figures(tmp_path):
    def picture():
        fig = figures.lines({"a": (STEPS, STEPS), "b": (STEPS, -STEPS)}, **LABELS)
        return figures.save(fig, tmp_path / "a.png").read_bytes()

    before = picture()
    theirs = {"lines.linewidth": 9, "axes.facecolor": "black", "savefig.facecolor": "red",
              "font.size": 30, "path.simplify": False, "axes.unicode_minus": False}  # fmt: skip
    with matplotlib.rc_context(theirs):
        assert picture() == before


def test_threads_that_draw_at_once_leave_the_settings_alone():
    before = repr(dict(matplotlib.rcParams))
    threads = [
        threading.Thread(target=figures.bars, args=({"a": 1.0},), kwargs={"xlabel": "x"})
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repr(dict(matplotlib.rcParams)) == before


def test_colours_follow_the_order_and_repeat_with_other_dashes():
    fig = figures.lines({str(i): (STEPS, i * STEPS) for i in range(9)}, **LABELS)
    curves = fig.axes[0].get_lines()
    assert [curve.get_color() for curve in curves[:7]] == list(PALETTE)
    looks = {(curve.get_color(), curve.get_linestyle()) for curve in curves}
    assert len(looks) == 9


def test_log2_ticks_are_plain_powers_of_two():
    ax = drawn(figures.lines({"a": (POSITIONS, POSITIONS)}, xscale="log2", **LABELS))
    assert tick_labels(ax.xaxis) == ["128", "256", "512", "1,024", "2,048", "4,096", "8,192"]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1e5, 1e9], ["100,000", "1M", "10M", "100M", "1B"]),
        ([0.001, 10], ["0.001", "0.01", "0.1", "1", "10"]),
        ([3, 70], ["5", "10", "20", "50"]),
        ([1.2, 3.4], ["1.5", "2", "2.5", "3"]),
    ],
)
def test_log_ticks_are_plain_numbers(x, expected):
    ax = drawn(figures.lines({"a": (x, x)}, xscale="log", **LABELS))
    assert tick_labels(ax.xaxis) == expected


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (6e-5, ["0.00000", "0.00003", "0.00006"]),
        (1, ["0.0", "0.5", "1.0"]),
        (4000, ["0", "2,000", "4,000"]),
        (5e6, ["0", "2.5M", "5M"]),
    ],
)
def test_linear_ticks_are_plain_numbers(top, expected):
    fig = figures.lines({"a": ([0, top], [0, 1])}, **LABELS)
    fig.axes[0].set_xticks([0, top / 2, top])
    assert tick_labels(drawn(fig).xaxis) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b"),
        [f"a rather long name, number {i}" for i in range(8)],
        ("n" * 60, "said in many words " * 6),
    ],
)
def test_the_legend_lies_above_the_data_and_inside_the_figure(names):
    series = {name: (STEPS, STEPS) for name in names}
    fig = figures.lines(series, title="A title of the figure", **LABELS)
    ax = drawn(fig)
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1
    assert texts_outside(fig) == []


def test_long_names_of_bars_and_cells_are_not_cut():
    name = "a sliding window of five layers, trained with the same budget"
    assert texts_outside(figures.bars({name: 2.0, "b": (1.0, 0.5, 1.5)}, xlabel="bits")) == []
    assert texts_outside(figures.bars({name: -2.0, "b": (1.0, 0.5, 1.5)}, xlabel="bits")) == []
    fig = figures.heatmap(
        np.eye(3), xlabel="x", ylabel="y", label="v", xticks=[name] * 3, yticks=[name] * 3
    )
    assert texts_outside(fig) == []


def test_bars_reach_their_values_and_say_them():
    ax = drawn(figures.bars({"a": -0.5, "b": (1.25, 1.0, 1.5), "c": float("nan")}, xlabel="x"))
    assert [bar.get_width() for bar in ax.patches] == [-0.5, 1.25, 0]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["\u22120.500", "1.250", "n/a"]
    low, high = ax.get_xlim()
    assert low < -0.5 and high > 1.5


def test_bands_and_gaps_are_drawn():
    y = np.where(STEPS == 3, np.nan, STEPS)
    ax = drawn(figures.lines({"a": (STEPS, y, y - 1, y + 1)}, **LABELS))
    assert len(ax.collections) == 1
    assert ax.get_legend() is None


def test_a_centred_heatmap_reaches_equally_far_both_ways():
    fig = figures.heatmap([[-1.0, 3.0]], xlabel="x", ylabel="y", label="v", center=0)
    assert fig.axes[0].images[0].get_clim() == (-3, 3)


def test_a_small_heatmap_has_its_values_written_in_and_a_large_one_has_not():
    small = figures.heatmap([[0.5, np.nan]], xlabel="x", ylabel="y", label="v")
    assert [text.get_text() for text in small.axes[0].texts] == ["0.500"]
    large = figures.heatmap(np.eye(30), xlabel="x", ylabel="y", label="v")
    assert len(large.axes[0].texts) == 0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.lines({}, **LABELS), "nothing to draw"),
        (lambda: figures.lines({"a": ([1, 2], [1])}, **LABELS), "curve 'a' has 2 arrays"),
        (lambda: figures.lines({"a": ([1], [1])}, xscale="log3", **LABELS), "did you mean 'log"),
        (lambda: figures.bars({"a": (1.0, 2.0, 3.0)}, xlabel="x"), "low <= value <= high"),
        (lambda: figures.heatmap([1], xlabel="x", ylabel="y", label="v"), r"of shape \(1,\)"),
        (
            lambda: figures.heatmap([[1]], xlabel="x", ylabel="y", label="v", xticks=["a", "b"]),
            "2 names for 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(draw, message):
    with pytest.raises(UsageError, match=message):
        draw()
