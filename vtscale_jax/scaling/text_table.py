"""Fits as a table of text, for a terminal."""

from collections.abc import Sequence

import numpy as np

from vtscale_jax.scaling.findings import extrapolation_means, number
from vtscale_jax.scaling.identification import symbol, told
from vtscale_jax.scaling.result import LAST_VALUE, Analysis, LawFit, SeriesFits

# What was drawn again for the interval that is shown.
OVER = {"items": "questions", "budgets": "M", "both": "M and questions", None: "–"}
HEADS = (
    *("metric", "law", "parameters (95 %)", "ΔAICc", "left out", "beyond"),
    *("interval over", ""),
)


def table(analysis: Analysis, laws: Sequence[str] | None = None) -> str:
    """One line for each metric and law (of `laws`, by default all), by inputs; "left
    out" and "beyond" are the errors of leave-one-out and of extrapolation."""
    lines = []
    for inputs in analysis.scores.inputs():
        fits = [one for one in analysis.fits if one.series.inputs == inputs]
        if lines:
            lines.append("")
        rows = [row for one in fits for row in _rows(one, laws)]
        lines += [f"inputs {inputs}"] * bool(inputs) + _columns([HEADS, *rows])
        lines += _means(fits)
    return "\n".join(lines)


def parameters(found: LawFit) -> str:
    """Every parameter with its interval: "c 0.12 (0.11 to 0.13), α −0.3 (…)"."""
    shown = []
    for name, value in found.estimates.items():
        if name == "c_prime":
            continue
        text = f"{symbol(name)} {number(value, 4)}"
        interval = found.interval(name)
        if interval is not None:
            text += f" ({number(interval.low)} to {number(interval.high)})"
        shown.append(text)
    return ", ".join(shown)


def share(value: float) -> str:
    """Per cent with one decimal; "–" for none."""
    return f"{value:.1%}" if np.isfinite(value) else "–"


def aicc_difference(one: SeriesFits, name: str) -> float:
    """AICc above that of the chosen law; NaN where they cannot be compared."""
    if one.chosen is None or (name == "power" and one.errors != "log"):
        return float("nan")
    return one.fits[name].aicc - one.fits[one.chosen].aicc


def _rows(one: SeriesFits, laws: Sequence[str] | None) -> list[tuple[str, ...]]:
    rows = []
    for name, found in one.fits.items():
        if laws is not None and name not in laws:
            continue
        rows.append(
            (
                one.series.metric,
                name,
                parameters(found),
                number(aicc_difference(one, name)),
                share(found.leave_one_out),
                share(found.extrapolation),
                OVER[found.main],
                "" if found.identified else told(found.problems),
            )
        )
    for name, why in one.failed.items():
        if laws is None or name in laws:
            rows.append((one.series.metric, name, "", *"––––", f"none: {why}"))
    last = one.last_value_leave_one_out, one.last_value_extrapolation
    rows.append((one.series.metric, LAST_VALUE, "", "–", *map(share, last), "–", ""))
    return rows


def _means(fits: Sequence[SeriesFits]) -> list[str]:
    means = extrapolation_means(fits)
    if not means:
        return []
    cuts = {one.cut for one in fits}
    cut = f"M ≤ {cuts.pop()}" if len(cuts) == 1 else "the smaller M"
    listed = ", ".join(f"{name} {error:.1%}" for name, (error, _) in means.items())
    number_of = means[LAST_VALUE][1]
    over = f" over {number_of} metrics" if number_of > 1 else ""
    return [f"fitted to {cut}, mean error beyond{over}: {listed}"]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    return [
        "  ".join(
            cell.rjust(width) if 3 <= i <= 5 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
