"""95 % intervals of scores.

Means of independent 0/1 items have Wilson's interval. All else is bootstrapped: the
independent units of a benchmark (items; images where questions share one) are drawn
anew with replacement, which gives each unit a whole-numbered weight, and the score is
computed from weights. A score with all weights one is the score itself, so that the
number and its interval come from the same lines.

Percentile intervals of 1,000 draws from a fixed seed (B. Efron & R. Tibshirani, An
Introduction to the Bootstrap, 1993, ch. 13). Where all units agree, every draw does,
and the interval has no width: that says that the sample shows no difference, not that
there is none.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from vtscale_jax.metrics import wilson_interval

DRAWS = 1000
SEED = 0
# Weights held at once: 8 MB.
_AT_ONCE = 1_000_000

Interval = tuple[float, float]
# Weights of units, one row per draw, to K scores per draw.
Metric = Callable[[Float[np.ndarray, "R U"]], Float[np.ndarray, "R K"]]


def point(metric: Metric, units: int) -> list[float]:
    """The scores themselves: every unit once."""
    return metric(np.ones((1, units)))[0].tolist()


def resampled(metric: Metric, units: int, stream: int = 0) -> Float[np.ndarray, "D K"]:
    """The scores of `DRAWS` resamples of the units, [draws, scores].

    Draws of one stream are the same at each call; strata that are drawn independently
    take streams of their own.
    """
    rng = np.random.default_rng([SEED, stream])
    rows = max(1, _AT_ONCE // units)
    made = []
    for start in range(0, DRAWS, rows):
        count = min(rows, DRAWS - start)
        drawn = rng.integers(units, size=(count, units))
        drawn += units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units)
        made.append(metric(weights.reshape(count, units).astype(np.float64)))
    return np.concatenate(made)


def interval(draws: Float[np.ndarray, " D"]) -> Interval:
    """The middle 95 % of draws of one score."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def intervals(metric: Metric, units: int) -> list[Interval]:
    """The interval of each score of a metric."""
    return [interval(column) for column in resampled(metric, units).T]


def share_interval(right: int, of: int, scale: float) -> Interval:
    """Wilson's interval of `scale` * right / of; NaN for a share of nothing."""
    if not of:
        return float("nan"), float("nan")
    low, high = wilson_interval(right, of)
    return scale * low, scale * high
