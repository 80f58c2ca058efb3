"""What goes under `fits` of a result file: theory and fits of one measurement.

    summarize({"D": …, "psi_equal": …, …}, counts, 31.2, replicates=bootstrap_means)

Arrays and numbers in, a dict for JSON out. None stands for what is undefined or
infinite. Intervals are 95 % percentile intervals over bootstrap replicates: each number
is computed anew from the mean curves of each resampled set of pairs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vtscale_jax.divergence import first_version, fits, theory
from vtscale_jax.divergence.result import CONFIDENCE, LEAST_COUNT, PAIR_CURVES

# The ψ_AA of eq. 16: as printed, or ½(ψ_AA + ψ_BB) as in the paper's figures.
WITHIN = ("symmetric", "aa")
# Rounded: (1 − 0.95)/2 is a last bit more than 0.025, which may be one rank.
QUANTILES = (round((1 - CONFIDENCE) / 2, 9), round((1 + CONFIDENCE) / 2, 9))
RATIO_LEVELS = (1.1, 1.01)
GRADIENT_LEVEL = 1e-3
# A number that more than this share of the replicates leaves undefined has no interval.
MAX_UNDEFINED = 0.05
# E[D] above the bound by less than this is rounding of float32.
ROUNDING = 1e-5


def summarize(
    curves: Mapping[str, Float[np.ndarray, "_"]],
    counts: Int[np.ndarray, " N"],
    largest_norm: float | int,
    *,
    replicates: Mapping[str, Float[np.ndarray, "_ _"]] | None = None,
    least_count: int = LEAST_COUNT,
) -> dict[str, Any]:
    """Theory and fits of mean curves over n = 1…N.

    `curves` and `replicates` hold means of `PAIR_CURVES` (more are not read), NaN where
    undefined; `counts` the pairs that are n long; `largest_norm` is h of eq. 14. Only n
    with `least_count` pairs or more are used. The result:

        least_count, confidence, num_replicates
        last_n                  the last n used; None if there is none
        symmetric, aa           with ½(ψ_AA + ψ_BB), and with ψ_AA, as ψ_within
            num_points          n that the fits used (those with Υ > 0)
            lambda              of λ√Υ (eq. 34)
            power_scale, power_exponent, sqrt_n_scale, n_scale
                                of c·n^a, c·√n, c·n over the same n
            relative_rmse, relative_rmse_power, relative_rmse_sqrt_n, relative_rmse_n
                                of λ√Υ and of these (`fits.relative_rmse`)
            psi_equal, psi_within, psi_cross
                                constants: means over n ≥ 2 weighted by counts
            A, B                1 − psi_equal, psi_within − psi_cross
            n_balance           A/B − 1; None when B ≤ 0
            bound_limit         n up to which constant ψ give a bound; None: all n
            lambda_constant, relative_rmse_constant
                                of λ√Υ with constant ψ, at those of the n above where
                                that Υ > 0 too, `num_points_constant` of them
            regime, regime_ranges, regime_border, regime_sentence
                                of constant ψ (`theory.regime`)
            upsilon_nonnegative first and last n of each stretch with Υ(n) ≥ 0
            bound_exceeded      the same for E[D(n)] > √2·h·√Υ(n)
            largest_over_bound  the largest E[D(n)] over √2·h·√Υ(n)
            intervals           low and high of every number above, by its name;
                                None without replicates
            share_b_not_positive share of the replicates with B ≤ 0; None without
        v1                      of the first version (spec math.md §6)
            num_points, sigma, relative_rmse, psi_delta (constant, as above)
            ratio_levels, ratio_n
                                r, and the n at which the ratio is down to it, for
                                constant ψ_Δ (Threshold 1); None: never
            gradient_level, gradient_n
                                Threshold 2 on the curve; None: never
            intervals           as above; that of ratio_n is a list of them

    n_balance has no finite value in replicates with B ≤ 0: there it counts as infinite,
    and an interval that reaches so far ends in None. So do those of limits and
    thresholds. An interval is [None, None] for a number that more than 5 % of the
    replicates leave undefined.

    Raises ValueError naming what is missing or has another length.
    """
    _check(curves, counts, replicates, least_count)
    enough = np.asarray(counts) >= least_count
    used = np.flatnonzero(enough)
    sets = _sets(replicates)
    summary: dict[str, Any] = {
        "least_count": least_count,
        "confidence": CONFIDENCE,
        "num_replicates": len(sets),
        "last_n": int(used[-1]) + 1 if used.size else None,
    }
    for within in WITHIN:
        options = {"within": within, "counts": counts, "least_count": least_count}
        values = _bound_numbers(curves, largest_norm, **options)
        drawn = [_bound_numbers(one, largest_norm, **options) for one in sets]
        summary[within] = {
            **_plain(values),
            **_stretches(curves, within, enough, largest_norm),
            **_regime(values, drawn, summary["last_n"]),
            "intervals": _intervals(drawn) if drawn else None,
        }
    options = {"counts": counts, "least_count": least_count}
    drawn = [_first_numbers(one, **options) for one in sets]
    summary["v1"] = {
        **_first_entries(_plain(_first_numbers(curves, **options))),
        "ratio_levels": list(RATIO_LEVELS),
        "gradient_level": GRADIENT_LEVEL,
        "intervals": _first_entries(_intervals(drawn)) if drawn else None,
    }
    return summary


def spread_of(
    curves: Mapping[str, Float[np.ndarray, "*R N"]], within: str = "symmetric"
) -> Float[np.ndarray, "*R N"]:
    """Υ(n) of measured curves (eq. 16); `within` is one of `WITHIN`."""
    return theory.spread(
        curves["psi_equal"], _within(curves, within), curves["psi_cross_ab"]
    )


def scores_fit(
    upsilon: Float[np.ndarray, " N"], scores: Mapping[int, float | int]
) -> dict[str, Any]:
    """κ and β of S(M) = κ·(√Υ(M))^β from scores by M (§3.5), for a result file.

    `upsilon` is Υ(n) for n = 1…N. The result:

        kappa, beta                          with kappa_interval, beta_interval (95 %)
        log_kappa_error, beta_error          standard errors
        residual_sd                          of log S about the line
        c                                    κ·Υ(1)^{β/2}, the score of one token
        m, score, fitted, alpha              lists over M: S(M), κ(√Υ(M))^β, and α(M)
                                             (None at M = 1)
        num_points, confidence

    Raises ValueError as `fits.fit_scores` does, and for M beyond the curve.
    """
    for m in scores:
        if not 1 <= m <= len(upsilon):
            raise ValueError(
                f"scores has M = {m}, but Υ is measured for n = 1…{len(upsilon)}; "
                "leave this score out or measure longer branches"
            )
    by_m = {m: float(upsilon[m - 1]) for m in sorted(scores)}
    fit = fits.fit_scores({m: scores[m] for m in by_m}, by_m, confidence=CONFIDENCE)
    start = theory.score(upsilon[0], kappa=fit.kappa, beta=fit.beta)
    fitted = theory.score(np.array([*by_m.values()]), kappa=fit.kappa, beta=fit.beta)
    alpha = theory.exponent(upsilon, beta=fit.beta)
    return {
        "kappa": fit.kappa,
        "beta": fit.beta,
        "kappa_interval": [_number(end) for end in fit.kappa_interval],
        "beta_interval": list(fit.beta_interval),
        "log_kappa_error": fit.log_kappa_error,
        "beta_error": fit.beta_error,
        "residual_sd": fit.residual_sd,
        "c": _number(float(start)),
        "m": list(by_m),
        "score": [float(scores[m]) for m in by_m],
        "fitted": [_number(value) for value in fitted.tolist()],
        "alpha": [_number(float(alpha[m - 1])) for m in by_m],
        "num_points": fit.num_points,
        "confidence": CONFIDENCE,
    }


def _within(
    curves: Mapping[str, Float[np.ndarray, "*R N"]], within: str
) -> Float[np.ndarray, "*R N"]:
    if within not in WITHIN:
        raise ValueError(f"within is {within!r}, expected one of {WITHIN}")
    if within == "aa":
        return curves["psi_cross_aa"]
    return (curves["psi_cross_aa"] + curves["psi_cross_bb"]) / 2


def _bound_numbers(
    curves: Mapping[str, Float[np.ndarray, " N"]],
    largest_norm: float | int,
    *,
    within: str,
    counts: Int[np.ndarray, " N"],
    least_count: int,
) -> dict[str, float | int]:
    """Every number of one set of curves; NaN and infinities as they come."""
    measured, upsilon = curves["D"], spread_of(curves, within=within)
    n = np.arange(1, len(measured) + 1)
    constants = [
        fits.weighted_mean(curve, counts, least_count=least_count)
        for curve in (
            *(curves["psi_equal"], _within(curves, within)),
            curves["psi_cross_ab"],
        )
    ]
    a, b = (float(term) for term in theory.terms(*constants))
    used = fits.fitted_points(upsilon, measured, counts, least_count=least_count)
    numbers: dict[str, float | int] = {"num_points": int(used.sum())}
    names = ("lambda", "relative_rmse", "power_scale", "power_exponent")
    names = (*names, "relative_rmse_power", "sqrt_n_scale", "relative_rmse_sqrt_n")
    names = (*names, "n_scale", "relative_rmse_n")
    fitted = (math.nan,) * len(names)
    # D is 0 where Υ > 0 only if nothing was measured: no power of n fits nothing.
    if used.sum() > 1 and np.any(measured[used] > 0):
        forms = fits.fit_forms(upsilon[used], measured[used], n[used])
        fitted = (*forms.bound, *forms.power, *forms.root, *forms.linear)
    numbers |= dict(zip(names, fitted, strict=True))
    flat = theory.constant_spread(n, *constants)
    used = used & (flat > 0)
    constant = fits.ScaleFit(math.nan, math.nan)
    if used.any():
        constant = fits.fit_scale(np.sqrt(flat[used]), measured[used])
    enough = (counts >= least_count) & (upsilon > 0)
    ceiling = theory.bound(upsilon, largest_norm=largest_norm)[enough]
    # A norm of 0 leaves no bound to compare with.
    over = measured[enough] / ceiling if largest_norm > 0 else np.zeros(0)
    over = over[np.isfinite(over)]
    return numbers | {
        "lambda_constant": constant.scale,
        "relative_rmse_constant": constant.relative_rmse,
        "num_points_constant": int(used.sum()),
        **dict(zip(("psi_equal", "psi_within", "psi_cross"), constants, strict=True)),
        "A": a,
        "B": b,
        # With B falling to 0 n_balance grows without end; below it there is none.
        "n_balance": math.inf if b <= 0 else float(theory.n_balance(*constants)),
        "bound_limit": float(theory.bound_limit(*constants)),
        "largest_over_bound": float(over.max()) if over.size else math.nan,
    }


def _first_numbers(
    curves: Mapping[str, Float[np.ndarray, " N"]],
    *,
    counts: Int[np.ndarray, " N"],
    least_count: int,
) -> dict[str, float | int]:
    """The same for the first version; a threshold that is never reached is infinite."""
    measured = curves["D"]
    psi = np.where(counts >= least_count, curves["psi_delta"], np.nan)
    inside = first_version.delta_spread(psi)
    used = fits.fitted_points(inside, measured, counts, least_count=least_count)
    fit = fits.ScaleFit(math.nan, math.nan)
    if used.any():
        fit = fits.fit_scale(np.sqrt(inside[used]), measured[used])
    constant = fits.weighted_mean(psi, counts, least_count=least_count)
    gradient = first_version.gradient_threshold(psi, level=GRADIENT_LEVEL)
    # Below 0 the linear part never comes to rule either.
    at = max(constant, 0.0) if math.isfinite(constant) else constant
    return {
        "num_points": int(used.sum()),
        "sigma": fit.scale,
        "relative_rmse": fit.relative_rmse,
        "psi_delta": constant,
        **{
            f"ratio_n_{level}": float(first_version.ratio_threshold(at, ratio=level))
            for level in RATIO_LEVELS
        },
        "gradient_n": math.inf if gradient is None else gradient,
    }


def _first_entries(entries: dict[str, Any]) -> dict[str, Any]:
    """The thresholds by ratio as one list."""
    ratios = [f"ratio_n_{level}" for level in RATIO_LEVELS]
    others = {name: value for name, value in entries.items() if name not in ratios}
    return {**others, "ratio_n": [entries[name] for name in ratios]}


def _regime(
    values: Mapping[str, float | int],
    drawn: list[dict[str, float | int]],
    last_n: int | None,
) -> dict[str, Any]:
    """Label, ranges and sentence of the constants, and how sure the sign of B is."""
    constants = [values[name] for name in ("psi_equal", "psi_within", "psi_cross")]
    signs = np.array([one["B"] for one in drawn], np.float64)
    signs = signs[np.isfinite(signs)]
    share = float(np.mean(signs <= 0)) if signs.size else None
    if last_n is None or not np.all(np.isfinite(constants)):
        label, ranges = None, {}
        sentence = "No n ≥ 2 has enough pairs, so that there is no regime to name."
    else:
        found = theory.regime(*constants, longest=last_n)
        label, sentence = found.label, found.sentence
        ranges = {name: list(ends) for name, ends in found.ranges.items()}
    if share is not None and QUANTILES[0] < share < QUANTILES[1]:
        sentence += (
            f" B is 0 or less in {share:.0%} of the resampled sets of pairs: its sign, "
            "and with it the regime at large n, is not settled."
        )
    return {
        "regime": label,
        "regime_ranges": ranges,
        "regime_border": theory.BORDER,
        "regime_sentence": sentence,
        "share_b_not_positive": share,
    }


def _stretches(
    curves: Mapping[str, Float[np.ndarray, " N"]],
    within: str,
    enough: Bool[np.ndarray, " N"],
    largest_norm: float | int,
) -> dict[str, list[list[int]]]:
    """Where there is a bound, and where the divergence passes it."""
    upsilon = spread_of(curves, within=within)
    ceiling = theory.bound(upsilon, largest_norm=largest_norm)
    exceeded = curves["D"] > ceiling * (1 + ROUNDING)
    return {
        "upsilon_nonnegative": _runs(enough & (upsilon >= 0)),
        "bound_exceeded": _runs(enough & exceeded),
    }


def _runs(holds: Bool[np.ndarray, " N"]) -> list[list[int]]:
    """First and last n of each stretch that is True: [F, T, T] -> [[2, 3]]."""
    edges = np.diff(np.concatenate([[0], holds.astype(np.int8), [0]]))
    firsts, ends = np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1)
    return [[int(a), int(b)] for a, b in zip(firsts, ends, strict=True)]


def _intervals(drawn: list[dict[str, float | int]]) -> dict[str, Any]:
    """Percentile intervals of every number; the counts of points have none."""
    return {
        name: _interval(np.array([one[name] for one in drawn], np.float64))
        for name in drawn[0]
        if not name.startswith("num_points")
    }


def _interval(values: Float[np.ndarray, " R"]) -> list[float | None]:
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - MAX_UNDEFINED) * len(values):
        return [None, None]
    # Values of the replicates themselves: between a finite value and infinity there is
    # nothing to interpolate.
    low, high = np.quantile(defined, QUANTILES, method="inverted_cdf")
    return [_number(float(low)), _number(float(high))]


def _plain(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _sets(
    replicates: Mapping[str, Float[np.ndarray, "R N"]] | None,
) -> list[dict[str, Float[np.ndarray, " N"]]]:
    """One dict of curves for each replicate."""
    if replicates is None:
        return []
    return [
        {name: replicates[name][row] for name in PAIR_CURVES}
        for row in range(len(replicates["D"]))
    ]


def _check(
    curves: Mapping[str, Float[np.ndarray, "_"]],
    counts: Int[np.ndarray, " N"],
    replicates: Mapping[str, Float[np.ndarray, "_ _"]] | None,
    least_count: int,
) -> None:
    if least_count < 1:
        raise ValueError(f"least_count is {least_count}, expected 1 or more pairs")
    rows = len(replicates["D"]) if replicates and "D" in replicates else 0
    given = {"curves": (curves, counts.shape)}
    if replicates is not None:
        given["replicates"] = (replicates, (rows, *counts.shape))
    for field, (arrays, shape) in given.items():
        missing = [name for name in PAIR_CURVES if name not in arrays]
        if missing:
            raise ValueError(f"{field} lacks {', '.join(missing)}")
        for name in PAIR_CURVES:
            if np.shape(arrays[name]) != shape:
                raise ValueError(
                    f"{field}[{name!r}] has shape {np.shape(arrays[name])}, expected "
                    f"{shape}: N as counts"
                    + ("" if field == "curves" else ", R as replicates['D']")
                )
        # Here, where their own names are known.
        theory.correlations(**{name: arrays[name] for name in PAIR_CURVES[1:]})
    if replicates is not None and rows == 0:
        raise ValueError("replicates has no row; give None when there are none")
