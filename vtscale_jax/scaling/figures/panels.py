"""What the figures of scores share: grids of panels, the axis of M, words above."""

import math

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from vtscale_jax.report.drawing import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    STEPS,
    TEXT,
    Look,
    finish,
    fitting,
    look,
    new_figure,
)
from vtscale_jax.scaling.result import Interval

BUDGETS = "vision tokens $M$"
NORMAL = 1.96  # standard errors either side of 95 %
# A law looks the same in all figures.
_LAWS = {
    "power": Look(BLUE, "-", 1.4),
    "power_weighted": Look(INK, (0, (4, 1, 1, 1))),
    "constant": Look(GREY, (0, (1, 1))),
    "logarithmic": Look(GREEN, "-."),
    "saturating": Look(RED, "--"),
    "shifted": Look(PURPLE, (0, (5, 1, 1, 1))),
    "theory": Look(ORANGE, (0, (3, 1, 1, 1, 1, 1))),
    "theory_measured": Look(SKY, ":"),
}
_LAW_WORDS = {
    "power_weighted": "power, weighted",
    "theory_measured": "theory, Υ measured",
}
LAW_MARKERS = {
    "power": "o",
    "power_weighted": "h",
    "constant": "x",
    "logarithmic": "^",
    "saturating": "s",
    "shifted": "D",
    "theory": "v",
    "theory_measured": "P",
}


def law_words(name: str) -> str:
    """A law's name as legends have it."""
    return _LAW_WORDS.get(name, name)


def law_look(name: str) -> Look:
    """Colour and dashes of a law; of one not known here, the last of the palette."""
    return _LAWS.get(name, look(6))


def num_columns(num_panels: int) -> int:
    """1 panel fills a column; 2 and 4 stand in twos; others in threes."""
    return {1: 1, 2: 2, 4: 2}.get(num_panels, 3)


def grid(
    num: int, height: float, title: str, *, legend: float = 0.45
) -> tuple[Figure, list[Axes]]:
    """A figure of `num` panels, each so many inches high with the words above it.

    `legend` is the room below for the shared legend. The title is text.
    """
    columns = num_columns(num)
    rows = math.ceil(num / columns)
    width = COLUMN if columns == 1 else PAGE
    figure = new_figure(width, height * rows + legend + 0.25)
    head(figure, title)
    cells = figure.add_gridspec(rows, columns)
    return figure, [
        figure.add_subplot(cells[divmod(place, columns)]) for place in range(num)
    ]


def head(figure: Figure, title: str) -> None:
    """The figure's own title, as text; a long one gets a second line."""
    most = 52 if figure.get_figwidth() <= COLUMN else 112
    figure.suptitle(folded(title, most, 3), fontsize=TEXT, color=INK, parse_math=False)


def finish_panel(
    ax: Axes,
    place: int,
    num: int,
    *,
    x: str = BUDGETS,
    y: str = "",
    name: str,
    words: str = "",
    empty: str = "no score",
) -> None:
    """Grid, ticks, name and words above; axis labels only on outer panels."""
    columns = num_columns(num)
    lowest, leftmost = place + columns >= num, place % columns == 0
    if ax.has_data():
        ax.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2, steps=STEPS))
        plain_numbers(ax)
    finish(ax, x=x if lowest else "", y=y if leftmost else "", empty=empty)
    above(ax, name, words)


def above(ax: Axes, name: str, words: str = "") -> None:
    """A name above a panel and, below it, lines of smaller words. Both are text."""
    num_lines = len(words.splitlines())
    ax.set_title(
        fitting(name, 34),
        loc="left",
        fontsize=TEXT,
        color=INK,
        pad=4 + 9.5 * num_lines,
        parse_math=False,
    )
    if words:
        said = ax.annotate(
            words,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=SMALL,
            color=INK,
            parse_math=False,
            annotation_clip=False,
        )
        # Its width is no reason to make the panel narrow.
        said.set_in_layout(False)


def budget_axis(ax: Axes, m: Int[np.ndarray, " K"] | Float[np.ndarray, " K"]) -> None:
    """log₂ M with at most five powers of 2 on it, and room on both sides."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    if not len(m):
        return
    low, high = math.ceil(np.log2(m.min())), math.floor(np.log2(m.max()))
    powers = range(low, high + 1, max(1, math.ceil((high - low + 1) / 5)))
    ticks = [2.0**power for power in powers] or [float(n) for n in m[:1]]
    ax.set_xticks(ticks, [f"{n:,.6g}" for n in ticks])
    ax.set_xlim(m.min() / 1.5, m.max() * 1.5)


def plain_numbers(ax: Axes) -> None:
    """No power of ten or offset beside the axis of y."""
    plain = ScalarFormatter(useOffset=False)
    plain.set_powerlimits((-5, 7))
    ax.yaxis.set_major_formatter(plain)


def folded(words: str, width: int, lines: int) -> str:
    """Words in lines of so many characters; the last line is cut where they go on.

    >>> folded("one two three four", 8, 2)
    'one two\\nthree f…'
    """
    found, rest = [], " ".join(words.split())
    while rest and len(found) < lines - 1:
        if len(rest) <= width:
            break
        cut = rest.rfind(" ", 0, width + 1)
        cut = cut if cut > 0 else width
        found.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest:
        found.append(rest if len(rest) <= width else f"{rest[: width - 1]}…")
    return "\n".join(found)


def number(value: float, digits: int = 3) -> str:
    """A number of a figure: three digits, no powers of ten below 10⁶, a minus.

    >>> number(1067.6), number(-0.05164), number(float("inf"))
    ('1,068', '−0.0516', '∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def alpha_words(alpha: float, interval: Interval | None) -> str:
    """An exponent with its interval: "α −0.052 [−0.110, −0.002]"."""
    ends = ""
    if interval is not None:
        ends = f" [{_exponent(interval.low)}, {_exponent(interval.high)}]"
    return f"α {_exponent(alpha)}{ends}"


def percent(share: float) -> str:
    """A share with its sign, in per cent: "+2.1 %"."""
    value = 100 * share
    digits = 0 if abs(value) >= 10 else 1
    return f"{value:+.{digits}f} %".replace("-", "−")


def _exponent(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else number(value)
