"""The figure of a latency measurement: parts by M, and the whole beside the paper's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from vtscale_jax.cost.latency import PARTS
from vtscale_jax.cost.rows import Row
from vtscale_jax.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    finish,
    new_figure,
    save,
    shared_legend,
)

COLORS = {
    "text": (GREY, ""),
    "views": (SKY, "///"),
    "transfer": (PURPLE, ""),
    "vision": (GREEN, ""),
    "fusion": (ORANGE, "\\\\\\"),
    "prefill": (BLUE, ""),
}
HALF = 1.13  # half the width of a bar, as a factor of M
APART = 1.7  # factor between two M whose labels do not touch
BETWEEN = "between the parts"


def draw(rows: Sequence[Row], published: Mapping[int, float], folder: Path) -> Path:
    """Writes ttft.png and ttft.svg of `make_figure`; the path of the SVG."""
    return save(make_figure(rows, published), folder, "ttft")


def make_figure(rows: Sequence[Row], published: Mapping[int, float]) -> Figure:
    """Two panels: stacked parts, and the whole beside `published` seconds by M.
    Rejected rows are left out."""
    kept = [row for row in rows if not row.rejected]
    figure = new_figure(PAGE, 2.9)
    left, right = figure.subplots(1, 2)
    _draw_parts(left, kept)
    _draw_whole(right, kept, published)
    shared_legend(figure, [left, right], math=False)
    return figure


def _draw_parts(ax: Axes, rows: Sequence[Row]) -> None:
    """Medians of the parts on each other, and what of the whole lies between them."""
    bottoms = [0.0] * len(rows)
    places = [row.num_queries for row in rows]
    lefts = [place / HALF for place in places]
    widths = [place * (HALF - 1 / HALF) for place in places]
    heights = {p: [1e3 * row.parts[p].median for row in rows] for p in PARTS}
    # Of each repetition, since medians of parts do not add up to that of the whole.
    heights[BETWEEN] = [1e3 * row.between * row.first_token.median for row in rows]
    for part, values in heights.items():
        color, hatch = COLORS.get(part, ("white", "..."))
        ax.bar(
            *(lefts, values, widths),
            bottom=bottoms,
            align="edge",
            color=color,
            hatch=hatch,
            edgecolor=INK,
            linewidth=0.4,
            label=part,
        )
        bottoms = [a + b for a, b in zip(bottoms, values, strict=True)]
    finish(
        ax,
        x="M, vision tokens",
        y="ms to the first token",
        title="By part (medians)",
        empty="every row was rejected",
    )
    if rows:
        ax.set_ylim(0, 1.06 * max(bottoms))
        _label_queries(ax, places)


def _draw_whole(ax: Axes, rows: Sequence[Row], published: Mapping[int, float]) -> None:
    """Median to 95th percentile of the whole, and the paper's points."""
    ours = [row.num_queries for row in rows]
    if rows:
        medians = [1e3 * row.first_token.median for row in rows]
        tops = [1e3 * row.first_token.p95 for row in rows]
        ax.plot(ours, medians, "o-", color=INK, ms=3, lw=1.2, label="whole, median")
        ax.fill_between(
            *(ours, medians, tops), color=INK, alpha=0.2, lw=0, label="to p95"
        )
    if published:
        theirs = sorted(published)
        ax.plot(
            *(theirs, [1e3 * published[m] for m in theirs], "D:"),
            color=RED,
            ms=3.5,
            lw=0.8,
            label="the paper's Table 6",
        )
    finish(
        ax,
        x="M, vision tokens",
        y="ms",
        title="Whole, beside the paper's",
        empty="every row was rejected",
    )
    if ours or published:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        _label_queries(ax, sorted({*ours, *published}))


def _label_queries(ax: Axes, places: Sequence[int]) -> None:
    """Every M where there is room, and the last in any case: neighbours on a
    logarithmic axis may be too near."""
    shown: list[int] = []
    for place in places:
        if not shown or place >= APART * shown[-1]:
            shown.append(place)
    if places[-1] not in shown:
        shown = [*(m for m in shown if APART * m <= places[-1]), places[-1]]
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(m) for m in shown], fontsize=SMALL)
