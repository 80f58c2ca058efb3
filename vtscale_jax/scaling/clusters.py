"""Which metrics grow alike with M: curves from 0 to 1, and K-means over them.

Paper, Figs. 18 and 19: every metric is normalised by its smallest and largest score
over M, and the curves fall into 4 clusters. What a metric's scale is no longer matters,
only where on the axis of M it gains.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans

from vtscale_jax.scaling.scores import Scores

NUM_CLUSTERS = 4  # the paper's
NUM_STARTS = 50  # K-means keeps the best of these


class LeftOut(NamedTuple):
    """A metric that has no normalised curve, and why."""

    metric: str
    reason: str


class Normalised(NamedTuple):
    """(S − min)/(max − min) of each metric over M, in the order of the scores.

    `m` are the budgets that most metrics have. `notes` say of metrics that have more of
    them which were not used.
    """

    inputs: str
    metrics: tuple[str, ...]
    m: Int[np.ndarray, " K"]
    values: Float[np.ndarray, "S K"]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()


class Clusters(NamedTuple):
    """Metrics grouped by the shape of their curves.

    `labels` are 0 … k − 1 in falling order of the mean of `centres`: those of cluster 0
    are near their best already at small M. `notes` say why there are fewer clusters
    than asked for.
    """

    curves: Normalised
    labels: Int[np.ndarray, " S"]
    centres: Float[np.ndarray, "k K"]
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        """How many clusters there are."""
        return len(self.centres)

    def members(self, label: int) -> tuple[str, ...]:
        """The metrics of one cluster."""
        return tuple(
            metric
            for metric, own in zip(self.curves.metrics, self.labels, strict=True)
            if own == label
        )


def normalised(scores: Scores, inputs: str) -> Normalised:
    """Curves of every metric with these inputs.

    A metric that lacks an M is left out, and so is one whose scores are all equal: its
    curve would be a division by 0.
    """
    series = [one for one in scores.series if one.inputs == inputs]
    budgets = _budgets([tuple(int(n) for n in one.m) for one in series])
    metrics, values, left_out, notes = [], [], [], []
    for one in series:
        lacking = [str(n) for n in budgets if n not in one.m]
        if lacking:
            reason = f"no score at M = {', '.join(lacking)}"
            left_out.append(LeftOut(one.metric, reason))
            continue
        more = [str(n) for n in one.m if n not in budgets]
        if more:
            notes.append(f"{one.metric}: M = {', '.join(more)} not used")
        score = one.score[np.isin(one.m, budgets)]
        low, high = score.min(), score.max()
        if not np.isfinite(high - low):
            left_out.append(LeftOut(one.metric, "a score is not finite"))
        elif high - low <= 1e-12 * abs(high):
            left_out.append(LeftOut(one.metric, "flat: the same score at every M"))
        else:
            metrics.append(one.metric)
            values.append((score - low) / (high - low))
    return Normalised(
        inputs,
        tuple(metrics),
        np.array(budgets, np.int64),
        np.array(values, np.float64).reshape(len(values), len(budgets)),
        tuple(left_out),
        tuple(notes),
    )


def clusters(
    curves: Normalised, *, k: int = NUM_CLUSTERS, seed: int = 0
) -> Clusters | None:
    """K-means of the curves (scikit-learn's, the best of 50 starts); None without a
    curve. The same curves and seed give the same labels."""
    if k < 1:
        raise ValueError(f"k is {k}, expected the number of clusters, 1 or more")
    if not curves.metrics:
        return None
    different = len(np.unique(curves.values, axis=0))
    found = min(k, different)
    notes = ()
    if found < k:
        count = f"{different} different curve{'s' if different > 1 else ''}"
        notes = (f"{found} in place of {k} clusters: there are {count}",)
    means = KMeans(found, n_init=NUM_STARTS, random_state=seed).fit(curves.values)
    centres = means.cluster_centers_
    # Which cluster K-means numbers first says nothing.
    order = sorted(range(found), key=lambda i: (-centres[i].mean(), *centres[i]))
    rank = {label: place for place, label in enumerate(order)}
    labels = np.array([rank[int(label)] for label in means.labels_], np.int64)
    return Clusters(curves, labels, centres[order], seed, notes)


def _budgets(sets: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The set of M that most series have; of several, the largest, then the first."""
    if not sets:
        return ()
    often = Counter(sets)
    return max(dict.fromkeys(sets), key=lambda own: (often[own], len(own)))
