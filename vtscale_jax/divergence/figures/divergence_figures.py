"""Figures of the divergence: E[D(n)] against the bounds of both versions of the paper.

What is fitted stands in the result file (`Result.fits`); the figures fit nothing.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vtscale_jax.divergence.figures.panels import (
    EMPTY,
    POSITIONS,
    draw_mean,
    draw_values,
    end_of_view,
    finish_panel,
    panel_title,
    panels,
    show_positions,
)
from vtscale_jax.divergence.first_version import delta_bound
from vtscale_jax.divergence.result import LEAST_COUNT, Result
from vtscale_jax.divergence.summary import spread_of
from vtscale_jax.divergence.theory import n_balance
from vtscale_jax.report.drawing import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    INK,
    PURPLE,
    RED,
    SKY,
    STEPS,
    Look,
    finish,
    log_axis,
    look,
    new_figure,
    note,
    shared_legend,
    styled_legend,
)

_MEASURED = "$E[D(n)]$, 95 % band"
_MEAN = Look(BLUE)
_BOUND = Look(RED, "--")
_POWER = Look(INK, ":", 0.9)
_FIRST = Look(PURPLE, "--")
_DELTA = r"$\psi_\Delta(n)$"


def draw_divergence(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """Fig. 5: E[D(n)] with the 95 % bootstrap band of the mean and ±σ and ±2σ over
    pairs, against λ√Υ(n) and the power law c·n^a; below, how many pairs reach n."""
    figure, stacks = panels(len(results), ratios=(4.0, 1.0), height=2.6)
    for place, (result, (above, below)) in enumerate(zip(results, stacks, strict=True)):
        _draw_spread_of_pairs(above, result, least)
        draw_mean(above, result, "D", _MEAN, label=_MEASURED, least=least)
        _draw_bound(above, result, least)
        _draw_counts(below, result, least)
        _finish_divergence(above, below, result, (place, len(results)), least)
    shared_legend(figure, figure.axes, columns=5)
    return figure


def draw_first_divergence(
    results: Sequence[Result], *, least: int = LEAST_COUNT
) -> Figure:
    """v1's Fig. 4: E[D(n)] against σ·√(n + (n² − n)ψ_Δ(n)); below, the counts."""
    figure, stacks = panels(len(results), ratios=(4.0, 1.0), height=2.6)
    for place, (result, (above, below)) in enumerate(zip(results, stacks, strict=True)):
        _draw_spread_of_pairs(above, result, least)
        draw_mean(above, result, "D", _MEAN, label=_MEASURED, least=least)
        _draw_first_bound(above, result, least)
        _draw_counts(below, result, least)
        _finish_divergence(above, below, result, (place, len(results)), least)
    shared_legend(figure, figure.axes, columns=5)
    return figure


def draw_delta(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """v1's Fig. 3: ψ_Δ(n), the mean cosine of differences, with both thresholds."""
    figure, stacks = panels(len(results))
    for place, (result, (ax,)) in enumerate(zip(results, stacks, strict=True)):
        draw_mean(ax, result, "psi_delta", _MEAN, label=_DELTA, least=least)
        _draw_thresholds(ax, result, least)
        title = panel_title(result)
        finish_panel(ax, place, len(results), x=POSITIONS, y=_DELTA, title=title)
        show_positions(ax, result, least)
    shared_legend(figure, figure.axes)
    return figure


def draw_balance(results: Sequence[Result], *, least: int = LEAST_COUNT) -> Figure:
    """n_balance(n) = (1 − ψ_equal)/(ψ_cross − ψ_cross^AB) − 1 against n, all results.

    Above the diagonal n < n_balance and the bound grows like √n; below it like n. Where
    ψ_cross ≤ ψ_cross^AB there is no balance point: a bar at the top stands there.
    """
    figure = new_figure(COLUMN, 2.9 + 0.14 * len(results))
    ax = figure.subplots()
    longest = max(end_of_view(result.counts, least) for result in results)
    for i, result in enumerate(results):
        values = balance_curve(result)
        style = look(i)
        shown = np.where(values > 0, values, np.nan)
        draw_values(ax, result, shown, style, label=panel_title(result), least=least)
        _draw_unbalanced(ax, result, values, style, 0.98 - 0.025 * i, least)
    n = np.array([1.0, max(2.0, float(longest))])
    ax.plot(n, n, color=GREY, linewidth=1.0, label="_diagonal")
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.set_xlim(1, n[1])
    finish(ax, x=POSITIONS, y=r"$n_\mathrm{balance}(n)$", empty=EMPTY)
    # Names are text: no label of this legend may be read as markup.
    note(ax, r"sublinear: $\sqrt{n}$", 0.03, 0.60, ha="left", va="center")
    note(ax, r"linear: $n$", 0.97, 0.04, ha="right", va="bottom")
    shared_legend(figure, [ax], columns=1, math=False)
    return figure


def balance_curve(result: Result) -> Float[np.ndarray, " N"]:
    """n_balance(n) of a result, with the symmetric estimate within a branch."""
    return n_balance(
        result.curve("psi_equal").mean,
        result.curve("psi_cross_symmetric").mean,
        result.curve("psi_cross_ab").mean,
    )


def root_spread(result: Result) -> Float[np.ndarray, " N"]:
    """√Υ(n) of a result, of the symmetric estimate; NaN where Υ < 0: no bound."""
    upsilon = spread_of({name: band.mean for name, band in result.curves.items()})
    return np.sqrt(np.where(upsilon >= 0, upsilon, np.nan))


def _draw_spread_of_pairs(ax: Axes, result: Result, least: int) -> None:
    """±2σ and ±σ over pairs, as far as D is drawn; none below 0."""
    end = end_of_view(result.counts, least)
    band = result.curve("D")
    n = np.arange(1, end + 1)
    for times, color, alpha in ((2, SKY, 0.18), (1, SKY, 0.35)):
        low = np.maximum(band.mean - times * band.sd, 0)[:end]
        high = (band.mean + times * band.sd)[:end]
        label = r"$\pm\sigma$ over pairs" if times == 1 else r"$\pm2\sigma$"
        shade = {"color": color, "alpha": alpha, "linewidth": 0}
        ax.fill_between(n, low, high, label=label, **shade)


def _draw_bound(ax: Axes, result: Result, least: int) -> None:
    fitted = result.fits.get("symmetric", {})
    handles = []
    root = root_spread(result)
    scale, exponent = fitted.get("lambda"), fitted.get("power_exponent")
    if scale is not None:
        label = r"$\lambda\sqrt{\Upsilon(n)}$"
        draw_values(ax, result, scale * root, _BOUND, label=label, least=least)
        handles.append(_handle(_BOUND, rf"$\lambda={scale:.3g}$"))
    if exponent is not None:
        n = np.arange(1, result.num_positions + 1)
        values = fitted["power_scale"] * n**exponent
        draw_values(ax, result, values, _POWER, label=r"$c\,n^a$", least=least)
        handles.append(_handle(_POWER, rf"$a={exponent:.2f}$"))
    if handles:
        styled_legend(ax, handles)
    measured = (result.counts >= least) & np.isfinite(result.curve("D").mean)
    ended = measured & np.isnan(root)
    if ended.any():
        first = int(np.flatnonzero(ended)[0]) + 1
        words = rf"no bound at $n={first}$: $\Upsilon<0$"
        note(ax, words, 0.97, 0.04, ha="right", va="bottom")


def _draw_first_bound(ax: Axes, result: Result, least: int) -> None:
    sigma = result.fits.get("v1", {}).get("sigma")
    if sigma is None:
        return
    values = delta_bound(result.curve("psi_delta").mean, sigma=sigma)
    label = r"$\sigma\sqrt{n+(n^2-n)\,\psi_\Delta(n)}$"
    draw_values(ax, result, values, _FIRST, label=label, least=least)
    styled_legend(ax, [_handle(_FIRST, rf"$\sigma={sigma:.3g}$")])


def _draw_counts(ax: Axes, result: Result, least: int) -> None:
    end = end_of_view(result.counts, least)
    n = np.arange(1, end + 1)
    ax.fill_between(n, 0, result.counts[:end], color=GREY, alpha=0.35, linewidth=0)
    ax.plot(n, result.counts[:end], color=GREY, linewidth=0.8, label="_counts")
    ax.axhline(least, color=INK, linestyle=":", linewidth=0.6)
    ax.set_ylim(0, 1.1 * max(1, int(result.counts.max(initial=1))))


def _finish_divergence(
    above: Axes, below: Axes, result: Result, grid: tuple[int, int], least: int
) -> None:
    finish_panel(above, *grid, y="divergence $D(n)$", title=panel_title(result))
    finish_panel(below, *grid, x=POSITIONS, y="pairs")
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True, steps=STEPS))
    show_positions(below, result, least)
    # Room for the legend: the curves rise from left to right.
    above.set_ylim(0, above.get_ylim()[1] * 1.15)


def _draw_thresholds(ax: Axes, result: Result, least: int) -> None:
    """Threshold 1 (the bound is nearly its linear part) for each ratio and 2 (ψ_Δ has
    settled), where in view; of one beyond it, or never reached, a note says so."""
    fitted = result.fits.get("v1")
    if fitted is None:
        return
    end = end_of_view(result.counts, least)
    found = [
        (f"$r={level:g}$", n, RED, dashes)
        for level, n, dashes in zip(
            fitted["ratio_levels"], fitted["ratio_n"], ("--", "-."), strict=False
        )
    ]
    level = rf"$|\psi_\Delta'|\leq{fitted['gradient_level']:g}$"
    found.append((level, fitted["gradient_n"], GREEN, ":"))
    outside = []
    for label, n, color, dashes in found:
        if n is None:
            outside.append(f"{label}: never")
        elif n > end:
            outside.append(f"{label}: $n$ = {float(f'{n:.3g}'):,.0f}")
        else:
            ax.axvline(n, color=color, linestyle=dashes, linewidth=1.0, label=label)
    if outside and ax.has_data():
        bottom, top = ax.get_ylim()
        # Room above the curve.
        ax.set_ylim(bottom, top + (top - bottom) * 0.12 * len(outside))
        note(ax, "\n".join(outside), 0.97, 0.96, ha="right", va="top")


def _draw_unbalanced(
    ax: Axes,
    result: Result,
    values: Float[np.ndarray, " N"],
    style: Look,
    height: float,
    least: int,
) -> None:
    """A bar at the top of the panel where the difference of ψ is 0 or less."""
    end = end_of_view(result.counts, least)
    n = np.arange(1, end + 1)
    none = (np.isinf(values) | (values < -1))[:end]
    ax.plot(
        n,
        np.where(none, height, np.nan),
        color=style.color,
        linewidth=2.0,
        solid_capstyle="butt",
        transform=ax.get_xaxis_transform(),
        label=f"_no balance: {result.name}",
    )


def _handle(style: Look, label: str) -> Line2D:
    line = {"color": style.color, "linestyle": style.dashes, "linewidth": style.width}
    return Line2D([], [], label=label, **line)
