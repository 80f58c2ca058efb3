"""The tables of the report: rows of cells that a reader can sort."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vtscale_jax.scaling.findings import extrapolation_means, number
from vtscale_jax.scaling.gains import Gains
from vtscale_jax.scaling.result import LAST_VALUE, Analysis, Interval, SeriesFits
from vtscale_jax.scaling.text_table import OVER, aicc_difference, parameters, share
from vtscale_jax.scaling.theory_check import MEASURED, Check


class Cell(NamedTuple):
    """What a cell shows, what it is sorted by (a number as text, a word, or "" for
    none), and whether it shows a failure."""

    text: str
    value: str
    bad: bool = False


class Table(NamedTuple):
    """A table of the report; the first cell of a row is its head."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables(
    analysis: Analysis, gains: Sequence[Gains], checks: Sequence[Check]
) -> list[Table]:
    """Those that have a row, in the order of the page."""
    made = [
        *(power_law(analysis, inputs) for inputs in analysis.scores.inputs()),
        comparison(analysis),
        extrapolation(analysis),
        *(gain_table(one) for one in gains),
        check_table(checks),
        excluded(analysis),
    ]
    return [one for one in made if one.rows]


def power_law(analysis: Analysis, inputs: str) -> Table:
    """Table 1: c and α of the paper's fit, both forms."""
    rows = []
    for one in _of(analysis, inputs):
        found = one.fits.get("power")
        if found is None:
            why = one.failed.get("power", "not fitted")
            rows.append((_word(one.series.metric), *[_word("–")] * 6, _word(why, True)))
            continue
        prime = found.estimates["c_prime"]
        kind = OVER[found.main]
        rows.append(
            (
                _word(one.series.metric),
                _count(len(one.series.m)),
                _value(found.estimates["c"], found.interval("c"), digits=5),
                _value(found.estimates["alpha"], found.interval("alpha"), digits=4),
                _value(prime, None) if np.isfinite(prime) else Cell("undefined", ""),
                _word(kind),
                _share(found.rms_log),
                _word("; ".join(found.problems) or "yes", bool(found.problems)),
            )
        )
    named = f", inputs {inputs}" if inputs else ""
    return Table(
        f"power-{inputs}",
        f"The paper’s law S = c/M^α (Table 1){named}",
        "Fitted to log S by least squares, as the paper does. In brackets 95 % "
        "intervals from resampling the M, the questions where these are known and "
        "explain all that the law leaves, or both where they do not. c′ is that of "
        "the first version’s form, (c′/M)^α, which is not defined near α = 0. The "
        "error is the root mean square of log S about the law.",
        ("metric", "M", "c", "α", "c′", "interval over", "error", "identified"),
        tuple(rows),
    )


def comparison(analysis: Analysis) -> Table:
    """Every law of every metric."""
    rows = []
    for one in analysis.fits:
        for name, found in one.fits.items():
            difference = aicc_difference(one, name)
            rows.append(
                (
                    *_heads(one, analysis),
                    Cell(name, name),
                    _word(parameters(found)),
                    _value(difference, None, digits=3),
                    _share(found.rms_log),
                    _share(found.leave_one_out),
                    _word("; ".join(found.problems) or "yes", bool(found.problems)),
                )
            )
        for name, why in one.failed.items():
            rows.append(
                (
                    *_heads(one, analysis),
                    Cell(name, name),
                    *[_word("–")] * 4,
                    _word(f"not fitted: {why}", True),
                )
            )
    return Table(
        "laws",
        "Every law",
        "ΔAICc is 0 for the law that is taken; a law with 10 more is ruled out, one "
        "with 2 more is not. “Left out” is the mean relative error at each M of the "
        "law fitted to the other M. Where questions are known, power_weighted is the "
        "power law by their errors, like the other laws; power is the paper’s.",
        (
            *_columns(analysis),
            *("law", "parameters (95 %)", "ΔAICc", "error", "left out", "identified"),
        ),
        tuple(rows),
    )


def extrapolation(analysis: Analysis) -> Table:
    """What each law makes of large M from small, beside the last value."""
    laws = list(dict.fromkeys(name for one in analysis.fits for name in one.fits))
    rows = []
    for one in analysis.fits:
        if not np.isfinite(one.last_value_extrapolation):
            continue
        last = one.last_value_extrapolation
        rows.append(
            (
                *_heads(one, analysis),
                *(
                    _share(one.fits[name].extrapolation, worse_than=last)
                    if name in one.fits
                    else _word("–")
                    for name in laws
                ),
                _share(last),
            )
        )
    for inputs in analysis.scores.inputs():
        means = extrapolation_means(_of(analysis, inputs))
        if means:
            last = means[LAST_VALUE][0]
            heads = (_word(f"mean of {means[LAST_VALUE][1]}"),)
            heads += (_word(inputs),) * (len(analysis.scores.inputs()) > 1)
            rows.append(
                (
                    *heads,
                    *(
                        _share(means[name][0], worse_than=last)
                        if name in means
                        else _word("–")
                        for name in laws
                    ),
                    _share(last),
                )
            )
    cuts = sorted({one.cut for one in analysis.fits if one.cut is not None})
    cut = f"M ≤ {cuts[0]}" if len(cuts) == 1 else "the smaller M"
    return Table(
        "extrapolation",
        "Predicting large M from small",
        f"Fitted to {cut}; the mean of |predicted − score|/score over the larger M. "
        "Predictions are held to the scale of the metric. Red: worse than repeating "
        "the last value.",
        (*_columns(analysis), *laws, LAST_VALUE),
        tuple(rows),
    )


def gain_table(found: Gains) -> Table:
    """What the question in the fusion adds, by metric and M."""
    budgets = sorted({int(m) for one in found.gains for m in one.m})
    rows = []
    for one in found.gains:
        at = dict(zip(one.m.tolist(), range(len(one.m)), strict=True))
        cells = []
        for m in budgets:
            if m not in at:
                cells.append(_word("–"))
                continue
            gain = float(one.absolute[at[m]])
            text = number(gain)
            if one.stderr is not None:
                text += f" ± {number(1.96 * float(one.stderr[at[m]]), 2)}"
            cells.append(Cell(text, repr(gain), gain < 0))
        spread = one.relative_range
        ends = "–" if spread is None else " to ".join(share(v) for v in spread)
        rows.append((_word(one.metric), *cells, _word(ends)))
    return Table(
        f"gain-{found.less}",
        f"Fusing the question: {found.more} less {found.less}",
        "In points of the metric; ± 1.96 standard errors where questions are known. "
        "The last column is the range over M, relative to the score without. Red: a "
        "loss." + "".join(f" Not paired: {one.sentence}." for one in found.unpaired),
        ("metric", *(f"M = {m}" for m in budgets), "relative range"),
        tuple(rows),
    )


def check_table(checks: Sequence[Check]) -> Table:
    """The theory, with Υ as it was measured, beside laws that know nothing of it."""
    laws = list(dict.fromkeys(name for one in checks for name in one.errors))
    rows = tuple(
        (
            _word(one.metric),
            _word(one.inputs),
            _word(one.source),
            _word(", ".join(map(str, one.predicted_m))),
            _value(one.beta, None, digits=3),
            *(_share(one.errors.get(name, float("nan"))) for name in laws),
            _word(one.verdict, one.verdict == "fails"),
        )
        for one in checks
    )
    return Table(
        "theory",
        "Does the theory predict?",
        "β from the scores at small M, the rest from Υ(n) as it was measured on hidden "
        f"states ({MEASURED}); beside it what laws and the last value make of the same "
        "scores. It predicts if nothing else has a smaller error.",
        ("metric", "inputs", "Υ of", "predicted M", "β", *laws, "verdict"),
        rows,
    )


def excluded(analysis: Analysis) -> Table:
    """Scores that no law was fitted to."""
    rows = tuple(
        (
            _word(one.metric),
            _word(one.inputs),
            _count(one.n_l),
            _word(one.value),
            _word(one.reason),
            _word(one.where),
        )
        for one in analysis.scores.excluded
    )
    columns = ("metric", "inputs", "M", "score", "why", "where")
    return Table("excluded", "Left out", "", columns, rows)


def _of(analysis: Analysis, inputs: str) -> list[SeriesFits]:
    return [one for one in analysis.fits if one.series.inputs == inputs]


def _columns(analysis: Analysis) -> tuple[str, ...]:
    return ("metric", "inputs") if len(analysis.scores.inputs()) > 1 else ("metric",)


def _heads(one: SeriesFits, analysis: Analysis) -> Iterator[Cell]:
    yield _word(one.series.metric)
    if len(analysis.scores.inputs()) > 1:
        yield _word(one.series.inputs)


def _word(text: str, bad: bool = False) -> Cell:
    return Cell(text, "" if text == "–" else text, bad)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", str(value))


def _value(value: float, interval: Interval | None, digits: int = 4) -> Cell:
    text = number(value, digits)
    if interval is not None:
        text += f" ({number(interval.low)} to {number(interval.high)})"
    return Cell(text, repr(float(value)) if np.isfinite(value) else "")


def _share(value: float, worse_than: float = float("inf")) -> Cell:
    if not np.isfinite(value):
        return Cell("–", "")
    return Cell(share(value), repr(float(value)), value > worse_than)
