"""Scores over M with the laws fitted to them: one panel for each metric.

The figures fit nothing: laws, intervals and bands are those of the analysis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtscale_jax.report.drawing import (
    INK,
    LIGHT,
    ORANGE,
    Look,
    shared_legend,
)
from vtscale_jax.scaling.figures.panels import (
    NORMAL,
    alpha_words,
    budget_axis,
    finish_panel,
    folded,
    grid,
    law_look,
    law_words,
    number,
)
from vtscale_jax.scaling.gains import standard_errors
from vtscale_jax.scaling.result import LawFit, SeriesFits
from vtscale_jax.scaling.scores import Series

POWER = "power"
_WITHOUT = Look(ORANGE, "--")
_DOT: dict[str, Any] = {"color": INK, "markersize": 3, "zorder": 4}


def draw_fits(fits: Sequence[SeriesFits], title: str) -> Figure:
    """Figs. 9 and 10: scores, the paper's power law with its 95 % band, and the law
    with the smallest AICc where that is another.

    Bars at scores are 95 % of their own errors, where these are known. A law that the
    scores do not determine is drawn lighter; above the panel stands why.
    """
    figure, axes = grid(len(fits), 1.62, title)
    for place, (ax, one) in enumerate(zip(axes, fits, strict=True)):
        series = one.series
        draw_scores(ax, series)
        budget_axis(ax, series.m)
        seen = _seen(series)
        power = one.fits.get(POWER)
        if power is not None:
            seen = np.append(seen, _draw_law(ax, one, POWER, band=True))
        if one.chosen is not None and one.chosen != POWER:
            seen = np.append(seen, _draw_law(ax, one, one.chosen))
        _limit(ax, seen)
        words = _power_words(power, one.failed.get(POWER))
        if power is not None and power.problems:
            why = f"not identified: {'; '.join(power.problems)}"
            words = f"{words}\n{folded(why, 40, 2)}"
        finish_panel(ax, place, len(fits), y="score", name=series.metric, words=words)
    shared_legend(figure, axes, columns=3)
    return figure


def draw_without(pairs: Sequence[tuple[SeriesFits, SeriesFits]], title: str) -> Figure:
    """Fig. 11: the power law of all scores of a series, and that of the same series
    without some M (hollow dots), one panel for each pair."""
    figure, axes = grid(len(pairs), 2.3, title)
    for place, (ax, (every, part)) in enumerate(zip(axes, pairs, strict=True)):
        series = every.series
        kept = np.isin(series.m, part.series.m)
        left_out = ", ".join(str(m) for m in series.m[~kept])
        draw_scores(ax, series, kept)
        budget_axis(ax, series.m)
        seen = _seen(series)
        lines = []
        for one, style, words, label in (
            (every, law_look(POWER), "all M", "power law of all M"),
            (part, _WITHOUT, f"without {left_out}", "power law without the hollow M"),
        ):
            fit = one.fits.get(POWER)
            doubt = " (not identified)" if fit is not None and fit.problems else ""
            lines.append(folded(f"{words}{doubt}:", 38, 2))
            lines.append(_power_words(fit, one.failed.get(POWER)))
            if fit is not None:
                values = fit.predict(every.grid)
                seen = np.append(seen, values)
                ax.plot(every.grid, values, label=label, **_line(style, fit))
        _limit(ax, seen)
        words = "\n".join(lines)
        finish_panel(ax, place, len(pairs), y="score", name=series.name, words=words)
    shared_legend(figure, axes, columns=3)
    return figure


def draw_scores(ax: Axes, series: Series, kept: np.ndarray | None = None) -> None:
    """Scores as dots, hollow where not `kept`, with 95 % of their errors."""
    kept = np.ones(len(series.m), bool) if kept is None else kept
    errors = standard_errors(series)
    if errors is not None:
        ax.errorbar(
            series.m,
            series.score,
            NORMAL * errors,
            fmt="none",
            ecolor=INK,
            elinewidth=0.7,
            capsize=1.5,
            capthick=0.7,
        )
    ax.plot(series.m[kept], series.score[kept], "o", label="score", **_DOT)
    if not kept.all():
        hollow: dict[str, Any] = _DOT | {"markerfacecolor": "white"}
        ax.plot(series.m[~kept], series.score[~kept], "o", label="left out", **hollow)


def _draw_law(
    ax: Axes, one: SeriesFits, name: str, *, band: bool = False
) -> np.ndarray:
    """Draws a law over the grid; returns its values there."""
    fit, style = one.fits[name], law_look(name)
    values = fit.predict(one.grid)
    label = (
        "power law (the paper's)"
        if name == POWER
        else f"{law_words(name)} (smallest AICc)"
    )
    line = _line(style, fit)
    if band and name in one.bands:
        low, high = one.bands[name]
        ax.fill_between(
            one.grid,
            low,
            high,
            color=style.color,
            alpha=0.18 if fit.identified else 0.08,
            linewidth=0,
            label="its 95 % band",
        )
    ax.plot(one.grid, values, label=label, **line)
    return values[np.isfinite(values)]


def _line(style: Look, fit: LawFit) -> dict[str, Any]:
    line = {"color": style.color, "linestyle": style.dashes, "linewidth": style.width}
    if not fit.identified:
        line |= {"linestyle": (0, (2, 2)), "alpha": 2 * LIGHT}
    return line


def _seen(series: Series) -> np.ndarray:
    """What must be in view: the scores, and their errors where these are known."""
    errors = standard_errors(series)
    if errors is None:
        return series.score
    below, above = series.score - NORMAL * errors, series.score + NORMAL * errors
    return np.concatenate([np.maximum(below, np.minimum(series.score, 0)), above])


def _limit(ax: Axes, seen: np.ndarray) -> None:
    """Limits of y from scores and lines: a band of which nothing is known is cut."""
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return
    low, high = float(seen.min()), float(seen.max())
    flat = high - low <= 1e-9 * abs(high)
    room = (0.05 * abs(high) or 1.0) if flat else 0.12 * (high - low)
    # Hardly any room below 0 for what is never negative.
    floor = -0.3 * room if low >= 0 else -np.inf
    ax.set_ylim(max(low - room, floor), high + room)


def _power_words(fit: LawFit | None, why: str | None) -> str:
    if fit is None:
        return folded(f"no power law: {why or 'not fitted'}", 40, 2)
    alpha = alpha_words(fit.estimates["alpha"], fit.interval("alpha"))
    return f"c {number(fit.estimates['c'])}, {alpha}"
