"""Normalised curves of all metrics, and the clusters that they fall into."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtscale_jax.report.drawing import (
    INK,
    PAGE,
    SMALL,
    Look,
    finish,
    fitting,
    look,
    new_figure,
    shared_legend,
)
from vtscale_jax.scaling.clusters import Clusters, Normalised
from vtscale_jax.scaling.figures.panels import BUDGETS, above, budget_axis, head

_SHARE = "(S − min) / (max − min)"
_MEAN = Look(INK, "-", 2.2)
_NAMES = 12  # of a cluster, in one column beside its panel
_LINE = 0.15  # inches of a name


def draw_normalised(curves: Normalised, title: str) -> Figure:
    """Fig. 18: every metric from 0, its lowest score over M, to 1, its highest, with
    the mean of all. What has no curve is named below the title."""
    rows = math.ceil(len(curves.metrics) / 3)
    figure = new_figure(PAGE, 3.15 + 0.18 * rows)
    head(figure, f"{title}{_left_out_words(curves)}")
    ax = figure.subplots()
    for i, (metric, values) in enumerate(
        zip(curves.metrics, curves.values, strict=True)
    ):
        _draw_curve(ax, curves, values, look(i), fitting(metric, 32))
    if len(curves.metrics) > 1:
        _draw_curve(ax, curves, curves.values.mean(0), _MEAN, "mean of all")
    budget_axis(ax, curves.m)
    finish(ax, x=BUDGETS, y=_SHARE, empty="no metric changes with M")
    shared_legend(figure, [ax], columns=3, math=False)
    return figure


def draw_clusters(found: Clusters, title: str) -> Figure:
    """Fig. 19: one panel for each cluster, its metrics as thin lines and its centre as
    a thick one; the names stand beside it."""
    if found.notes:
        title = f"{title} ({'; '.join(found.notes)})"
    members = [found.members(label) for label in range(found.k)]
    heights = [
        max(1.6, 0.55 + _LINE * math.ceil(len(names) / _columns(len(names))))
        for names in members
    ]
    figure = new_figure(PAGE, sum(heights) + 0.6)
    head(figure, f"{title}{_left_out_words(found.curves)}")
    axes = figure.subplots(found.k, 1, squeeze=False, height_ratios=heights)[:, 0]
    for label, (ax, names) in enumerate(zip(axes, members, strict=True)):
        own = np.flatnonzero(found.labels == label)
        for i, (place, name) in enumerate(zip(own, names, strict=True)):
            values = found.curves.values[place]
            _draw_curve(ax, found.curves, values, look(i), fitting(name, 26))
        _draw_curve(ax, found.curves, found.centres[label], _MEAN, "centre")
        budget_axis(ax, found.curves.m)
        lowest = label == found.k - 1
        finish(ax, x=BUDGETS if lowest else "", y=_SHARE)
        count = f"{len(names)} metric{'s' if len(names) > 1 else ''}"
        above(ax, f"Cluster {label + 1}: {count}")
        drawn = ax.legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            ncols=_columns(len(names)),
            frameon=False,
            fontsize=SMALL,
            labelspacing=0.3,
            handlelength=2.2,
            columnspacing=1.0,
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure


def _columns(num_names: int) -> int:
    return 1 if num_names <= _NAMES else 2


def _draw_curve(
    ax: Axes, curves: Normalised, values: np.ndarray, style: Look, label: str
) -> None:
    line = {"color": style.color, "linestyle": style.dashes, "linewidth": style.width}
    marker = "o" if style is not _MEAN else None
    ax.plot(curves.m, values, label=label, marker=marker, markersize=2, **line)


def _left_out_words(curves: Normalised) -> str:
    """What is not in the picture, and why, one line for all."""
    if not curves.left_out and not curves.notes:
        return ""
    said = [f"{one.metric} ({one.reason})" for one in curves.left_out]
    return f". Left out: {'; '.join([*said, *curves.notes])}"
