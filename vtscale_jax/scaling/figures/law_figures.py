"""Which law to believe: prediction beyond the fitted M, AICc, and the paper's exponent.

An extrapolation says something where it beats repeating the last score that was seen:
that line stands in every row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from vtscale_jax.report.drawing import (
    BLUE,
    GREY,
    INK,
    PAGE,
    SERIES,
    SMALL,
    finish,
    fitting,
    new_figure,
)
from vtscale_jax.scaling.figures.panels import (
    LAW_MARKERS,
    head,
    law_look,
    law_words,
    number,
)
from vtscale_jax.scaling.result import LAST_VALUE, Interval, SeriesFits

POWER, WEIGHTED = "power", "power_weighted"
_WORST = 20.0  # ΔAICc beyond which a law is out of the question; drawn at the edge
_ROW = 0.2  # inches
_DIVIDER: dict[str, Any] = {"color": BLUE, "linestyle": "--", "linewidth": 0.9}
_MARKERS = ("o", "s", "^", "D", "v", "P")


class Standing(NamedTuple):
    """How a law extrapolates: the median of its errors, in how many of the metrics it
    has one at all, and in how many it is nearer than the last value."""

    law: str
    median: float
    metrics: int
    better: int

    @property
    def words(self) -> str:
        """As the legend says it."""
        if not self.metrics:
            return f"{law_words(self.law)}: not possible"
        beaten = f"beats {LAST_VALUE} in {self.better} of {self.metrics}"
        return f"{law_words(self.law)}: median {100 * self.median:.1f} %, {beaten}"


def standings(fits: Sequence[SeriesFits]) -> tuple[Standing, ...]:
    """Every law's standing over these series, in the order of the laws."""
    found = []
    for name in dict.fromkeys(name for one in fits for name in one.fits):
        pairs = [
            (one.fits[name].extrapolation, one.last_value_extrapolation)
            for one in fits
            if name in one.fits
        ]
        known = [pair for pair in pairs if np.isfinite(pair).all()]
        errors = [own for own, _ in known]
        found.append(
            Standing(
                name,
                float(np.median(errors)) if errors else float("nan"),
                len(known),
                sum(own < last for own, last in known),
            )
        )
    return tuple(found)


def draw_model_comparison(
    fits: Sequence[SeriesFits], cut: int | None, title: str
) -> Figure:
    """Left: the mean relative error above `cut` of each law fitted up to it, against
    repeating the last value (thick bar). Right: AICc less the smallest of the row, of
    fits to all M; at 20 stands what is 20 or more.

    Rows are sorted by the power law's error as a share of the last value's: above the
    dashed line it is smaller. The law that turned out best is filled. The legend sums
    up each law over all metrics.
    """
    laws = list(dict.fromkeys(name for one in fits for name in one.fits))
    ordered = sorted(fits, key=_share_of_last)
    rows = len(ordered)
    figure = new_figure(PAGE, 1.25 + _ROW * max(rows, 3) + 0.15 * (len(laws) + 1))
    head(figure, title)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, one in enumerate(ordered):
        _draw_errors(left, one, row)
        _draw_criteria(right, one, row)
    beaten = sum(_share_of_last(one) < 1 for one in ordered)
    for ax in (left, right):
        ax.axhline(beaten - 0.5, **_DIVIDER)
    _error_axis(left, ordered)
    right.set_xlim(-0.8, _WORST + 0.8)
    right.set_xticks([0, 2, 4, 10, 20], ["0", "2", "4", "10", "≥ 20"])
    right.axvline(2, color=GREY, linewidth=0.6, linestyle=":")
    above = "above the cut" if cut is None else f"at M > {cut}, fitted to M ≤ {cut}"
    _finish_rows(left, ordered, x=f"mean error {above}")
    finish(right, x="AICc − smallest of the row (all M)", empty="no AICc")
    right.tick_params(axis="y", labelleft=False)
    _law_legend(figure, fits)
    return figure


def draw_power_exponents(
    kinds: Sequence[tuple[str, Sequence[SeriesFits]]], title: str
) -> Figure:
    """α of the power law of every metric with its 95 % interval, for each kind of
    inputs; S grows with M where α < 0. Hollow and light: not identified.

    Rows are sorted by α of the first kind. An interval that leaves the panel ends in
    an arrow.
    """
    found = {
        inputs: {one.series.metric: one for one in fits if POWER in one.fits}
        for inputs, fits in kinds
    }
    metrics = list(dict.fromkeys(name for own in found.values() for name in own))
    metrics.sort(key=lambda name: _first_exponent(found, name), reverse=True)
    step = _ROW + 0.06 * (len(found) - 1)
    figure = new_figure(PAGE, 1.0 + step * max(len(metrics), 3))
    head(figure, title)
    ax = figure.subplots()
    low, high = _exponent_limits(found)
    handles = []
    for place, (inputs, own) in enumerate(found.items()):
        color = SERIES[place % len(SERIES)]
        marker = _MARKERS[place % len(_MARKERS)]
        shift = (place - (len(found) - 1) / 2) * 0.8 / max(len(found), 2)
        for row, metric in enumerate(metrics):
            if metric in own:
                fit = own[metric].fits[POWER]
                alpha, ends = fit.estimates["alpha"], fit.interval("alpha")
                look = (color, marker, fit.identified)
                _draw_interval(ax, alpha, ends, row + shift, (low, high), look)
        handles.append(_dot(color, marker, inputs or "scores", filled=True))
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    _name_rows(ax, metrics)
    finish(ax, x="exponent α of S = c/M$^α$ (left of 0: grows with M)", empty="no fit")
    drawn_fits = [one.fits[POWER] for own in found.values() for one in own.values()]
    if not all(fit.identified for fit in drawn_fits):
        handles.append(_dot(GREY, "o", "not identified", filled=False))
    drawn = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=SMALL,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
    return figure


def _share_of_last(one: SeriesFits) -> float:
    """The power law's error as a share of that of the last value; infinite without."""
    fit, last = one.fits.get(POWER), one.last_value_extrapolation
    if fit is None or not np.isfinite([fit.extrapolation, last]).all() or last <= 0:
        return float("inf")
    return fit.extrapolation / last


def _draw_errors(ax: Axes, one: SeriesFits, row: int) -> None:
    last = one.last_value_extrapolation
    errors = {name: fit.extrapolation for name, fit in one.fits.items()}
    known = {name: e for name, e in errors.items() if np.isfinite(e) and e > 0}
    best = min(known, key=lambda name: known[name]) if known else None
    if np.isfinite(last) and last > 0:
        ends = [last, *known.values()]
        ax.plot([min(ends), max(ends)], [row, row], color="#D5D9DE", linewidth=0.8)
        ax.plot(last, row, "|", color=INK, markersize=9, markeredgewidth=2.2)
    if not known:
        words = "no extrapolation: too few M"
        ax.text(0.02, row, words, transform=ax.get_yaxis_transform(), **_words())
    for name, error in known.items():
        _draw_law(ax, name, error, row, filled=name == best)


def _draw_criteria(ax: Axes, one: SeriesFits, row: int) -> None:
    known = {n: f.aicc for n, f in one.fits.items() if np.isfinite(f.aicc)}
    if WEIGHTED in one.fits:
        # Then the paper's fit has another kind of errors: its AICc is of other data.
        known.pop(POWER, None)
    for name, value in known.items():
        worse = float(value - min(known.values()))
        _draw_law(ax, name, min(worse, _WORST), row, filled=not worse)


def _draw_law(ax: Axes, name: str, x: float, row: int, *, filled: bool) -> None:
    color = law_look(name).color
    ax.plot(
        x,
        row,
        LAW_MARKERS.get(name, "X"),
        color=color,
        markerfacecolor=color if filled else "white",
        markersize=5 if filled else 4,
        markeredgewidth=1.0,
        zorder=4 if filled else 3,
    )


def _error_axis(ax: Axes, fits: Sequence[SeriesFits]) -> None:
    """Logarithmic per cents, wide enough for all that is drawn."""
    ax.set_xscale("log")
    errors = [f.extrapolation for one in fits for f in one.fits.values()]
    errors += [one.last_value_extrapolation for one in fits]
    known = [e for e in errors if np.isfinite(e) and e > 0]
    low, high = (min(known), max(known)) if known else (0.01, 1.0)
    low, high = low / 1.4, high * 1.4
    ticks = [b * 10.0**p for p in range(-6, 7) for b in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    ax.set_xlim(low, high)
    ax.set_xticks(inside[:: max(1, -(-len(inside) // 7))])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{number(100 * x)} %"))
    ax.xaxis.set_minor_locator(NullLocator())


def _finish_rows(ax: Axes, fits: Sequence[SeriesFits], *, x: str) -> None:
    _name_rows(ax, [one.series.metric for one in fits])
    finish(ax, x=x, empty="no series")


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(
        range(len(names)), [fitting(name, 30) for name in names], parse_math=False
    )
    ax.set_ylim(len(names) - 0.5, -0.5)


def _law_legend(figure: Figure, fits: Sequence[SeriesFits]) -> None:
    bar: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9}
    bar |= {"markeredgewidth": 2.2, "color": INK, "label": _last_words(fits)}
    handles = [Line2D([], [], **bar)]
    for standing in standings(fits):
        color = law_look(standing.law).color
        marker = LAW_MARKERS.get(standing.law, "X")
        handles.append(_dot(color, marker, standing.words, filled=True))
    words = f"above: the power law beats {LAST_VALUE}"
    handles.append(Line2D([], [], label=words, **_DIVIDER))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if len(handles) > 3 else 1,
        frameon=False,
        fontsize=SMALL,
    )


def _last_words(fits: Sequence[SeriesFits]) -> str:
    errors = [one.last_value_extrapolation for one in fits]
    known = [error for error in errors if np.isfinite(error)]
    if not known:
        return f"{LAST_VALUE}: not possible"
    return f"{LAST_VALUE} repeated: median {100 * float(np.median(known)):.1f} %"


def _dot(color: str, marker: str, label: str, *, filled: bool) -> Line2D:
    face = color if filled else "white"
    look: dict[str, Any] = {"color": color, "marker": marker, "markerfacecolor": face}
    return Line2D([], [], linestyle="none", markersize=4.5, label=label, **look)


def _first_exponent(found: dict[str, dict[str, SeriesFits]], metric: str) -> float:
    for own in found.values():
        if metric in own:
            return own[metric].fits[POWER].estimates["alpha"]
    return float("nan")


def _exponent_limits(
    found: dict[str, dict[str, SeriesFits]],
) -> tuple[float, float]:
    """All exponents and 0, and of intervals what is no more than half as wide again."""
    fits = [one.fits[POWER] for own in found.values() for one in own.values()]
    alphas = np.array([0.0, *(fit.estimates["alpha"] for fit in fits)])
    alphas = alphas[np.isfinite(alphas)]
    room = max(0.05, 0.5 * float(np.ptp(alphas)))
    least, most = float(alphas.min()) - room, float(alphas.max()) + room
    ends = [fit.interval("alpha") for fit in fits]
    lows = [max(end.low, least) for end in ends if end is not None]
    highs = [min(end.high, most) for end in ends if end is not None]
    low, high = min([*lows, alphas.min()]), max([*highs, alphas.max()])
    margin = 0.03 * (high - low)
    return float(low - margin), float(high + margin)


def _draw_interval(
    ax: Axes,
    alpha: float,
    ends: Interval | None,
    row: float,
    limits: tuple[float, float],
    look: tuple[str, str, bool],
) -> None:
    color, marker, identified = look
    alpha_of_line = 1.0 if identified else 0.45
    if ends is not None:
        low, high = max(ends.low, limits[0]), min(ends.high, limits[1])
        ax.plot([low, high], [row, row], color=color, linewidth=1, alpha=alpha_of_line)
        for end, at, arrow in ((ends.low, low, "<"), (ends.high, high, ">")):
            if at != end:
                ax.plot(at, row, arrow, color=color, markersize=3.5, clip_on=False)
    face = color if identified else "white"
    ax.plot(alpha, row, marker, color=color, markerfacecolor=face, markersize=4)


def _words() -> dict[str, Any]:
    return {"fontsize": SMALL, "color": GREY, "va": "center"}
