"""Fits of the theory to what was measured: λ, its rivals, and κ and β from scores.

    used = fitted_points(upsilon, divergence, counts, least_count=10)
    forms = fit_forms(upsilon[used], divergence[used], n[used])
    forms.bound.scale, forms.bound.relative_rmse, forms.power.relative_rmse

λ√Υ(n) is judged beside three forms that know nothing of ψ: a free power law c·n^a,
plain c·√n and plain c·n. All are least squares on the divergence itself (not its
logarithm) over the same n, so their errors can be compared.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from vtscale_jax.divergence.result import CONFIDENCE, LEAST_COUNT


class ScaleFit(NamedTuple):
    """scale · shape(n), and its error as `relative_rmse` gives it."""

    scale: float
    relative_rmse: float


class PowerFit(NamedTuple):
    """scale · n^exponent, and its error as `relative_rmse` gives it."""

    scale: float
    exponent: float
    relative_rmse: float


class Forms(NamedTuple):
    """The four forms over the same n; `bound` is λ√Υ, and its scale is λ."""

    bound: ScaleFit
    power: PowerFit
    root: ScaleFit
    linear: ScaleFit
    num_points: int


class ScoreFit(NamedTuple):
    """S = κ·(√Υ)^β fitted to scores.

    The errors are standard errors; the intervals hold the true value with the stated
    confidence if the errors of log S are independent and normal. That of κ is the
    exponential of the interval of log κ. `residual_sd` is the standard deviation of
    log S about the line.
    """

    kappa: float
    beta: float
    log_kappa_error: float
    beta_error: float
    kappa_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    residual_sd: float
    num_points: int


def fitted_points(
    upsilon: Float[np.ndarray, " N"],
    divergence: Float[np.ndarray, " N"],
    counts: Int[np.ndarray, " N"],
    *,
    least_count: int = LEAST_COUNT,
) -> Bool[np.ndarray, " N"]:
    """The n that fits use: Υ(n) > 0, D(n) known, and at least `least_count` pairs."""
    enough = (counts >= least_count) & np.isfinite(divergence)
    return enough & np.isfinite(upsilon) & (upsilon > 0)


def weighted_mean(
    curve: Float[np.ndarray, " N"],
    counts: Int[np.ndarray, " N"],
    *,
    least_count: int = LEAST_COUNT,
) -> float:
    """The constant that stands for a ψ curve: its mean over n ≥ 2, weighted by the
    pairs that are n long, where there are `least_count` of them. NaN if nowhere."""
    used = (counts >= least_count) & np.isfinite(curve)
    used[:1] = False  # no cross measure at n = 1; the same n for all measures
    if not used.any():
        return math.nan
    return float(np.average(curve[used], weights=counts[used]))


def relative_rmse(
    fitted: Float[np.ndarray, " K"],
    measured: Float[np.ndarray, " K"],
    *,
    weights: Float[np.ndarray, " K"] | Int[np.ndarray, " K"] | None = None,
) -> float:
    """√(mean((fitted − measured)²)) / √(mean(measured²)), weighted means if weights are
    given.

    0 is a perfect fit, 1 that of the curve 0. Not relative at each n: large values
    count most, as they do in the fit. NaN when everything measured is 0.
    """
    size = np.average(measured**2, weights=weights)
    error = np.average((fitted - measured) ** 2, weights=weights)
    return math.sqrt(error / size) if size > 0 else math.nan


def fit_scale(
    shape: Float[np.ndarray, " K"],
    measured: Float[np.ndarray, " K"],
    *,
    weights: Float[np.ndarray, " K"] | Int[np.ndarray, " K"] | None = None,
) -> ScaleFit:
    """The scale of a shape that minimises the squared error, in closed form.

        Σ w·D·shape / Σ w·shape²

    With shape = √Υ and w = 1 it is λ = Σ D√Υ / Σ Υ (eq. 34). `weights` may be the
    counts of pairs. Raises ValueError for no points, values that are not finite, or a
    shape that is 0 everywhere.
    """
    w = _check(shape=shape, measured=measured, weights=weights, least=1)
    size = float(np.sum(w * shape**2))
    if not size > 0:
        raise ValueError("shape is 0 at every point: no scale fits it to anything")
    scale = float(np.sum(w * measured * shape)) / size
    return ScaleFit(scale, relative_rmse(scale * shape, measured, weights=weights))


def fit_power(
    n: Float[np.ndarray, " K"] | Int[np.ndarray, " K"],
    measured: Float[np.ndarray, " K"],
    *,
    weights: Float[np.ndarray, " K"] | Int[np.ndarray, " K"] | None = None,
) -> PowerFit:
    """c·n^a by least squares on the measured values themselves, not on their logarithm
    (SciPy's search by Brent's method, started at the line through the logarithms).

    Raises ValueError for fewer than two different n, for values that are not finite, or
    for measured values of which none is positive.
    """
    n = np.asarray(n, np.float64)
    w = _check(shape=n, measured=measured, weights=weights, least=2)
    positive = (measured > 0) & (w > 0)
    if not np.all(n > 0) or np.ptp(n) == 0 or not positive.any():
        raise ValueError(
            "n and measured need two different n, all above 0, and a measured value "
            "above 0: else the power is not determined"
        )
    # For every exponent the best scale is known in closed form, so that one number is
    # left to look for. Values are in units of their size, and powers are divided by
    # their largest, so that neither can overflow.
    logs = np.log(n)
    unit = float(np.max(np.abs(measured)))
    values, w = measured / unit, w / w.sum()

    def unexplained(exponent: float) -> float:
        power = exponent * logs
        power = np.exp(power - power.max())
        # Σw(v − s·p)² at the best s = Σwvp/Σwp², less Σwv², which does not change.
        return -(float((w * values) @ power) ** 2) / float(w @ power**2)

    start = _log_slope(logs[positive], values[positive])
    found = optimize.minimize_scalar(
        unexplained, bracket=(start, start + 0.05), method="brent"
    )
    if not (found.success and np.isfinite(found.x)):
        raise ValueError(
            f"measured is fitted by no power of n that SciPy finds ({found.message})"
        )
    exponent = float(found.x)
    largest = float(np.max(exponent * logs))
    best = fit_scale(np.exp(exponent * logs - largest), measured, weights=weights)
    return PowerFit(best.scale * math.exp(-largest), exponent, best.relative_rmse)


def fit_forms(
    upsilon: Float[np.ndarray, " K"],
    measured: Float[np.ndarray, " K"],
    n: Float[np.ndarray, " K"] | Int[np.ndarray, " K"],
    *,
    weights: Float[np.ndarray, " K"] | Int[np.ndarray, " K"] | None = None,
) -> Forms:
    """λ√Υ, c·n^a, c·√n and c·n over the same points and with the same weights."""
    if not np.all(upsilon > 0):
        raise ValueError(
            "upsilon holds values that are not above 0; fit where fitted_points is True"
        )
    n = np.asarray(n, np.float64)
    return Forms(
        bound=fit_scale(np.sqrt(upsilon), measured, weights=weights),
        power=fit_power(n, measured, weights=weights),
        root=fit_scale(np.sqrt(n), measured, weights=weights),
        linear=fit_scale(n, measured, weights=weights),
        num_points=len(measured),
    )


def fit_scores(
    scores: Mapping[int, float | int],
    upsilon: Mapping[int, float | int],
    *,
    counts: Mapping[int, int] | None = None,
    confidence: float = CONFIDENCE,
) -> ScoreFit:
    """κ and β of S(M) = κ·(√Υ(M))^β (§3.5): the least-squares line of log S over
    ½·log Υ, with intervals by Student's t with K − 2 degrees of freedom.

    `scores` and `upsilon` are by M; `upsilon` may have more. `counts`, if given, are
    the questions behind each score, and weigh its point.

    Raises ValueError for fewer than three M (two fix the line and leave nothing to tell
    its error by), a score or Υ that is not above 0, or Υ that is the same at all M.
    """
    if len(scores) < 3:
        raise ValueError(
            f"scores has {len(scores)} M, expected at least 3: a line through two "
            "points has no error"
        )
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence is {confidence}, expected a share between 0 "
            f"and 1, like {CONFIDENCE}"
        )
    for m, value in scores.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"scores[{m}] is {value}, expected more than 0: log S is fitted"
            )
        if m not in upsilon:
            raise ValueError(f"upsilon lacks M = {m}, of which there is a score")
        if not (math.isfinite(upsilon[m]) and upsilon[m] > 0):
            raise ValueError(
                f"upsilon[{m}] is {upsilon[m]}, expected more than 0: below it there "
                "is no bound (constraint 39), and NaN says that nothing is that long; "
                "leave this score out"
            )
        if counts is not None and not counts.get(m, 0) > 0:
            raise ValueError(
                f"counts[{m}] is {counts.get(m)}, expected the questions behind the "
                "score, 1 or more"
            )
    x = np.array([math.log(upsilon[m]) / 2 for m in scores])
    y = np.array([math.log(value) for value in scores.values()])
    w = np.array([1.0 if counts is None else counts[m] for m in scores])
    w = w / w.mean()
    centre = np.average(x, weights=w)
    spread = float(np.sum(w * (x - centre) ** 2))
    if not spread > 1e-24 * float(np.sum(w * x**2)):
        raise ValueError(
            "upsilon is the same at all M: the slope of log S over log Υ is not "
            "determined"
        )
    beta = float(np.sum(w * (x - centre) * y)) / spread
    log_kappa = float(np.average(y, weights=w) - beta * centre)
    if not 0 < _exp(log_kappa) < math.inf:
        raise ValueError(
            f"upsilon differs too little between the M: log κ would be {log_kappa:.6g}"
        )
    freedom = len(x) - 2
    variance = float(np.sum(w * (y - log_kappa - beta * x) ** 2)) / freedom
    beta_error = math.sqrt(variance / spread)
    log_kappa_error = math.sqrt(variance * (1 / len(x) + centre**2 / spread))
    t = float(stats.t.ppf((1 + confidence) / 2, freedom))
    return ScoreFit(
        kappa=math.exp(log_kappa),
        beta=beta,
        log_kappa_error=log_kappa_error,
        beta_error=beta_error,
        kappa_interval=(
            _exp(log_kappa - t * log_kappa_error),
            _exp(log_kappa + t * log_kappa_error),
        ),
        beta_interval=(beta - t * beta_error, beta + t * beta_error),
        residual_sd=math.sqrt(variance),
        num_points=len(x),
    )


def _exp(value: float) -> float:
    """e^value, infinite where that is beyond a float: the end of a wide interval."""
    return math.exp(value) if value < 709 else math.inf


def _log_slope(logs: Float[np.ndarray, " K"], values: Float[np.ndarray, " K"]) -> float:
    """Where to start: the slope of the line through the logarithms."""
    offsets = logs - logs.mean()
    size = float(np.sum(offsets**2))
    return float(np.sum(offsets * np.log(values))) / size if size > 0 else 1.0


def _check(
    *,
    shape: np.ndarray,
    measured: np.ndarray,
    weights: np.ndarray | None,
    least: int,
) -> Float[np.ndarray, " K"]:
    """The weights as floats, once all three can be fitted."""
    if len(measured) < least:
        raise ValueError(
            f"measured has {len(measured)} points, expected at least {least}; lower "
            "least_count or measure more pairs"
        )
    w = np.ones(len(measured)) if weights is None else np.asarray(weights, np.float64)
    for name, array in (("shape", shape), ("measured", measured), ("weights", w)):
        if array.shape != measured.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {measured.shape} as measured"
            )
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name} holds values that are not finite")
    if not (np.all(w >= 0) and w.sum() > 0):
        raise ValueError("weights holds values below 0, or nothing but 0")
    return w
