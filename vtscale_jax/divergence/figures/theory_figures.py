"""Figures of the theory alone: how ψ shapes the bound, and the exponent it gives."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtscale_jax.divergence.theory import (
    bound_limit,
    constant_exponent,
    constant_spread,
    n_balance,
)
from vtscale_jax.report.drawing import (
    BLUE,
    COLUMN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    RED,
    SMALL,
    STEPS,
    Look,
    count_ticks,
    finish,
    log_axis,
    look,
    new_figure,
    note,
)

POSITIONS = "number of tokens $n$"
_BOUND = r"$\sqrt{\Upsilon(n)}$"
_EQUAL = r"$\psi_\mathrm{equal}$"
_EXCESS = r"$\psi_\mathrm{cross}^{AA}-\psi_\mathrm{cross}^{AB}$"
_CROSS = 0.4  # ψ_cross^AB of all examples; only its distance to ψ_cross^AA matters
_EQUALS = (0.1, 0.3, 0.5, 0.7, 0.9)
_EXCESSES = (0.1, 0.02, 0.005, 0.0, -0.005)


def draw_bound_examples() -> Figure:
    """Fig. 1: √Υ(n) of eq. 16 for constant ψ.

    Left: for several ψ_equal. Middle: for several ψ_cross^AA − ψ_cross^AB; with a
    negative one the bound ends (constraint 39), at the cross. Right: both regimes on
    logarithmic axes, √n before n_balance and n after it.
    """
    figure = new_figure(PAGE, 2.75)
    left, middle, right = figure.subplots(1, 3)
    excess, equal = 0.02, 0.5
    looks = [look(i) for i in range(len(_EQUALS))]
    for value, style in zip(_EQUALS, looks, strict=True):
        _draw_bound(left, 50, value, excess, style, f"{value:g}")
    for value, style in zip(_EXCESSES, looks, strict=True):
        label = f"{value:g}".replace("-", "−")
        _draw_bound(middle, 130, equal, value, style, label)
    finish(left, x=POSITIONS, y=_BOUND)
    finish(middle, x=POSITIONS)
    _title(left, rf"{_EXCESS} $= {excess:g}$")
    _title(middle, rf"{_EQUAL} $= {equal:g}$")
    for ax in (left, middle):
        count_ticks(ax)
        ax.set(xlim=(0, None), ylim=(0, None))
        ax.yaxis.get_major_locator().set_params(nbins=5, steps=STEPS)
    _legend_below(left, _EQUAL)
    _legend_below(middle, _EXCESS)
    _draw_regimes(right, equal, 0.005)
    return figure


def draw_exponents(
    beta: float | int, *, balances: Sequence[float] = (1.0, 10.0, 100.0, 1000.0, np.inf)
) -> Figure:
    """Fig. 2: α(n) of App. A.3 for constant ψ and several n_balance.

    Dots stand at the limit for n → 1, −(β/2)(1 + 1/(1 + n_balance)); all curves but
    that of an infinite n_balance (−β/2 throughout) tend to −β.
    """
    figure = new_figure(COLUMN, 3.0)
    ax = figure.subplots()
    n = np.geomspace(1, 1e7, 400)
    for i, middle in enumerate(balances):
        style = look(i)
        values = constant_exponent(n, n_balance=middle, beta=beta)
        label = "∞" if np.isinf(middle) else f"{middle:,.0f}"
        line = {"color": style.color, "linestyle": style.dashes, "lw": style.width}
        ax.plot(n, values, label=label, **line)
        ax.plot(n[:1], values[:1], "o", color=style.color, ms=3.5, clip_on=False)
    for value, words in ((-beta, r"$-\beta$"), (-beta / 2, r"$-\beta/2$")):
        ax.axhline(value, color=GREY, linewidth=0.6)
        ax.annotate(
            words,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    log_axis(ax, "x")
    ax.set_xlim(1, n[-1])
    finish(ax, x=POSITIONS, y=r"exponent $\alpha(n)$", title=f"β = {beta:g}")
    _legend_below(ax, r"$n_\mathrm{balance}$", columns=5)
    return figure


def _draw_bound(
    ax: Axes, longest: int, equal: float, excess: float, style: Look, label: str
) -> None:
    psi = {"psi_equal": equal, "psi_within": _CROSS + excess, "psi_cross": _CROSS}
    last = min(float(longest), float(bound_limit(**psi)))
    n = np.linspace(1, last, 300)
    # The last point of a bound that ends is 0 but for its rounding.
    values = np.sqrt(np.maximum(constant_spread(n, **psi), 0))
    line = {"color": style.color, "linestyle": style.dashes, "lw": style.width}
    ax.plot(n, values, label=label, **line)
    if last < longest:
        ax.plot(last, 0, "x", color=style.color, markersize=5, clip_on=False)


def _draw_regimes(ax: Axes, equal: float, excess: float) -> None:
    psi = {"psi_equal": equal, "psi_within": _CROSS + excess, "psi_cross": _CROSS}
    middle = float(n_balance(**psi))
    n = np.geomspace(1, 1e4, 300)
    root, linear = np.sqrt((1 - equal - excess) * n), np.sqrt(excess) * n
    lines = (
        (np.sqrt(constant_spread(n, **psi)), Look(INK), _BOUND),
        (root, Look(BLUE, "--", 1.0), r"$\propto\sqrt{n}$"),
        (linear, Look(RED, "-.", 1.0), r"$\propto n$"),
    )
    for values, style, label in lines:
        line = {"color": style.color, "linestyle": style.dashes, "lw": style.width}
        ax.plot(n, values, label=label, **line)
    ax.axvline(middle, color=ORANGE, linewidth=1.0)
    words = rf"$n_\mathrm{{balance}}={middle:.0f}$"
    note(ax, words, 0.04, 0.96, ha="left", va="top")
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.set(xlim=(1, n[-1]))
    finish(ax, x=POSITIONS)
    _title(ax, rf"{_EQUAL} $= {equal:g}$, {_EXCESS} $= {excess:g}$")
    _legend_below(ax, "both regimes")


def _title(ax: Axes, words: str) -> None:
    ax.set_title(words, fontsize=SMALL, color=INK, pad=4, parse_math=True)


def _legend_below(ax: Axes, title: str, columns: int = 3) -> None:
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL,
        handlelength=2.4,
        columnspacing=1.0,
        borderpad=0,
    )
