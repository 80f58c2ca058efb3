"""What fusing the question adds: the scores of one kind of inputs less another's.

    found = gains(scores, "vqq", "vq_ft")                # Fig. 12; "vq" for Fig. 13
    found.gains[0].absolute, found.gains[0].relative     # by rising M, [K]

Paper, §5.3: S_vqq − S_vq_ft and S_vqq − S_vq for each metric and M. A relative gain is
a share of the score with less information (S_vq_ft or S_vq).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtscale_jax.scaling.scores import Scores, Series

PAIRED, INDEPENDENT = "paired items", "independent scores"


class Gain(NamedTuple):
    """S_more − S_less of one metric by rising M; higher scores are taken as better.

    `absolute` is in points of the metric; `relative` is a share of S_less, NaN where
    that is not positive. `stderr` is the standard error of `absolute`; `errors` says of
    what: "paired items" (the same questions answered with both kinds of inputs),
    "independent scores" (the errors of both are added; too large where questions were
    the same), None: nothing is known of them.
    """

    metric: str
    more: str
    less: str
    m: Int[np.ndarray, " K"]
    absolute: Float[np.ndarray, " K"]
    relative: Float[np.ndarray, " K"]
    stderr: Float[np.ndarray, " K"] | None = None
    errors: str | None = None

    @property
    def absolute_range(self) -> tuple[float, float]:
        """Smallest and largest gain over M."""
        return float(self.absolute.min()), float(self.absolute.max())

    @property
    def relative_range(self) -> tuple[float, float] | None:
        """Smallest and largest relative gain over M; None where there is none."""
        known = self.relative[np.isfinite(self.relative)]
        return (float(known.min()), float(known.max())) if known.size else None


class Unpaired(NamedTuple):
    """Scores with the inputs `has` that have no partner with the inputs `lacks`."""

    metric: str
    has: str
    lacks: str
    m: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """What is missing, in words."""
        budgets = ", ".join(str(n) for n in self.m)
        return f"{self.metric}: {self.has} but no {self.lacks} at M = {budgets}"


class Gains(NamedTuple):
    """Every gain that the scores allow, and the scores that have no partner."""

    more: str
    less: str
    gains: tuple[Gain, ...]
    unpaired: tuple[Unpaired, ...]


def gains(scores: Scores, more: str, less: str) -> Gains:
    """Pairs the series of both kinds of inputs by metric and M; guesses no partner."""
    found, unpaired = [], []
    for metric in scores.metrics():
        one, other = scores.of(metric, more), scores.of(metric, less)
        for has, lacks in ((one, other), (other, one)):
            partners = () if lacks is None else lacks.m
            alone = () if has is None else has.m[~np.isin(has.m, partners)]
            if has is not None and len(alone):
                absent = less if has.inputs == more else more
                budgets = tuple(int(n) for n in alone)
                unpaired.append(Unpaired(metric, has.inputs, absent, budgets))
        if one is not None and other is not None and np.isin(one.m, other.m).any():
            found.append(_gain(one, other))
    return Gains(more, less, tuple(found), tuple(unpaired))


def standard_errors(series: Series) -> Float[np.ndarray, " K"] | None:
    """The standard error of each score: of its items, as it is given, or binomial from
    the number of items and the scale; None where nothing is known."""
    if series.items is not None and series.items.shape[1] > 1:
        root = np.sqrt(series.items.shape[1])
        return series.items.std(axis=1, ddof=1) / root * (series.upper or 1.0)
    if series.stderr is not None:
        return series.stderr
    if series.n_items is not None and series.upper is not None:
        share = series.score / series.upper
        spread = np.sqrt(np.maximum(share * (1 - share), 0.0) / series.n_items)
        return series.upper * spread
    return None


def _gain(one: Series, other: Series) -> Gain:
    m, at, there = np.intersect1d(one.m, other.m, return_indices=True)
    absolute = one.score[at] - other.score[there]
    base = other.score[there]
    relative = np.divide(
        absolute, base, out=np.full(len(m), np.nan), where=np.asarray(base > 0)
    )
    stderr, errors = _paired_errors(one, other, at, there), PAIRED
    if stderr is None:
        stderr, errors = _independent_errors(one, other, at, there), INDEPENDENT
    if stderr is None:
        errors = None
    names = one.metric, one.inputs, other.inputs
    return Gain(*names, m, absolute, relative, stderr, errors)


def _paired_errors(
    one: Series, other: Series, at: np.ndarray, there: np.ndarray
) -> Float[np.ndarray, " K"] | None:
    """Of the mean difference over the same questions, whatever their order."""
    ids, other_ids = one.item_ids, other.item_ids
    if one.items is None or other.items is None or not ids or not other_ids:
        return None
    if set(ids) != set(other_ids) or len(ids) < 2 or one.upper != other.upper:
        return None
    place = {name: i for i, name in enumerate(other_ids)}
    order = [place[name] for name in ids]
    difference = one.items[at] - other.items[there][:, order]  # [K, I]
    spread = difference.std(axis=1, ddof=1) / np.sqrt(len(ids))
    return spread * (one.upper or 1.0)


def _independent_errors(
    one: Series, other: Series, at: np.ndarray, there: np.ndarray
) -> Float[np.ndarray, " K"] | None:
    errors, other_errors = standard_errors(one), standard_errors(other)
    if errors is None or other_errors is None:
        return None
    return np.hypot(errors[at], other_errors[there])
