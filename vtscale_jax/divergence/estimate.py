"""From the curves of single pairs to means with their uncertainty, pair by pair.

    estimate = Estimate.empty(num_positions, replicates=1000, seed=0)
    estimate = estimate.add(rows, curves)          # as often as there are pairs
    estimate = estimate.merge(that_of_other_pairs)
    estimate.bands()["D"].mean

Nothing of a pair is kept but its part in sums, so any number of pairs takes the same
memory, and however they are dealt out, the same numbers come out (to rounding of
float64; to the last bit in the same order).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from vtscale_jax.divergence.result import CONFIDENCE, CURVES, Band


class EstimateError(ValueError):
    """Estimates that cannot be merged, or curves of the wrong shape."""


def derived(
    curves: Mapping[str, Float[np.ndarray, "P N"]],
) -> Float[np.ndarray, "C P N"]:
    """The `CURVES` of pairs from their `PAIR_CURVES`, in float64.

    ψ_cross_symmetric = ½(ψ_AA + ψ_BB) (§3.6), psi_excess = that − ψ_AB, which is B of
    Υ(n) = (A − B)n + Bn².
    """
    known = {name: np.asarray(value, np.float64) for name, value in curves.items()}
    symmetric = (known["psi_cross_aa"] + known["psi_cross_bb"]) / 2
    known["psi_cross_symmetric"] = symmetric
    known["psi_excess"] = symmetric - known["psi_cross_ab"]
    return np.stack([known[name] for name in CURVES])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Sums over pairs, for C curves and n = 1…N.

    count:   pairs with a value           least, largest: over pairs
    mean, m2: Welford's mean and Σ(x − mean)²
    weights: Σ of the bootstrap weights of pairs that reach n, for R replicates
    sums:    Σ of weight times value

    A pair's weights are R draws from Poisson(1) that depend on (seed, its row) only:
    the bootstrap over pairs for data that come in pieces. A replicate's mean is
    sums / weights.
    """

    seed: int
    names: tuple[str, ...]
    count: Int[np.ndarray, "C N"]
    mean: Float[np.ndarray, "C N"]
    m2: Float[np.ndarray, "C N"]
    least: Float[np.ndarray, "C N"]
    largest: Float[np.ndarray, "C N"]
    weights: Float[np.ndarray, "R N"]
    sums: Float[np.ndarray, "C R N"]

    @classmethod
    def empty(
        cls,
        num_positions: int,
        *,
        names: tuple[str, ...] = CURVES,
        replicates: int = 1000,
        seed: int = 0,
    ) -> "Estimate":
        """Of no pairs yet."""
        shape = (len(names), num_positions)
        return cls(
            seed,
            names,
            np.zeros(shape, np.int64),
            np.zeros(shape),
            np.zeros(shape),
            np.full(shape, np.inf),
            np.full(shape, -np.inf),
            np.zeros((replicates, num_positions)),
            np.zeros((len(names), replicates, num_positions)),
        )

    def add(
        self, rows: Int[np.ndarray, " P"], values: Float[np.ndarray, "C P n"]
    ) -> "Estimate":
        """With P more pairs; `rows` are their numbers in the data, `values` their
        curves for n up to any length of at most N, NaN where there is none."""
        C, P, n = values.shape
        N = self.count.shape[1]
        if len(self.names) != C or n > N or len(rows) != P:
            raise EstimateError(
                f"values have shape {values.shape} for {len(rows)} rows, expected "
                f"({len(self.names)}, {len(rows)}, at most {N})"
            )
        if P == 0:
            return self
        wide = np.full((C, P, N), np.nan)
        wide[:, :, :n] = values
        there = ~np.isnan(wide)
        filled = np.where(there, wide, 0)
        count = there.sum(axis=1)
        mean = filled.sum(axis=1) / np.maximum(count, 1)
        spread = np.where(there, wide - mean[:, None], 0)
        weights = self._weights(rows)
        reaches = there.any(axis=0).astype(np.float64)
        return self.merge(
            dataclasses.replace(
                self,
                count=count,
                mean=mean,
                m2=(spread**2).sum(axis=1),
                least=np.where(there, wide, np.inf).min(axis=1),
                largest=np.where(there, wide, -np.inf).max(axis=1),
                weights=weights @ reaches,
                sums=weights @ filled,
            )
        )

    def merge(self, other: "Estimate") -> "Estimate":
        """Of the pairs of both (Chan, Golub & LeVeque's update of mean and m2)."""
        if (self.seed, self.names, self.sums.shape) != (
            other.seed,
            other.names,
            other.sums.shape,
        ):
            raise EstimateError(
                "estimates differ in seed, curves, replicates or N: "
                f"{(self.seed, self.names, self.sums.shape)} and "
                f"{(other.seed, other.names, other.sums.shape)}; measure them alike"
            )
        count = self.count + other.count
        some = np.maximum(count, 1)
        apart = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean + apart * (other.count / some),
            m2=self.m2 + other.m2 + apart**2 * (self.count * other.count / some),
            least=np.minimum(self.least, other.least),
            largest=np.maximum(self.largest, other.largest),
            weights=self.weights + other.weights,
            sums=self.sums + other.sums,
        )

    def counts(self) -> Int[np.ndarray, " N"]:
        """Pairs that reach n: the largest count of any curve (cross measures have none
        at n = 1)."""
        return self.count.max(axis=0)

    def replicates(self) -> dict[str, Float[np.ndarray, "R N"]]:
        """The bootstrap means of each curve; NaN where a replicate has no pair."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums / self.weights
        means[:, self.weights == 0] = np.nan
        means[np.broadcast_to(self.count[:, None] == 0, means.shape)] = np.nan
        return dict(zip(self.names, means, strict=True))

    def bands(self) -> dict[str, Band]:
        """Each curve with its uncertainty; the standard deviation is that of pairs,
        NaN where there is but one."""
        none = self.count == 0
        low, high = interval(np.stack(list(self.replicates().values())), axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(self.m2 / (self.count - 1))
        sd[self.count < 2] = np.nan
        parts = [self.mean, sd, low, high, self.least, self.largest]
        parts = [np.where(none, np.nan, part) for part in parts]
        return {
            name: Band(*(part[i] for part in parts))
            for i, name in enumerate(self.names)
        }

    def _weights(self, rows: Int[np.ndarray, " P"]) -> Float[np.ndarray, "R P"]:
        draws = [
            np.random.default_rng([self.seed, int(row)]).poisson(
                1.0, self.weights.shape[0]
            )
            for row in rows
        ]
        return np.stack(draws, axis=1).astype(np.float64)


def interval(
    replicates: Float[np.ndarray, "..."], axis: int = 0
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The 95 % percentile interval over the replicates that are defined; NaN where
    none is."""
    tail = 100 * (1 - CONFIDENCE) / 2
    values = np.moveaxis(replicates, axis, 0)
    found = np.full((2, *values.shape[1:]), np.nan)
    some = ~np.isnan(values).all(axis=0)
    if some.any():
        found[:, some] = np.nanpercentile(values[:, some], [tail, 100 - tail], axis=0)
    return found[0], found[1]
