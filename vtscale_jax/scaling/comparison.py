"""Laws beside each other: AICc, leaving one M out, and predicting large M from small.

Whatever a law predicts is held to the scale, 0 to `upper`. Errors are mean
|predicted − score| / score over the M that were predicted; a score of 0 has no relative
error and is left out of the mean.
"""

import numpy as np
from jaxtyping import Bool, Float

from vtscale_jax.scaling.fitting import Fitted, fit
from vtscale_jax.scaling.laws import Law
from vtscale_jax.scaling.noise import Noise

CUT_SHARE = 1 / 4
LEAST_BELOW = 4


def aicc(noise: Noise, loss: float, num_points: int, num_parameters: int) -> float:
    """Akaike's criterion with its correction for few points; NaN where there are too
    few for it, or where the loss is Huber's, which is no likelihood.

    With errors of unknown size ("log") their variance is one more parameter.
    """
    if np.isfinite(noise.bend):
        return float("nan")
    k = num_parameters + (not noise.scale_is_known)
    if num_points - k - 1 <= 0 or not np.isfinite(loss):
        return float("nan")
    penalty = 2 * k + 2 * k * (k + 1) / (num_points - k - 1)
    if noise.scale_is_known:
        return loss + penalty
    # A law that goes through all points: as good as rounding lets it be.
    mean = max(loss / num_points, 1e-24)
    return num_points * float(np.log(mean)) + penalty


def default_cut(m: Float[np.ndarray, " K"]) -> int | None:
    """The M up to which extrapolation is fitted: the last that is at most a quarter of
    the largest, with four or more up to it. None where there is none.

    >>> default_cut(np.array([1., 8, 16, 32, 64, 128, 256, 384, 512, 768]))
    128
    """
    below = m[m <= CUT_SHARE * m.max()]
    return int(below.max()) if len(below) >= LEAST_BELOW else None


def predicted(
    law: Law,
    m: Float[np.ndarray, " K"],
    score: Float[np.ndarray, " K"],
    noise: Noise,
    known: Bool[np.ndarray, " K"],
    upper: float,
) -> Float[np.ndarray, " J"]:
    """The law's scores at the M that are not `known`, fitted to those that are; NaN
    where these are too few."""
    unknown = m[~known]
    if known.sum() < law.num_parameters:
        return np.full(len(unknown), np.nan)
    best = fit(law, m[known], score[None, known], noise.at(known))
    return held_to_scale(law, best, unknown, upper)


def held_to_scale(
    law: Law, best: Fitted, m: Float[np.ndarray, " J"], upper: float
) -> Float[np.ndarray, " J"]:
    """The law's scores, none below 0 or above `upper`."""
    if not np.isfinite(best.loss[0]):
        return np.full(len(m), np.nan)
    return np.clip(law.curve(best.u, m)[0], 0.0, upper)


def relative_error(
    guess: Float[np.ndarray, " J"], score: Float[np.ndarray, " J"]
) -> float:
    """Mean |guess − score| / score over scores above 0; NaN without any."""
    used = score > 0
    if not used.any():
        return float("nan")
    return float(np.mean(np.abs(guess[used] - score[used]) / score[used]))


def leave_one_out(
    law: Law,
    m: Float[np.ndarray, " K"],
    score: Float[np.ndarray, " K"],
    noise: Noise,
    upper: float,
) -> float:
    """The error at each M of the law fitted to the others."""
    guesses = [
        predicted(law, m, score, noise, m != left_out, upper)[0] for left_out in m
    ]
    return relative_error(np.array(guesses), score)


def neighbour(score: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """What "last value" says when one M is left out: the score of the M before it (of
    the first, that of the second)."""
    return np.concatenate([score[1:2], score[:-1]])
