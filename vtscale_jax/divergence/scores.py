"""κ and β of S(M) = κ·(√Υ(M))^β, from a result and a table of scores (paper §3.5)."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtscale_jax.divergence import theory
from vtscale_jax.divergence.findings import number
from vtscale_jax.divergence.result import Result
from vtscale_jax.divergence.summary import scores_fit, spread_of

TIDY = ("n_l", "metric", "score")


class ScoresError(ValueError):
    """A table of scores that cannot be read, or has none of those asked for."""


def fitted(
    result: Result,
    scores: Path | None = None,
    metric: str | None = None,
    inputs: str | None = None,
) -> dict[str, Any]:
    """What the theory makes of a result (`summary.summarize`), and, under `scores`, κ
    and β of a metric where a table is given (`summary.scores_fit`).

    ScoresError names the table, the line and what was expected.
    """
    found = {"name": result.name, "kind": result.kind, **result.fits}
    if scores is None:
        return found
    means = {name: band.mean for name, band in result.curves.items()}
    upsilon = spread_of(means, "symmetric")
    chosen = read_scores(scores, metric, inputs)
    beyond = [m for m in chosen if m > result.num_positions]
    fit = scores_fit(
        upsilon, {m: s for m, s in chosen.items() if m <= result.num_positions}
    )
    return {**found, "scores": {**fit, "metric": metric, "beyond": beyond}}


def of_n(result: Result, beta: float) -> dict[str, list[float]]:
    """Υ(n), ρ(n), n_balance(n) and α(n) of a result for every n (eq. 16, §3.5), with ψ
    as measured there; NaN where they are not defined."""
    means = {name: band.mean for name, band in result.curves.items()}
    psi = [means[n] for n in ("psi_equal", "psi_cross_symmetric", "psi_cross_ab")]
    upsilon = spread_of(means, "symmetric")
    n = np.arange(1.0, result.num_positions + 1)
    curves = {
        "n": n,
        "upsilon": upsilon,
        "rho": theory.balance(n, *psi),
        "n_balance": theory.n_balance(*psi),
        "alpha": theory.exponent(upsilon, beta=beta),
    }
    return {name: values.tolist() for name, values in curves.items()}


def table(curves: Mapping[str, list[float]], beta: float) -> str:
    """Those curves at a few n, in lines for people."""
    places = [2**k for k in range(20) if 2**k < len(curves["n"])]
    heads = ("n", "Υ(n)", "ρ(n)", "n_balance(n)", f"α(n), β = {beta:g}")
    lines = ["".join(f"{head:>15}" for head in heads)]
    for place in [*places, len(curves["n"])]:
        row = [number(curve[place - 1]) for curve in curves.values()]
        lines.append("".join(f"{value:>15}" for value in row))
    return "\n".join(lines)


def read_scores(
    path: Path, metric: str | None, inputs: str | None = None
) -> dict[int, float]:
    """Score by M of one metric (and one kind of inputs), from a CSV that is tidy
    (`n_l`, `metric`, `score`) or wide (`n_l` and a column for each metric)."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScoresError(f"{path} cannot be read ({error})") from error
    columns = list(rows[0]) if rows else []
    if "n_l" not in columns:
        raise ScoresError(
            f"{path}: has columns {columns}, expected n_l, metric and score, or n_l "
            "and a column for each metric"
        )
    tidy = set(TIDY) <= set(columns)
    metrics = sorted({row["metric"] for row in rows}) if tidy else columns
    if metric not in metrics:
        raise ScoresError(f"{path}: --metric is {metric!r}, expected one of {metrics}")
    kinds = sorted({row["inputs"] for row in rows}) if "inputs" in columns else []
    if kinds and inputs not in kinds and (inputs is not None or len(kinds) > 1):
        raise ScoresError(f"{path}: --inputs is {inputs!r}, expected one of {kinds}")
    found: dict[int, float] = {}
    for line, row in enumerate(rows, start=2):
        if tidy and row["metric"] != metric:
            continue
        if kinds and inputs is not None and row["inputs"] != inputs:
            continue
        value = row["score"] if tidy else row[str(metric)]
        m = _number(path, line, "n_l", row["n_l"])
        if not m.is_integer() or m < 1:
            raise ScoresError(
                f"{path}, line {line}: n_l is {row['n_l']!r}, expected a whole number "
                "of tokens, 1 or more"
            )
        if m in found:
            raise ScoresError(
                f"{path}, line {line}: a second score of {metric} at n_l = {m:g}"
            )
        found[int(m)] = _number(path, line, str(metric), value)
    return dict(sorted(found.items()))


def describe(fit: Mapping[str, Any]) -> str:
    """κ, β and how well they fit, in lines for people."""
    lines = [
        f"{fit['metric']}: S(M) = κ(√Υ(M))^β over {fit['num_points']} M",
        f"  κ {_with(fit, 'kappa')}, β {_with(fit, 'beta')}",
        f"  standard deviation of log S about it: {number(fit['residual_sd'])}",
        "  M " + ", ".join(f"{m:,}" for m in fit["m"]),
        "  S " + ", ".join(map(number, fit["score"])),
        "  fitted " + ", ".join(map(number, fit["fitted"])),
        "  α " + ", ".join(map(number, fit["alpha"])),
    ]
    if fit["beyond"]:
        left = ", ".join(map(str, fit["beyond"]))
        lines.append(f"  left out, beyond what was measured: M = {left}")
    return "\n".join(lines)


def _with(fit: Mapping[str, Any], name: str) -> str:
    low, high = (number(end) for end in fit[f"{name}_interval"])
    return f"{number(fit[name])} ({low} to {high})"


def _number(path: Path, line: int, field: str, text: str | None) -> float:
    said = f"{path}, line {line}: {field} is {text!r}, expected a number"
    try:
        value = float(text or "")
    except ValueError as error:
        raise ScoresError(said) from error
    if not math.isfinite(value):
        raise ScoresError(said)
    return value
