"""What fusing the question adds: bars over M, one panel for each metric."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vtscale_jax.report.drawing import GREEN, INK, ORANGE, SMALL
from vtscale_jax.scaling.figures.panels import (
    BUDGETS,
    NORMAL,
    finish_panel,
    grid,
    num_columns,
    percent,
)
from vtscale_jax.scaling.gains import Gain, Gains

_GAIN, _LOSS = GREEN, ORANGE
_HATCH = "////"  # of losses, for print in grey


def draw_gains(found: Gains, title: str) -> Figure:
    """Figs. 12 and 13: S_more − S_less at each M in points of the metric, green where
    it is a gain and orange (hatched) where it is a loss.

    Above each panel stands the smallest and largest gain over M as a share of S_less.
    Bars have 95 % of their errors where these are known. Scores without a partner are
    counted in the title.
    """
    alone = sum(len(one.m) for one in found.unpaired)
    if alone:
        title += f" ({alone} score{'s' if alone > 1 else ''} without a partner)"
    num = len(found.gains)
    figure, axes = grid(num, 1.35, title, legend=0.65)
    for place, (ax, gain) in enumerate(zip(axes, found.gains, strict=True)):
        _draw_bars(ax, gain, numbered=place + num_columns(num) >= num)
        finish_panel(
            *(ax, place, num),
            x=BUDGETS,
            y="points",
            name=gain.metric,
            words=_range_words(gain),
        )
        ax.grid(visible=False, axis="x")
        # The scores of other panels may have been taken at other M.
        ax.tick_params(axis="x", labelrotation=90, length=0)
    handles = [
        Patch(color=_GAIN, label=f"gain of {found.more} over {found.less}"),
        Patch(facecolor=_LOSS, edgecolor="white", hatch=_HATCH, label="loss"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=SMALL,
    )
    return figure


def _draw_bars(ax: Axes, gain: Gain, *, numbered: bool) -> None:
    places = np.arange(len(gain.m))
    lost = gain.absolute < 0
    for part, color, hatch in ((~lost, _GAIN, None), (lost, _LOSS, _HATCH)):
        ax.bar(
            places[part],
            gain.absolute[part],
            0.8,
            color=color,
            edgecolor="white",
            linewidth=0,
            hatch=hatch,
        )
    if gain.stderr is not None:
        ax.errorbar(
            places,
            gain.absolute,
            NORMAL * gain.stderr,
            fmt="none",
            ecolor=INK,
            elinewidth=0.7,
            capsize=1.5,
            capthick=0.7,
        )
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.set_xlim(-0.6, max(len(gain.m), 3) - 0.4)
    ax.set_xticks(places, [str(m) for m in gain.m])
    ax.tick_params(labelbottom=numbered)


def _range_words(gain: Gain) -> str:
    shares = gain.relative_range
    if shares is None:
        return "no relative gain: the base is 0"
    low, high = (percent(share) for share in shares)
    return low if low == high else f"{low} to {high}"
