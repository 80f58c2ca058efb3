"""v1's Figure 10: the scaling form fitted to ψ_Δ itself, not to scores.

In the paper's first version ψ_Δ(n), the mean cosine of differences of hidden states,
is what must fall like a power of n for the theory to give one (math §6). There the law
is written S = (c'/n)^α; with S = c/n^α that is c' = c^(1/α).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtscale_jax.report.drawing import BLUE, RED, shared_legend
from vtscale_jax.scaling.figures.panels import (
    budget_axis,
    finish_panel,
    folded,
    grid,
    number,
)
from vtscale_jax.scaling.fitting import paper_power

# n and ψ_Δ(n), NaN where there is none.
Curve = tuple[Num[np.ndarray, " N"], Float[np.ndarray, " N"]]
# α nearer to 0 than this has no c' that says anything.
LEAST_ALPHA = 0.01


def draw_psi_delta(curves: Mapping[str, Curve], title: str) -> Figure:
    """(n, ψ_Δ(n)) of each measurement by its name, and c/n^α fitted to it by least
    squares of logarithms (eq. 38), one panel for each.

    A law of powers knows positive values only: how many others there are is said.
    """
    figure, axes = grid(len(curves), 1.75, title)
    for place, (ax, (name, (n, psi))) in enumerate(
        zip(axes, curves.items(), strict=True)
    ):
        words = _draw_curve(ax, np.asarray(n, float), np.asarray(psi, float))
        finish_panel(
            ax,
            place,
            len(curves),
            x="number of tokens $n$",
            y=r"$\psi_\Delta(n)$",
            name=name,
            words=words,
            empty="no value",
        )
    shared_legend(figure, axes)
    return figure


def _draw_curve(ax: Axes, n: np.ndarray, psi: np.ndarray) -> str:
    """Draws one measurement; returns what its fit is."""
    known = np.isfinite(psi)
    positive = known & (psi > 0)
    if known.any():
        ax.plot(n[known], psi[known], color=BLUE, linewidth=1.3, label="measured")
        budget_axis(ax, n[known])
    others = int((known & ~positive).sum())
    aside = f"; {others} of {int(known.sum())} not above 0" if others else ""
    if len(np.unique(n[positive])) < 2:
        return folded(f"no fit: fewer than two values above 0{aside}", 38, 2)
    c, alpha = paper_power(n[positive], psi[positive])
    line = np.geomspace(n[positive].min(), n[positive].max(), 100)
    ax.plot(
        *(line, c * line**-alpha),
        color=RED,
        linestyle="--",
        linewidth=1.3,
        label=r"$c/n^\alpha$",
    )
    words = f"c {number(c)}, α {number(alpha)}, {first_form(c, alpha)}{aside}"
    return folded(words, 38, 2)


def first_form(c: float, alpha: float) -> str:
    """c' of S = (c'/n)^α, as the first version writes the law: c^(1/α).

    >>> first_form(8.0, 0.5), first_form(8.0, 0.001)
    ("c' 64", "c' undefined (α near 0)")
    """
    if abs(alpha) < LEAST_ALPHA:
        return "c' undefined (α near 0)"
    power = np.log10(c) / alpha
    if abs(power) > 6:
        return f"c' 10^({number(power)})"
    return f"c' {number(10.0**power)}"
