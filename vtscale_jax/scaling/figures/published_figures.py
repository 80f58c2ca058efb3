"""Scores beside those of others: models that answer the same metrics, and methods that
drop vision tokens of a model that has all of them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from vtscale_jax.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PAGE,
    PURPLE,
    RED,
    SMALL,
    Look,
    fitting,
    look,
    new_figure,
    shared_legend,
)
from vtscale_jax.scaling.figures.panels import budget_axis, finish_panel, grid, head

_OWN_WIDTHS = (2.4, 1.8, 1.4)
_METHODS = {
    "Proposed": Look(BLUE, "-", 1.8),
    "VisPruner": Look(RED, "--"),
    "VisionZip": Look(GREEN, "-."),
}
_METHOD_MARKERS = ("o", "s", "^", "D", "v")


def shared_metrics(
    own: Mapping[int, Mapping[str, float]], models: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """Metrics that the model has at some M and another model has too."""
    others = {metric for scores in models.values() for metric in scores}
    mine = dict.fromkeys(metric for scores in own.values() for metric in scores)
    return tuple(metric for metric in mine if metric in others)


def draw_radar(
    own: Mapping[int, Mapping[str, float]],
    models: Mapping[str, Mapping[str, float]],
    title: str,
) -> Figure:
    """Fig. 17: `own` scores at each of some M (thick) against those of other models.

    A spoke is a metric, as a share of the best score drawn on it: the rim is the best
    model, the middle a score of 0. What a model lacks is a gap in its line.
    Raises ValueError when there is no metric that both have.
    """
    metrics = shared_metrics(own, models)
    if not metrics:
        raise ValueError(
            "no metric of these scores is among those of the other models "
            f"({', '.join(dict.fromkeys(m for s in models.values() for m in s))}); "
            "metrics are paired by name"
        )
    lines = [*own.values(), *models.values()]
    best = np.array(
        [max(scores[m] for scores in lines if m in scores) for m in metrics]
    )
    figure = new_figure(PAGE, 5.6 + 0.16 * ((len(models) + len(own)) // 3))
    head(figure, f"{title}. Shares of the best score on each spoke; gaps: no score")
    ax = figure.add_subplot(projection="polar")
    assert isinstance(ax, PolarAxes)
    angles = np.linspace(0, 2 * np.pi, len(metrics), endpoint=False)
    for i, (name, scores) in enumerate(models.items()):
        style = look(i)._replace(width=0.8)
        _draw_spokes(ax, angles, _shares(scores, metrics, best), style, fitting(name))
    for i, (m, scores) in enumerate(own.items()):
        color = (BLUE, INK, PURPLE)[i % 3]
        style = Look(color, "-", _OWN_WIDTHS[min(i, 2)])
        values = _shares(scores, metrics, best)
        _draw_spokes(ax, angles, values, style, f"this model, M = {m}", ours=True)
    _finish_radar(ax, angles, metrics)
    shared_legend(figure, [ax], columns=4, math=False)
    return figure


def draw_token_reduction(
    rows: Iterable[tuple[int, str, str, float]], title: str
) -> Figure:
    """Table 5: (n, method, metric, score) as scores over n, one panel for each metric
    and one line for each method."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    for n, method, metric, score in rows:
        table.setdefault(metric, {}).setdefault(method, {})[n] = score
    methods = list(dict.fromkeys(name for own in table.values() for name in own))
    figure, axes = grid(len(table), 1.4, title)
    for place, (ax, (metric, own)) in enumerate(zip(axes, table.items(), strict=True)):
        every = np.array(sorted({n for points in own.values() for n in points}))
        for name, points in own.items():
            n = sorted(points)
            index = methods.index(name)
            style = _METHODS.get(name, look(index))
            ax.plot(
                n,
                [points[one] for one in n],
                color=style.color,
                linestyle=style.dashes,
                linewidth=style.width,
                marker=_METHOD_MARKERS[index % len(_METHOD_MARKERS)],
                markersize=3,
                label=name,
            )
        budget_axis(ax, every)
        finish_panel(
            ax, place, len(table), x="vision tokens $n$", y="score", name=metric
        )
    shared_legend(figure, axes, columns=4, math=False)
    return figure


def _shares(
    scores: Mapping[str, float], metrics: Sequence[str], best: np.ndarray
) -> np.ndarray:
    """Scores as shares of the best; NaN for what is missing or has no best above 0."""
    own = np.array([scores.get(metric, np.nan) for metric in metrics], float)
    return np.divide(own, best, out=np.full(len(own), np.nan), where=best > 0)


def _draw_spokes(
    ax: Axes,
    angles: np.ndarray,
    values: np.ndarray,
    style: Look,
    label: str,
    *,
    ours: bool = False,
) -> None:
    """A closed line; where a value is missing the line is not joined across it."""
    ax.plot(
        np.append(angles, angles[0]),
        np.append(values, values[0]),
        color=style.color,
        linestyle=style.dashes,
        linewidth=style.width,
        marker="o",
        markersize=3.5 if ours else 1.8,
        alpha=1.0 if ours else 0.75,
        zorder=5 if ours else 2,
        label=label,
    )


def _finish_radar(ax: PolarAxes, angles: np.ndarray, metrics: Sequence[str]) -> None:
    ax.set_theta_offset(np.pi / 2)
    ax.set_theta_direction(-1)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0.25, 0.5, 0.75, 1.0], ["25 %", "50 %", "75 %", "100 %"])
    ax.set_rlabel_position(np.degrees(angles[1] / 2) if len(angles) > 1 else 20)
    ax.tick_params(axis="y", labelsize=SMALL, labelcolor=GREY)
    ax.set_xticks(angles, ["" for _ in metrics])
    ax.grid(color="#D5D9DE", linewidth=0.5)
    ax.spines["polar"].set(linewidth=0.6, color=GREY)
    for angle, metric in zip(angles, metrics, strict=True):
        side = np.sin(angle)
        ha = "center" if abs(side) < 0.15 else ("left" if side > 0 else "right")
        va = "center" if abs(np.cos(angle)) < 0.95 else (
            "bottom" if np.cos(angle) > 0 else "top"
        )  # fmt: skip
        ax.text(
            *(angle, 1.07, fitting(metric, 24)),
            ha=ha,
            va=va,
            fontsize=SMALL,
            color=INK,
            parse_math=False,
        )
