"""The figures of a run, drawn from its rows and scores.

matplotlib's object interface only: no pyplot, so no figure registry and no display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from vtscale_jax.report.run_files import Evaluation, Run, Score

# Okabe and Ito's palette: told apart in all common forms of colour blindness. Series
# also differ in marker, line style or hatch, for print in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#B4B8BF", "#24292F"
_FAMILY_STYLES = (
    (BLUE, "o"),
    (RED, "s"),
    (GREEN, "^"),
    (ORANGE, "D"),
    (PURPLE, "v"),
    (SKY, "P"),
    (INK, "X"),
)


def write_plots(run: Run) -> dict[str, Path]:
    """Draws what the run's files allow into `plots/`, each as PNG and SVG.

    Returns the SVG path of each figure drawn: "curves" when `metrics.jsonl` has rows,
    "families" when `evaluation.json` has families.
    """
    figures = {}
    if run.metrics:
        figures["curves"] = draw_curves(run.metrics)
    if run.evaluation is not None and run.evaluation.families:
        figures["families"] = draw_families(run.evaluation)
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        # A fixed salt and no date: the same files give the same bytes.
        with matplotlib.rc_context({"svg.hashsalt": "vtscale_jax"}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return {name: folder / f"{name}.svg" for name in figures}


def draw_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Loss, held-out accuracy, learning rate and samples/s over the steps.

    `rows` are those of `metrics.jsonl`, in any order of splits. The accuracy panel is
    there only when a row has an accuracy.
    """
    accuracies = _accuracy_names(rows)
    panels = [_draw_loss, _draw_learning_rate, _draw_speed]
    if accuracies:
        panels.insert(1, _draw_accuracies)
    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)
    figure = Figure(figsize=(9.6, 6.4), layout=layout, facecolor="white")
    if accuracies:
        axes = figure.subplots(2, 2, sharex=True).flat
    else:
        axes = figure.subplot_mosaic([["a", "a"], ["b", "c"]], sharex=True).values()
    for draw, ax in zip(panels, axes, strict=True):
        draw(ax, rows)
        _finish(ax)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.tick_params(labelbottom=True)
    return figure


def draw_families(evaluation: Evaluation) -> Figure:
    """Accuracy of each family with its interval, beside that with a blank page."""
    families = evaluation.families
    figure = Figure(
        figsize=(max(5.6, 1.5 * len(families) + 1.2), 4.6),
        layout="constrained",
        facecolor="white",
    )
    ax = figure.subplots()
    width = 0.38
    for i, family in enumerate(families):
        _draw_bar(
            ax,
            i - width / 2,
            width,
            family.score,
            color=BLUE,
            label="with the page",
        )
        if family.blank is not None:
            _draw_bar(
                ax,
                i + width / 2,
                width,
                family.blank,
                color="white",
                edgecolor=INK,
                hatch="///",
                linewidth=0.8,
                label="with a blank page",
            )
    ax.set_xticks(range(len(families)), [family.name for family in families])
    ax.set_xlim(-0.6, len(families) - 0.4)
    ax.set_ylim(0, 1.12)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylabel("accuracy")
    ax.set_title(
        f"Accuracy by family of questions, M = {evaluation.num_queries}, step "
        f"{evaluation.step:,} (lines: 95 % intervals)"
    )
    _finish(ax)
    ax.grid(visible=False, axis="x")
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # one entry for each kind of bar
    figure.legend(
        once.values(), once.keys(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure


def _draw_bar(ax: Axes, x: float, width: float, score: Score, **style: Any) -> None:
    ax.bar(x, score.accuracy, width * 0.94, **style)
    ax.errorbar(
        x,
        score.accuracy,
        # Clipped: a rounded file may put an end a hair on the wrong side.
        [
            [max(0.0, score.accuracy - score.low)],
            [max(0.0, score.high - score.accuracy)],
        ],
        color=INK,
        capsize=3,
        linewidth=1.2,
    )
    ax.annotate(
        f"{100 * score.accuracy:.1f}",
        (x, max(score.high, score.accuracy)),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color=INK,
    )


def _draw_loss(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    steps, values = _series(rows, "train", "loss")
    window = len(values) // 25 | 1  # Odd, so that the mean has a middle row.
    if window >= 5:
        ax.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8)
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        label = f"train (mean of {window} rows)"
        half = window // 2
        ax.plot(steps[half:-half], mean, color=BLUE, label=label)
    elif len(values):
        ax.plot(steps, values, color=BLUE, marker=".", label="train")
    heldout = _series(rows, "heldout", "loss")
    if len(heldout[0]):
        ax.plot(*heldout, color=RED, marker="o", linestyle="--", label="held-out")
    for step, num_queries in _phases(rows):
        ax.axvline(step, color="grey", linestyle=":", linewidth=1)
        label = f" M = {num_queries}"
        # At the foot of the panel: the legend has the top.
        ax.annotate(label, (step, 0.03), xycoords=("data", "axes fraction"), size=8)
    title = "loss"
    everything = np.concatenate([values, heldout[1]])
    if len(everything) and 0 < everything.min() and np.ptp(everything) > 0:
        if everything.max() > 8 * everything.min():
            _log_scale(ax)
            title = "loss (log scale)"
    _finish_legend(ax, loc="upper right")
    ax.set_title(title)


def _phases(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(first logged step, M) of each phase of a curriculum; nothing if M is constant.

    >>> _phases([{"step": 1, "num_queries": 16}, {"step": 9, "num_queries": 64}])
    [(1, 16), (9, 64)]
    """
    seen: list[tuple[int, int]] = []
    for row in rows:
        if "num_queries" in row and (not seen or seen[-1][1] != row["num_queries"]):
            seen.append((row["step"], row["num_queries"]))
    return seen if len(seen) > 1 else []


def _draw_accuracies(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for i, name in enumerate(_accuracy_names(rows)):
        color, marker = _FAMILY_STYLES[i % len(_FAMILY_STYLES)]
        label = name.removeprefix("accuracy/")
        ax.plot(
            *_series(rows, "heldout", name),
            color=color,
            marker=marker,
            markersize=4,
            label=label,
        )
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    # Beside the panel: no corner of it is sure to be free of curves.
    _finish_legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title("held-out accuracy")


def _draw_learning_rate(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ax.plot(*_series(rows, "train", "learning_rate"), color=GREEN)
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    ax.set_title("learning rate")


def _draw_speed(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ax.plot(*_series(rows, "train", "samples_per_s"), color=PURPLE)
    ax.set_ylim(bottom=0)
    _, used = _series(rows, "train", "mfu")
    share = f" (median MFU {np.median(used):.1%})" if used.size else ""
    ax.set_title(f"samples per second{share}")


def _accuracy_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of held-out accuracies, in the order in which they first come."""
    names = (name for row in rows if row["split"] == "heldout" for name in row)
    return list(dict.fromkeys(n for n in names if n.split("/")[0] == "accuracy"))


def _series(
    rows: Sequence[dict[str, Any]], split: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, both `[rows that have the value]`."""
    pairs = [
        (row["step"], row[name])
        for row in rows
        if row["split"] == split and row.get(name) is not None
    ]
    points = np.array(sorted(pairs), dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _log_scale(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _finish(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#E3E6EA", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.title.set(fontsize=11, color=INK)
    if not ax.has_data():
        ax.text(
            0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=INK
        )


def _finish_legend(ax: Axes, **place: Any) -> None:
    # Never loc="best": its search takes seconds on a busy machine, and then it warns.
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, **place)
