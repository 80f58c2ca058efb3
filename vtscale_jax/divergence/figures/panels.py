"""One panel for each result: their grid, their titles, the curves of one of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vtscale_jax.divergence.result import LEAST_COUNT, Result
from vtscale_jax.report.drawing import (
    COLUMN,
    LIGHT,
    PAGE,
    STEPS,
    Look,
    count_ticks,
    finish,
    fitting,
    new_figure,
)

POSITIONS = "number of tokens $n$"
EMPTY = "no pair is long enough"  # what stands in a panel without data


def num_columns(num_panels: int) -> int:
    """1 panel fills a column; 2 and 4 stand in twos; others in threes."""
    return {1: 1, 2: 2, 4: 2}.get(num_panels, 3)


def panels(
    num: int, *, ratios: Sequence[float] = (1.0,), height: float = 1.9
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `num` panels; each is a stack of axes of these relative heights.

    The axes of a stack share n, and only the lowest of them has its numbers. `height`
    is that of one panel, in inches.
    """
    columns = num_columns(num)
    rows = math.ceil(num / columns)
    figure = new_figure(COLUMN if columns == 1 else PAGE, height * rows + 0.45)
    grid = figure.add_gridspec(rows, columns)
    stacks = []
    for place in range(num):
        cell = grid[divmod(place, columns)]
        inner = cell.subgridspec(len(ratios), 1, height_ratios=list(ratios))
        stack: list[Axes] = []
        for row in range(len(ratios)):
            shared = stack[0] if stack else None
            stack.append(figure.add_subplot(inner[row], sharex=shared))
            stack[-1].tick_params(labelbottom=row == len(ratios) - 1)
        stacks.append(stack)
    return figure, stacks


def finish_panel(
    ax: Axes, place: int, num: int, *, x: str = "", y: str = "", title: str = ""
) -> None:
    """Finishes a panel of a grid: only outer ones have labels of x and y."""
    lowest = place + num_columns(num) >= num
    leftmost = place % num_columns(num) == 0
    if ax.has_data():
        ax.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3, steps=STEPS))
    labels = {"x": x if lowest else "", "y": y if leftmost else ""}
    finish(ax, **labels, title=title, empty=EMPTY)


def show_positions(ax: Axes, result: Result, least: int = LEAST_COUNT) -> None:
    """The axis of n, from 0 to the last n that is drawn."""
    count_ticks(ax)
    ax.set_xlim(0, end_of_view(result.counts, least) + 0.5)


def panel_title(result: Result) -> str:
    """The name as a panel shows it, with layer and reduction where they are special."""
    special = [] if result.layer == "final" else [f"block {result.layer}"]
    special += [] if result.reduction == "mean" else [result.reduction]
    words = f" ({', '.join(special)})" if special else ""
    return fitting(result.name, 32 - len(words)) + words


def end_of_view(counts: Int[np.ndarray, " N"], least: int = LEAST_COUNT) -> int:
    """The last n to draw: a third more than `least` pairs reach, so that one very long
    answer does not press all others to the margin; all n where no n has so many."""
    reached = np.flatnonzero(counts > 0)
    firm = np.flatnonzero(counts >= least)
    last = int(reached[-1]) + 1 if len(reached) else len(counts)
    return min(last, math.ceil((int(firm[-1]) + 1) * 4 / 3)) if len(firm) else last


def draw_mean(
    ax: Axes, result: Result, name: str, style: Look, *, label: str, least: int
) -> None:
    """The mean of a curve of `result` with its 95 % band, as far as it is in view."""
    band = result.curve(name)
    draw_values(
        *(ax, result, band.mean, style),
        label=label,
        band=(band.low, band.high),
        least=least,
    )


def draw_values(
    ax: Axes,
    result: Result,
    values: Float[np.ndarray, " N"],
    style: Look,
    *,
    label: str,
    least: int,
    band: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]] | None = None,
) -> None:
    """Values over n = 1…N beside the counts of `result`, as far as they are in view."""
    end = end_of_view(result.counts, least)
    draw_curve(
        *(ax, values[:end], result.counts[:end], style),
        label=label,
        band=None if band is None else (band[0][:end], band[1][:end]),
        least=least,
    )


def draw_curve(
    ax: Axes,
    values: Float[np.ndarray, " N"],
    counts: Int[np.ndarray, " N"],
    style: Look,
    *,
    label: str,
    band: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]] | None = None,
    least: int = LEAST_COUNT,
) -> Line2D:
    """A curve over n = 1…N, firm where `counts` reaches `least` and lighter below.

    What is NaN is not drawn. `band` is a lower and an upper curve, shaded. A curve of
    one point is a dot with a bar. Returns the firm line, which has the label; its data
    are NaN where it is not firm.
    """
    n = np.arange(1, len(values) + 1)
    firm = counts >= least
    # A point of the firm part begins the light one: no gap between them.
    light = (counts > 0) & (~firm | np.append(~firm[1:], False))
    for part, alpha in ((firm, 1.0), (light, LIGHT)):
        if band is not None and part.any():
            low, high = (np.where(part, edge, np.nan) for edge in band)
            shade = 0.22 * alpha
            ax.fill_between(n, low, high, color=style.color, alpha=shade, linewidth=0)
    line: dict[str, Any] = {
        "color": style.color,
        "linestyle": style.dashes,
        "linewidth": style.width,
    }
    known = np.flatnonzero(np.isfinite(values))
    if len(known) == 1:
        line |= {"marker": "o", "markersize": 3}
        if band is not None:
            low, high = (edge[known] for edge in band)
            ax.vlines(n[known], low, high, color=style.color, linewidth=style.width)
    if (light & ~firm).any():
        faint = np.where(light, values, np.nan)
        ax.plot(n, faint, **line, alpha=LIGHT, label=f"_{label}")
    return ax.plot(n, np.where(firm, values, np.nan), **line, label=label)[0]
