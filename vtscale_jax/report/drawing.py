"""How the figures of the ribs look: palette, sizes of a paper's columns, axes, files.

matplotlib's object interface only: no pyplot, so no figure registry and no display.
Sizes are those of print: a figure is put into a column without scaling, so that no
text is smaller than 7 pt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette: told apart in all common forms of colour blindness. Series
# also differ in line style or hatch, for print in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A9099", "#24292F"
SERIES = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

COLUMN, PAGE = 3.3, 6.8  # inches: one column of a paper, and both
SMALL, TEXT = 7, 8  # points
STEPS = (1, 2, 2.5, 5, 10)  # between numbers on an axis
LIGHT = 0.35  # opacity of what few data decide


class Look(NamedTuple):
    """Colour and dashes of a series."""

    color: str
    dashes: Any = "-"
    width: float = 1.3


def look(index: int) -> Look:
    """A look of its own for each of many series: 7 colours by 5 kinds of dashes."""
    return Look(SERIES[index % len(SERIES)], DASHES[index % len(DASHES)])


def new_figure(width: float, height: float) -> Figure:
    """A white figure of so many inches whose parts make room for each other."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def finish(
    ax: Axes,
    *,
    x: str = "",
    y: str = "",
    title: str = "",
    empty: str = "nothing to show",
) -> None:
    """Labels, grid and ticks of the house; where no data were drawn, `empty` says so.

    The title is text, never markup: a `$` in a model's name stays a `$`.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(linewidth=0.6, color=GREY)
    ax.grid(visible=True, color="#E3E6EA", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=SMALL, width=0.6, color=GREY, length=2.5)
    ax.set_xlabel(x, fontsize=TEXT, color=INK, labelpad=2)
    ax.set_ylabel(y, fontsize=TEXT, color=INK, labelpad=2)
    if title:
        ax.set_title(title, fontsize=TEXT, color=INK, pad=4, parse_math=False)
    if not ax.has_data():
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, empty, transform=ax.transAxes, ha="center", fontsize=SMALL)


def count_ticks(ax: Axes) -> None:
    """At most 5 whole numbers below the axis of n."""
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def log_axis(ax: Axes, which: str) -> None:
    """A logarithmic axis ("x" or "y") with few numbers on it: 1, 10, 100, then 10³."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_formatter(NullFormatter())


def shared_legend(
    figure: Figure, axes: Sequence[Axes], columns: int = 4, *, math: bool = True
) -> None:
    """One legend below all panels, with one entry for each label, in at most `columns`
    (2 in a figure of one column).

    `math` says whether labels are formulas; in names, a `$` is a `$`.
    """
    once: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            once.setdefault(label, handle)
    if not once:
        return
    drawn = figure.legend(
        once.values(),
        once.keys(),
        loc="outside lower center",
        ncols=min(columns if figure.get_figwidth() > COLUMN else 2, columns, len(once)),
        frameon=False,
        fontsize=SMALL,
        handlelength=2.6,
        columnspacing=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(math)


def styled_legend(ax: Axes, handles: Sequence[Any]) -> None:
    """A legend in the upper left corner of a panel, readable also over curves."""
    # Never loc="best": its search takes seconds on a busy machine, and then it warns.
    drawn = ax.legend(
        handles=list(handles),
        loc="upper left",
        fontsize=SMALL,
        framealpha=0.8,
        edgecolor="none",
        borderpad=0.2,
        handlelength=2.2,
        labelspacing=0.25,
    )
    drawn.set_zorder(5)


def note(ax: Axes, words: str, x: float, y: float, **place: Any) -> Text:
    """A few words inside a panel, at a share of its width and height."""
    ground = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
    return ax.text(
        *(x, y, words),
        transform=ax.transAxes,
        fontsize=SMALL,
        color=INK,
        bbox=ground,
        zorder=6,
        **place,
    )


def fitting(name: str, length: int = 30) -> str:
    """A name that fits above a panel: its middle gives way, since models of one family
    differ at the end. Characters that the font lacks become □.

    >>> fitting("meta-llama/Llama-3.2-11B-Vision-Instruct", 24)
    'meta-llama/…ion-Instruct'
    """
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    known = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in name
    )
    if len(known) <= length:
        return known
    head = (length - 1) // 2
    return f"{known[:head]}…{known[head + 1 - length :]}"


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Writes `name`.png (200 dpi) and `name`.svg; returns the path of the SVG.

    A fixed salt and no date: the same figure gives the same bytes.
    """
    figure.savefig(folder / f"{name}.png", dpi=200)
    figure.set_layout_engine("none")  # what the first file was laid out like
    path = folder / f"{name}.svg"
    with matplotlib.rc_context({"svg.hashsalt": "vtscale_jax"}):
        figure.savefig(path, metadata={"Date": None})
    return path
