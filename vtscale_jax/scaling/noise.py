"""How far scores are from their law: what a fit makes small.

    kind      error of a score                             what is minimised
    log       of log S, the same at every M (the paper's)  Σ (log S − log f)²
    items     binomial: n questions, each right or wrong   the binomial deviance
    stderr    normal, of the standard error that is given  Σ ((S − f)/σ)²

Of items the variance is n·p·(1 − p) at the law's own p, so that scores near 0 and near
the upper end weigh as their questions make them. A score at an end of its scale counts
as half a question away from it, or the best law would touch the end itself, where
errors have no size. A metric that gives parts of a point for a question varies less
than this says.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from vtscale_jax.scaling.scores import Series

KINDS = ("log", "items", "stderr")


class Noise(NamedTuple):
    """The errors of K scores. All arrays are [R, K] for R fits at once.

    `loss` takes scores and the law's values to what each adds to the sum; infinite
    where the law leaves the scale. `residual` is the score's distance in units of its
    standard deviation (of log S for "log"), and `slope` how fast it falls as the law's
    value rises. `at` gives the noise of a part of the K scores, by a mask. `bow` is the
    root of half the second derivative of `loss` by the law's value; None: it is
    `slope`.
    """

    kind: str
    upper: float
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
    residual: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    at: Callable[[np.ndarray], "Noise"]
    bend: float = np.inf
    bow: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def downhill(
        self, score: np.ndarray, fitted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What Newton's step needs: r and w with −½·dloss/dfitted = r·w, and w² half
        the second derivative (of Huber's loss, that of its middle)."""
        pull, slope = self.pull(score, fitted), self.slope(fitted)
        if self.bow is None:
            return pull, slope
        bow = self.bow(score, fitted)
        return pull * slope / bow, bow

    def pull(self, score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """What the residual counts as: at most `bend`, where losses become lines."""
        return np.clip(self.residual(score, fitted), -self.bend, self.bend)

    @property
    def scale_is_known(self) -> bool:
        """Whether residuals of a right law have variance 1, or one to be estimated."""
        return self.kind != "log"


def log_noise(huber: float | None = None) -> Noise:
    """Multiplicative errors; beyond `huber` (of log S) they count linearly."""

    def residual(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        return np.log(score) - np.log(fitted)

    def loss(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            r = residual(score, fitted)
        r = np.where(fitted > 0, r, np.inf)
        if huber is None:
            return r**2
        size = np.abs(r)
        return np.where(size <= huber, r**2, 2 * huber * size - huber**2)

    bend = np.inf if huber is None else huber
    return Noise(
        "log",
        np.inf,
        loss,
        residual,
        lambda fitted: 1 / fitted,
        lambda part: log_noise(huber),
        bend,
    )


def item_noise(n_items: Float[np.ndarray, " K"], upper: float) -> Noise:
    """`score`/`upper` is the share of `n_items` questions that are right."""

    def deviation(fitted: np.ndarray) -> np.ndarray:
        p = fitted / upper
        return np.sqrt(p * (1 - p) / n_items)

    def residual(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        right = inner_share(score, n_items, upper)
        return (right - fitted / upper) / deviation(fitted)

    def loss(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        right, p = inner_share(score, n_items, upper), fitted / upper
        inside = (p > 0) & (p < 1)
        p = np.where(inside, p, 0.5)
        said = special.rel_entr(right, p) + special.rel_entr(1 - right, 1 - p)
        return np.where(inside, 2 * n_items * said, np.inf)

    def bow(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        # Near the ends of the scale far more than 1/variance: steps by the variance
        # alone run into the end and stay there.
        right, p = inner_share(score, n_items, upper), fitted / upper
        return np.sqrt(n_items * (right / p**2 + (1 - right) / (1 - p) ** 2)) / upper

    return Noise(
        "items",
        upper,
        loss,
        residual,
        lambda fitted: 1 / (upper * deviation(fitted)),
        lambda part: item_noise(n_items[part], upper),
        bow=bow,
    )


def inner_share(
    score: np.ndarray, n_items: Float[np.ndarray, " K"], upper: float
) -> np.ndarray:
    """The share of right answers, at least half a question from none and from all."""
    half = 0.5 / n_items
    return np.clip(score / upper, half, 1 - half)


def normal_noise(stderr: Float[np.ndarray, " K"], upper: float) -> Noise:
    """Normal errors of known standard deviation. They may carry a score beyond the ends
    of its scale, and a law may pass there too: predictions are held to the scale."""

    def residual(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        return (score - fitted) / stderr

    def loss(score: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        return residual(score, fitted) ** 2

    return Noise(
        "stderr",
        upper,
        loss,
        residual,
        lambda fitted: np.broadcast_to(1 / stderr, fitted.shape),
        lambda part: normal_noise(stderr[part], upper),
    )


def noise_of(series: Series, huber: float | None = None) -> Noise:
    """The errors that a series tells of: its standard errors, or those of its items
    (right or wrong), or else of logarithms. With Huber's loss always the last."""
    upper = np.inf if series.upper is None else series.upper
    if huber is None and series.stderr is not None:
        return normal_noise(series.stderr, upper)
    if huber is None and series.n_items is not None and np.isfinite(upper):
        return item_noise(series.n_items.astype(float), upper)
    return log_noise(huber)
