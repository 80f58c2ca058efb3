"""95 % intervals of a fit by the bootstrap: over budgets (the M) and over items.

Over items the questions are drawn again, the same ones at every M where it is known
which were answered right, or else as many from a binomial. That is how the law would
move with other questions of the same kind. Over budgets the residuals of the M are
drawn again, scaled for their leverage: how it would move with other trainings, as far
as ten of them tell.

Over items, whose variance is known, intervals are percentiles. Over budgets they are
studentised (bootstrap-t): the distance of each replicate's estimate in units of its own
standard error. Where the items do not explain what a law leaves, both are joined
(`law_fits`). Percentiles are too narrow for ten points; how often either holds the
truth is measured in benchmarks/scaling_coverage.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vtscale_jax.scaling.fitting import NEARLY, Fitted, fit, jacobian
from vtscale_jax.scaling.laws import Law
from vtscale_jax.scaling.noise import Noise, inner_share
from vtscale_jax.scaling.scores import Series

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
STEP = 1e-6
MOST_HELD = TAILS[
    0
]  # share of replicates at a limit beyond which it is in the interval

# Quantities of coordinates: [R, p] -> [R, Q].
Quantities = Callable[[Float[np.ndarray, "R p"]], Float[np.ndarray, "R Q"]]


class Replicates(NamedTuple):
    """Fits to resampled scores, with the fit to the scores themselves in row 0.

    `covariance` is that of the coordinates, [R + 1, p, p]; `held` says, for each
    coordinate, in which share of the replicates it lies at its limit.
    """

    u: Float[np.ndarray, "R1 p"]
    covariance: Float[np.ndarray, "R1 p p"]
    held: Float[np.ndarray, " p"]


def item_scores(
    series: Series,
    replicates: int,
    rng: np.random.Generator,
    center: Float[np.ndarray, " K"] | None = None,
) -> Float[np.ndarray, "R K"] | None:
    """Scores of as many resampled sets of questions; None where nothing is known of
    questions or of standard errors.

    `center` are the scores that they vary about, by default those of the series. Of a
    law that explains the scores it is the law: about the scores themselves, chance
    would count twice.
    """
    center = series.score if center is None else center
    shape = (replicates, len(series.m))
    upper = series.upper or 1.0
    if series.items is not None:
        number = series.items.shape[1]
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=replicates)
        rows = upper * (drawn @ series.items.T) / number
        return np.clip(rows + (center - series.score), 0.0, upper)
    if series.n_items is not None and series.upper is not None:
        # From a share of 0 every sample would be 0, as if it were known for certain.
        share = inner_share(center, series.n_items.astype(float), upper)
        return upper * rng.binomial(series.n_items, share, shape) / series.n_items
    if series.stderr is not None:
        return center + series.stderr * rng.standard_normal(shape)
    return None


def budget_scores(
    law: Law,
    m: Float[np.ndarray, " K"],
    score: Float[np.ndarray, " K"],
    noise: Noise,
    u: Float[np.ndarray, " p"],
    replicates: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R K"]:
    """The law with residuals of the M drawn again, each scaled by √(1 − leverage)."""
    fitted = law.curve(u[None], m)
    slopes = jacobian(law, m, u[None])[0] * noise.slope(fitted)[0][:, None]
    basis = np.linalg.svd(slopes, full_matrices=False)
    spans = basis.U[:, basis.S > 1e-9 * basis.S.max(initial=0.0)]
    leverage = np.minimum((spans**2).sum(1), 0.99)
    scaled = noise.residual(score[None], fitted)[0] / np.sqrt(1 - leverage)
    scaled = scaled - scaled.mean()
    drawn = rng.choice(scaled, size=(replicates, len(m)))
    if noise.kind == "log":
        return fitted * np.exp(drawn)
    moved = fitted + drawn / noise.slope(fitted)
    return np.clip(moved, 0.0, noise.upper)


def refit(
    law: Law,
    m: Float[np.ndarray, " K"],
    score: Float[np.ndarray, " K"],
    resampled: Float[np.ndarray, "R K"],
    noise: Noise,
    best: Fitted,
) -> Replicates:
    """The law fitted to every row, from the best fit and from two of its other
    starts; the variance of the errors is estimated in each."""
    starts = np.vstack([best.u[:1], law.starts(score, m)[1:3]])
    found = fit(law, m, resampled, noise, starts, NEARLY)
    u = np.vstack([best.u[:1], found.u])
    loss = np.concatenate([best.loss[:1], found.loss])
    low, high = np.array(law.limits).T
    room = np.where(np.isfinite(high - low), 1e-6 * (high - low), 0.0)
    held = ((found.u <= low + room) | (found.u >= high - room)).mean(0)
    degrees = max(len(m) - law.num_parameters, 1)
    return Replicates(u, _covariance(law, m, noise, u, loss / degrees), held)


def percentiles(
    quantities: Quantities, found: Replicates
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Percentile 95 % interval of each quantity."""
    low, high = np.quantile(quantities(found.u[1:]), TAILS, axis=0)
    return low, high


def studentised(
    quantities: Quantities, found: Replicates
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Studentised 95 % interval of each quantity; infinite where the scores set no
    end."""
    values = quantities(found.u)
    errors = _standard_errors(quantities, found)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        distance = (values[1:] - values[0]) / errors[1:]
    # A replicate without a standard error says nothing of the distance.
    distance = np.where(np.isfinite(distance), distance, np.nan)
    usable = np.isfinite(distance).mean(0) > 0.5
    distance[:, ~usable] = 0.0
    low, high = np.nanquantile(distance, TAILS, axis=0)
    with np.errstate(invalid="ignore"):
        ends = values[0] - high * errors[0], values[0] - low * errors[0]
    known = usable & np.isfinite(errors[0])
    low_end = np.where(known, ends[0], -np.inf)
    high_end = np.where(known, ends[1], np.inf)
    # A law that goes through all scores leaves no error to speak of.
    exact = errors[0] <= 1e-12 * np.maximum(np.abs(values[0]), 1.0)
    return np.where(exact, values[0], low_end), np.where(exact, values[0], high_end)


def _covariance(
    law: Law, m: np.ndarray, noise: Noise, u: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        slopes = jacobian(law, m, u) * noise.slope(law.curve(u, m))[:, :, None]
    slopes = np.where(np.isfinite(slopes), slopes, 0.0)
    information = np.einsum("rkp,rkq->rpq", slopes, slopes)
    size = np.einsum("rpp->rp", information)
    # Directions that the scores say nothing of get a variance without bound.
    floor = 1e-14 * size.max(1)[:, None] + 1e-290
    information = information + np.einsum("rp,pq->rpq", floor, np.eye(u.shape[1]))
    return np.linalg.inv(information) * scale[:, None, None]


def _standard_errors(quantities: Quantities, found: Replicates) -> np.ndarray:
    slopes = []
    for i in range(found.u.shape[1]):
        step = STEP * np.maximum(1.0, np.abs(found.u[:, i]))
        ahead, behind = found.u.copy(), found.u.copy()
        ahead[:, i] += step
        behind[:, i] -= step
        with np.errstate(over="ignore", invalid="ignore"):
            moved = quantities(ahead) - quantities(behind)
        slopes.append(moved / (2 * step[:, None]))
    slope = np.stack(slopes, axis=2)
    with np.errstate(over="ignore", invalid="ignore"):
        variance = np.einsum("rqi,rij,rqj->rq", slope, found.covariance, slope)
    return np.sqrt(np.maximum(variance, 0.0))
