"""The null test: is ψ_AA − ψ_AB more than chance, and zero where it must be zero?

Where A and B are exchanged at random positions, within and between are the same: the
expectation of ½(ψ_AA + ψ_BB) − ψ_AB is exactly 0 (spec math.md §5) for the reductions
`mean` and `signed`. A measurement that finds something else there measures wrongly.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LEVEL = 0.05
# With fewer pairs the bootstrap's errors are too small, and the tails heavy: at 10 the
# test found something in 9 % of the cases with nothing there.
LEAST_PAIRS = 30


class NullError(ValueError):
    """A null test that means nothing."""


def check(reduction: str, number: int) -> None:
    """NullError where the expectation under exchanges is not 0: the maximum over i ≠ j
    of (a_i, b_j) is one over twice as many pairs as that of (a_i, a_j)."""
    if number and reduction == "max":
        raise NullError(
            "--null goes with the reductions mean and signed: of maxima those between "
            "branches are larger by chance alone, being of twice as many pairs; leave "
            "out --null, or --reduction max"
        )


class SupTest(NamedTuple):
    """Does a mean curve differ from 0 anywhere?

    statistic: max over n of |mean(n)| / standard error(n)
    p_value:   how often bootstrap replicates are as far from the mean somewhere
    at:        the n of the maximum
    """

    statistic: float
    p_value: float
    at: int

    @property
    def differs(self) -> bool:
        """By more than chance, at the 5 % level over all n together."""
        return self.p_value < LEVEL


def sup_test(
    mean: Float[np.ndarray, " N"],
    replicates: Float[np.ndarray, "R N"],
    counts: Int[np.ndarray, " N"],
    least_count: int = LEAST_PAIRS,
) -> SupTest | None:
    """The test over all n with at least `least_count` pairs together, so that many n
    are no many chances; None where there is no such n.

    The distribution of the maximum comes from the bootstrap replicates about their
    mean, which keeps how curves of neighbouring n go together.
    """
    used = np.flatnonzero((counts >= least_count) & ~np.isnan(mean))
    used = used[~np.isnan(replicates[:, used]).any(axis=0)]
    # The bootstrap's variance is that of a mean with c in place of c − 1.
    errors = replicates[:, used].std(axis=0, ddof=1)
    errors *= np.sqrt(counts[used] / (counts[used] - 1))
    used, errors = used[errors > 0], errors[errors > 0]
    if len(used) == 0:
        return None
    away = np.abs(mean[used]) / errors
    chance = (np.abs(replicates[:, used] - mean[used]) / errors).max(axis=1)
    worst = int(np.argmax(away))
    exceed = int(np.sum(chance >= away[worst]))
    return SupTest(
        float(away[worst]),
        (1 + exceed) / (1 + len(chance)),
        int(used[worst]) + 1,
    )


def describe(test: SupTest | None) -> dict[str, Any] | None:
    """The test as a result file has it."""
    return None if test is None else {**test._asdict(), "differs": test.differs}


def swaps(
    rows: Int[np.ndarray, " P"], num_positions: int, number: int, seed: int
) -> Bool[np.ndarray, "K P n"]:
    """Which positions of each pair are exchanged, `number` times over, each with
    probability ½; of a pair it depends on (seed, its row) only."""
    found = np.empty((number, len(rows), num_positions), bool)
    for i, row in enumerate(rows):
        # A stream of its own: that of the bootstrap is (seed, row).
        rng = np.random.default_rng([seed, int(row), 1])
        # Drawn position by position: padding a branch further changes nothing.
        found[:, i] = (rng.random((num_positions, number)) < 0.5).T
    return found


def exchange(
    a: Float[Array, "B n d"], b: Float[Array, "B n d"], swapped: Bool[Array, "B n"]
) -> tuple[Float[Array, "B n d"], Float[Array, "B n d"]]:
    """Both branches with a_i and b_i exchanged where `swapped`."""
    at = swapped[:, :, None]
    return jnp.where(at, b, a), jnp.where(at, a, b)
