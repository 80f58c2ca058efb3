"""One law fitted to one series: estimates, intervals, errors, and what is wrong."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from vtscale_jax.scaling import comparison, intervals
from vtscale_jax.scaling.fitting import Fitted, fit, jacobian, paper_power
from vtscale_jax.scaling.identification import problems
from vtscale_jax.scaling.laws import POWER, Law
from vtscale_jax.scaling.noise import Noise
from vtscale_jax.scaling.result import Interval, LawFit
from vtscale_jax.scaling.scores import Series

LEAST_FREEDOM = 2  # more M than parameters by so many, or budgets tell of no interval
WORSE = 0.05  # p-value below which the items alone do not explain the residuals

Band = tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]


class Points(NamedTuple):
    """The scores that a law is fitted to, and the errors that they have."""

    series: Series
    noise: Noise
    upper: float  # infinite where the scale has no end

    @property
    def m(self) -> Float[np.ndarray, " K"]:
        """The budgets, as the laws take them."""
        return self.series.m.astype(float)

    def best(self, law: Law) -> Fitted:
        """The law's fit. Of `power` with errors of logarithms it is the paper's own."""
        if law == POWER and np.isinf(self.noise.bend) and self.noise.kind == "log":
            c, alpha = paper_power(self.m, self.series.score)
            u = np.array([[np.log(c), alpha]])
            curve = law.curve(u, self.m)
            return Fitted(u, self.noise.loss(self.series.score[None], curve).sum(1))
        return fit(law, self.m, self.series.score[None], self.noise)


def points(series: Series, noise: Noise, used: Bool[np.ndarray, " K"]) -> Points:
    """A part of a series, by a mask over its M."""

    def part(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[used]

    kept = series._replace(
        m=series.m[used],
        score=series.score[used],
        n_items=part(series.n_items),
        stderr=part(series.stderr),
        items=part(series.items),
    )
    upper = np.inf if series.upper is None else series.upper
    return Points(kept, noise.at(used), upper)


def fit_law(
    law: Law,
    given: Points,
    best: Fitted,
    grid: Float[np.ndarray, " G"],
    *,
    fits_items: bool,
    dispersion: float,
    cut: int | None,
    replicates: int,
    rng: np.random.Generator,
) -> tuple[LawFit, Band]:
    """Everything about one law; `best` is its fit. `fits_items` says whether its
    residuals are no larger than the items make them, `dispersion` by how much the
    variance of scores exceeds that of the items whatever the law."""
    series, noise, m = given.series, given.noise, given.m
    score, names = series.score, tuple(law.estimates(best.u))
    ends, held = {}, {}
    sets = _resampled(law, given, best, replicates, rng, fits_items=fits_items)
    for kind, resampled in sets.items():
        found = intervals.refit(law, m, score, resampled, noise, best)
        ends_of = intervals.percentiles if kind == "items" else intervals.studentised
        ends[kind] = ends_of(lambda u: _quantities(law, u, grid), found)
        held[kind] = found.held
    main = "items" if fits_items or "budgets" not in ends else "budgets"
    if main == "budgets" and "items" in ends:
        main = "both"
        ends[main] = _together(_quantities(law, best.u, grid)[0], *ends.values())
        held[main] = np.maximum(*held.values())
    main = main if main in ends else None
    plain = {kind: _plain(law, grid, *both) for kind, both in ends.items()}
    by_kind = {
        kind: {
            name: Interval(*_in_range(law, name, low[i], high[i]))
            for i, name in enumerate(names)
        }
        for kind, (low, high) in plain.items()
    }
    band = (np.full(len(grid), np.nan),) * 2
    if main is not None:
        band = tuple(side[len(names) :] for side in plain[main])
    estimates = {name: float(v[0]) for name, v in law.estimates(best.u).items()}
    wrong = problems(
        law,
        estimates,
        None if main is None else by_kind[main],
        np.zeros(law.num_parameters) if main is None else held[main],
        given.upper,
    )
    if law.name.startswith("power"):
        estimates["c_prime"] = c_prime(estimates, identified=not wrong)
    fitted = law.curve(best.u, m)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(fitted[score > 0] / score[score > 0])
    loss = float(best.loss[0]) / dispersion
    return LawFit(
        law,
        best.u[0],
        estimates,
        by_kind,
        main,
        wrong,
        comparison.aicc(noise, loss, len(m), law.num_parameters),
        float(np.sqrt(np.mean(logs**2))) if logs.size else float("nan"),
        comparison.leave_one_out(law, m, score, noise, given.upper),
        extrapolation(law, given, cut),
    ), (band[0], band[1])


def extrapolation(law: Law, given: Points, cut: int | None) -> float:
    """The error at the M above `cut` of the law fitted to those up to it; NaN without
    M on both sides."""
    if cut is None:
        return float("nan")
    known = given.m <= cut
    if known.all() or not known.any():
        return float("nan")
    guess = comparison.predicted(
        law, given.m, given.series.score, given.noise, known, given.upper
    )
    return comparison.relative_error(guess, given.series.score[~known])


def c_prime(estimates: dict[str, float], *, identified: bool) -> float:
    """c' = c^(1/α) of v1's form S = (c'/M)^α; NaN near α = 0, where it is not
    defined."""
    if not identified or estimates["alpha"] == 0:
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(np.log(estimates["c"]) / estimates["alpha"]))


def explained(noise: Noise, loss: float, num_points: int, num_parameters: int) -> bool:
    """Whether residuals are no larger than errors of known size make them (χ²)."""
    freedom = num_points - num_parameters
    if not noise.scale_is_known or freedom < 1:
        return noise.scale_is_known
    return bool(stats.chi2.sf(loss, freedom) >= WORSE)


def explained_by_items(law: Law, given: Points, best: Fitted) -> bool:
    """The same of a fit, where questions that are the same at every M move its scores
    together: they then leave less than χ² has it, and trainings must be told from less.

    The residuals of a fit are P·ε, P without what the law's coordinates can take up and
    ε with the covariance of the items; their sum of squares is close to g·χ²(h) with
    the mean and the variance of that sum (Satterthwaite).
    """
    items, noise, m = given.series.items, given.noise, given.m
    loss, number = float(best.loss[0]), law.num_parameters
    if items is None or noise.kind != "items" or len(m) <= number:
        return explained(noise, loss, len(m), number)
    slope = noise.slope(law.curve(best.u, m))[0]
    basis = np.linalg.svd(jacobian(law, m, best.u)[0] * slope[:, None], False)
    taken = basis.U[:, basis.S > 1e-9 * basis.S.max()]
    left = np.eye(len(m)) - taken @ taken.T
    shared = np.cov(items) * given.upper**2 / items.shape[1]
    spread = left @ (shared * np.outer(slope, slope)) @ left
    mean, square = np.trace(spread), np.trace(spread @ spread)
    # Items that move as one leave nothing: whatever is left is not theirs.
    if mean < 1e-9:
        return loss < 1e-9
    return bool(stats.chi2.sf(loss * mean / square, mean**2 / square) >= WORSE)


def _resampled(
    law: Law,
    given: Points,
    best: Fitted,
    replicates: int,
    rng: np.random.Generator,
    *,
    fits_items: bool,
) -> dict[str, np.ndarray]:
    """Resampled scores by what was drawn again."""
    series, noise = given.series, given.noise
    sets = {}
    if len(series.m) - law.num_parameters >= LEAST_FREEDOM:
        sets["budgets"] = intervals.budget_scores(
            law, given.m, series.score, noise, best.u[0], replicates, rng
        )
    center = law.curve(best.u, given.m)[0] if fits_items else None
    items = intervals.item_scores(series, replicates, rng, center)
    if items is not None:
        if noise.kind == "log":
            # A resample may have no right answer, where the scores had some: half a
            # question, or half of the smallest score that is known.
            least = series.score.min() / 2
            if series.n_items is not None:
                least = 0.5 * (series.upper or 1.0) / series.n_items
            items = np.maximum(items, least)
        sets["items"] = items
    return sets


def _quantities(
    law: Law, u: Float[np.ndarray, "R p"], grid: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "R Q"]:
    """The parameters and the curve over `grid`; logarithms of what is always above 0,
    whose errors are nearer to normal."""
    with np.errstate(divide="ignore", over="ignore"):
        found = [
            np.log(values) if name in law.positive else values
            for name, values in law.estimates(u).items()
        ]
        curve = law.curve(u, grid)
        return np.column_stack([*found, np.log(curve) if law.positive else curve])


def _plain(
    law: Law,
    grid: Float[np.ndarray, " G"],
    low: Float[np.ndarray, " Q"],
    high: Float[np.ndarray, " Q"],
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Ends of the quantities, logarithms undone."""
    names = list(law.estimates(np.zeros((1, law.num_parameters))))
    logs = np.array(
        [name in law.positive for name in names] + [bool(law.positive)] * len(grid)
    )
    with np.errstate(over="ignore"):
        return np.where(logs, np.exp(low), low), np.where(logs, np.exp(high), high)


def _together(
    center: Float[np.ndarray, " Q"],
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Ends for both sources of error at once: distances from the estimate add up as
    independent errors do. Residuals do not show what moves all M together, as the same
    questions do, and questions do not show what other trainings would change."""
    with np.errstate(invalid="ignore"):
        low = center - np.hypot(center - one[0], center - other[0])
        high = center + np.hypot(one[1] - center, other[1] - center)
    return low, high


def _in_range(law: Law, name: str, low: float, high: float) -> tuple[float, float]:
    """An interval held to the range in which its parameter is looked for."""
    if name not in ("m0", "n_balance", "b") or not law.positive:
        return float(low), float(high)
    first, last = (law.estimates(u[None])[name][0] for u in np.array(law.limits).T)
    return float(np.clip(low, first, last)), float(np.clip(high, first, last))
