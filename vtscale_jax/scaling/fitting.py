"""Least squares for many fits at once: Levenberg and Marquardt's steps in NumPy.

    u, loss = fit(POWER, m, scores[None], log_noise())     # u [1, 2]

A bootstrap is a thousand fits of ten points: one at a time in SciPy they take minutes,
side by side less than a second. `paper_power` is the paper's own fit, by SciPy's BFGS.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize

from vtscale_jax.scaling.laws import Law
from vtscale_jax.scaling.noise import Noise

MAX_STEPS = 100
STEP = 1e-6  # for the slope of a curve in its coordinates
SETTLED = 1e-11  # relative gain of a step below which a fit is at its end
NEARLY = 1e-6  # the same for resamples, which differ by far more


class Fitted(NamedTuple):
    """Coordinates [R, p] and what is left of the loss [R]; infinite where no start
    gave a curve on the scale."""

    u: Float[np.ndarray, "R p"]
    loss: Float[np.ndarray, " R"]


def fit(
    law: Law,
    m: Float[np.ndarray, " K"],
    score: Float[np.ndarray, "R K"],
    noise: Noise,
    starts: Float[np.ndarray, "s p"] | None = None,
    settled: float = SETTLED,
) -> Fitted:
    """The best of the fits from every start, for each row of scores.

    `starts` are the law's own (from the mean of the rows) where none are given.
    """
    if starts is None:
        starts = law.starts(score.mean(0), m)
    rows, tries = len(score), len(starts)
    low, high = np.array(law.limits).T
    u = np.clip(np.tile(starts, (rows, 1)), low, high)
    found = _descend(
        law, m, np.repeat(score, tries, axis=0), noise, u, low, high, settled
    )
    by_row = found.loss.reshape(rows, tries)
    best = by_row.argmin(1) + tries * np.arange(rows)
    return Fitted(found.u[best], found.loss[best])


def paper_power(
    m: Float[np.ndarray, " K"], score: Float[np.ndarray, " K"]
) -> tuple[float, float]:
    """c and α of the paper: Σ (log c − α·log M − log S)² made smallest by SciPy's BFGS
    (eq. 38). ValueError for a score that has no logarithm, or fewer than two M."""
    if not np.all(score > 0) or np.ptp(m) == 0:
        raise ValueError("a power law needs positive scores at two M or more")
    x, y = np.log(m), np.log(score)

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        left = u[0] - u[1] * x - y
        return float(left @ left), np.array([2 * left.sum(), -2 * left @ x])

    found = optimize.minimize(
        objective, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    return float(np.exp(found.x[0])), float(found.x[1])


def jacobian(
    law: Law, m: Float[np.ndarray, " K"], u: Float[np.ndarray, "R p"]
) -> Float[np.ndarray, "R K p"]:
    """How the law's values move with its coordinates, by central differences."""
    columns = []
    for i in range(u.shape[1]):
        step = STEP * np.maximum(1.0, np.abs(u[:, i]))
        ahead, behind = u.copy(), u.copy()
        ahead[:, i] += step
        behind[:, i] -= step
        with np.errstate(over="ignore", invalid="ignore"):
            moved = law.curve(ahead, m) - law.curve(behind, m)
        columns.append(moved / (2 * step[:, None]))
    return np.stack(columns, axis=2)


def _descend(
    law: Law,
    m: np.ndarray,
    score: np.ndarray,
    noise: Noise,
    u: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    settled: float,
) -> Fitted:
    """Each row from its own start to its end. A coordinate at its limit stays there as
    long as the loss falls beyond it."""
    loss = _total(law, m, score, noise, u)
    damping = np.full(len(u), 1e-3)
    going = np.isfinite(loss)
    for _ in range(MAX_STEPS):
        (rows,) = np.nonzero(going)
        if not rows.size:
            break
        now, fitted = u[rows], law.curve(u[rows], m)
        residual, weight = noise.downhill(score[rows], fitted)
        slopes = jacobian(law, m, now) * weight[:, :, None]
        downhill = np.einsum("rkp,rk->rp", slopes, residual)
        held = ((now <= low) & (downhill < 0)) | ((now >= high) & (downhill > 0))
        held |= ~np.isfinite(downhill)
        slopes = np.where(held[:, None, :], 0.0, slopes)
        downhill = np.where(held, 0.0, downhill)
        curvature = np.einsum("rkp,rkq->rpq", slopes, slopes)
        size = np.einsum("rpp->rp", curvature)
        # A coordinate that moves nothing gets a step of 0, not a division by 0.
        ground = damping[rows, None] * size + np.where(size > 1e-300, 0.0, 1.0)
        curvature = curvature + np.einsum("rp,pq->rpq", ground, np.eye(u.shape[1]))
        step = np.linalg.solve(curvature, downhill[:, :, None])[:, :, 0]
        there = np.clip(
            now + np.clip(step, -2.0, 2.0) if _bounded(law) else now + step, low, high
        )
        new = _total(law, m, score[rows], noise, there)
        better = new < loss[rows]
        gain = loss[rows] - new
        u[rows[better]] = there[better]
        loss[rows[better]] = new[better]
        done = better & (gain <= settled * np.abs(loss[rows]) + 1e-16)
        damping[rows] = np.clip(
            np.where(better, damping[rows] / 9, damping[rows] * 7), 1e-12, 1e12
        )
        going[rows[done | (damping[rows] >= 1e11)]] = False
    return Fitted(u, loss)


def _bounded(law: Law) -> bool:
    """Coordinates that are logarithms: a step of more than e² is no longer local."""
    return bool(np.isfinite(np.array(law.limits)).all())


def _total(
    law: Law, m: np.ndarray, score: np.ndarray, noise: Noise, u: np.ndarray
) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total = noise.loss(score, law.curve(u, m)).sum(1)
    return np.where(np.isnan(total), np.inf, total)
