"""Figures of what was measured: the dependence of hidden states on each other.

Each takes results and gives one panel to each of them. Lines and bands are the curves
of the result files, unchanged; light parts are those that few pairs reach.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtscale_jax.divergence.figures.panels import (
    POSITIONS,
    draw_mean,
    draw_values,
    finish_panel,
    panel_title,
    panels,
    show_positions,
)
from vtscale_jax.divergence.result import LEAST_COUNT, Result
from vtscale_jax.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    Look,
    shared_legend,
)

_LOOKS = {
    "psi_cross_aa": (r"$\psi_\mathrm{cross}^{AA}$", Look(BLUE, "--")),
    "psi_cross_bb": (r"$\psi_\mathrm{cross}^{BB}$", Look(ORANGE, "-.")),
    "psi_cross_symmetric": (
        r"$\psi_\mathrm{cross}=\frac{1}{2}(\psi_\mathrm{cross}^{AA}"
        r"+\psi_\mathrm{cross}^{BB})$",
        Look(INK),
    ),
    "psi_equal": (r"$\psi_\mathrm{equal}$", Look(GREEN, "-.")),
    "psi_cross_ab": (r"$\psi_\mathrm{cross}^{AB}$", Look(RED, "--")),
    "psi_excess": (r"$\psi_\mathrm{cross}-\psi_\mathrm{cross}^{AB}$", Look(PURPLE)),
}
_NULL = Look(GREY, ":")
_HISTOGRAMS = {
    "equal": (r"$\cos\theta_i^{AB}$", Look(GREEN)),
    "cross_aa": (r"$\cos\theta_{ij}^{AA}$", Look(BLUE, "--")),
    "cross_bb": (r"$\cos\theta_{ij}^{BB}$", Look(ORANGE, "-.")),
    "cross_ab": (r"$\cos\theta_{ij}^{AB}$", Look(RED, ":")),
}


def draw_within(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """Fig. 3: ψ_cross^AA(n), ψ_cross^BB(n) and their mean, with 95 % bands."""
    names = ("psi_cross_aa", "psi_cross_bb", "psi_cross_symmetric")
    return _draw_curves(results, names, r"$\psi_\mathrm{cross}(n)$", least)


def draw_measures(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """Fig. 4: the three measures ψ_cross, ψ_equal and ψ_cross^AB, with 95 % bands."""
    names = ("psi_cross_symmetric", "psi_equal", "psi_cross_ab")
    return _draw_curves(results, names, r"$\psi(n)$", least)


def draw_excess(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """Fig. 14: ψ_cross within a branch against ψ_cross^AB between them; below, their
    difference and, where it was measured, that of the null measurement."""
    figure, stacks = panels(len(results), ratios=(3.0, 2.0), height=2.4)
    for place, (result, (above, below)) in enumerate(zip(results, stacks, strict=True)):
        grid = (place, len(results))
        for name in ("psi_cross_symmetric", "psi_cross_ab"):
            _draw(above, result, name, least)
        _draw(below, result, "psi_excess", least)
        _draw_null(below, result, least)
        below.axhline(0, color=INK, linewidth=0.6)
        finish_panel(above, *grid, y=r"$\psi(n)$", title=panel_title(result))
        finish_panel(below, *grid, x=POSITIONS, y="difference")
        show_positions(below, result, least)
    shared_legend(figure, figure.axes)
    return figure


def draw_histograms(results: Sequence[Result]) -> Figure:
    """Fig. 15: densities of the cosines: equal positions, within A, within B, between.

    The area under each curve is 1. A kind of which there is no cosine is left out.
    """
    figure, stacks = panels(len(results))
    for place, (result, (ax,)) in enumerate(zip(results, stacks, strict=True)):
        widths = np.diff(result.edges)
        seen = np.zeros(len(widths), bool)
        for name, (label, style) in _HISTOGRAMS.items():
            counts = result.histograms[name]
            if not counts.sum():
                continue
            seen |= counts > 0
            ax.stairs(
                counts / (counts.sum() * widths),
                result.edges,
                color=style.color,
                linestyle=style.dashes,
                linewidth=style.width,
                label=label,
            )
        if seen.any():
            first, last = np.flatnonzero(seen)[[0, -1]]
            left, right = float(result.edges[first]), float(result.edges[last + 1])
            ax.set_xlim(max(-1.02, left - 0.05), min(1.02, right + 0.05))
            ax.set_ylim(bottom=0)
            ax.axvline(0, color=GREY, linewidth=0.6)
        title = panel_title(result)
        finish_panel(
            ax, place, len(results), x="cosine", y="probability density", title=title
        )
    shared_legend(figure, figure.axes)
    return figure


def _draw_curves(
    results: Sequence[Result], names: Sequence[str], y: str, least: int
) -> Figure:
    figure, stacks = panels(len(results))
    for place, (result, (ax,)) in enumerate(zip(results, stacks, strict=True)):
        for name in names:
            _draw(ax, result, name, least)
        title = panel_title(result)
        finish_panel(ax, place, len(results), x=POSITIONS, y=y, title=title)
        show_positions(ax, result, least)
    shared_legend(figure, figure.axes)
    return figure


def _draw(ax: Axes, result: Result, name: str, least: int) -> None:
    label, style = _LOOKS[name]
    draw_mean(ax, result, name, style, label=label, least=least)


def _draw_null(ax: Axes, result: Result, least: int) -> None:
    """The difference that is left when A and B are exchanged at random positions."""
    if result.null is None:
        return
    # A JSON file has None for NaN.
    mean, low, high = (
        np.array(result.null[name], np.float64) for name in ("mean", "low", "high")
    )
    label = "exchanged at random"
    draw_values(ax, result, mean, _NULL, label=label, band=(low, high), least=least)
