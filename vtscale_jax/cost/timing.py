"""Timings that cannot favour anyone: the order of repetitions, and what they add up to.

Machines drift: clocks fall as a chip grows warm, others come and go. So every round
times each case once, in an order drawn anew: what drifts falls on all cases alike, and
the same round of two cases can be compared where their sums could not.
"""

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CERTAIN = 0.999  # of the upper limit of a median


class Summary(NamedTuple):
    """What the repetitions of one thing add up to, in their own unit (seconds)."""

    median: float
    p95: float
    least: float
    number: int


def summary(values: Sequence[float]) -> Summary:
    """Median, 95th percentile (interpolated) and least of at least one value."""
    if not values:
        raise ValueError("no repetitions to sum up: time at least one")
    low, high = np.percentile(values, [50, 95])
    return Summary(float(low), float(high), float(min(values)), len(values))


def order(cases: Sequence[int], number: int, seed: int) -> list[int]:
    """The cases in the order of round `number`: a permutation drawn from `seed` and the
    number alone, so that a round that is made up for later has the same."""
    drawn = np.random.default_rng([seed, number]).permutation(len(cases))
    return [cases[place] for place in drawn]


def upper_median(values: Sequence[float], certain: float = CERTAIN) -> float | None:
    """A number that the median of what `values` were drawn from exceeds with a chance
    of 1 − `certain` at most; None for too few of them.

    It is one of the values, whatever they are distributed like: the median exceeds all
    but the k largest of n values with the chance that n coins show k heads at most.
    """
    number, chance = len(values), 0.0
    for k in range(number):
        chance += math.comb(number, k) / 2**number
        if chance > 1 - certain:
            return None if k == 0 else sorted(values)[number - k]
    return None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Python collects its garbage before and after, and not in between."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
