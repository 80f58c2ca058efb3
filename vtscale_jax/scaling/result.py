"""What an analysis of scores has found: one `LawFit` for each law and series."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vtscale_jax.scaling.laws import Law
from vtscale_jax.scaling.scores import Scores, Series

LAST_VALUE = "last value"


class Interval(NamedTuple):
    """A 95 % interval; an end is infinite where the data set none."""

    low: float
    high: float


class LawFit(NamedTuple):
    """A law fitted to a series.

    `estimates` are its parameters by name (and what follows from them), `intervals` the
    95 % intervals of each by what was resampled: "budgets" (the M), "items" (the
    questions), "both" (their errors added). `main` says which of them is to be
    believed; None: there is none.
    `problems` say why the law is not identified by these scores; none: it is. Errors
    are mean |predicted − score| / score: `leave_one_out` of each M from the others,
    `extrapolation` of the M above the cut from those up to it. NaN: not possible.
    """

    law: Law
    theta: Float[np.ndarray, " p"]
    estimates: dict[str, float]
    intervals: dict[str, dict[str, Interval]]
    main: str | None
    problems: tuple[str, ...]
    aicc: float
    rms_log: float
    leave_one_out: float
    extrapolation: float

    @property
    def identified(self) -> bool:
        """Whether the scores determine every parameter."""
        return not self.problems

    def interval(self, name: str) -> Interval | None:
        """The main interval of one estimate."""
        return None if self.main is None else self.intervals[self.main].get(name)

    def predict(self, m: Float[np.ndarray, " J"]) -> Float[np.ndarray, " J"]:
        """The law's score at each M."""
        return self.law.curve(self.theta[None], m)[0]


class SeriesFits(NamedTuple):
    """All laws of a series.

    `errors` is the kind of its noise (`noise.KINDS`), `bands` are the 95 % bands (low,
    high) of each law's curve over `grid`, `chosen` is the law with the smallest AICc
    (None: it is nowhere defined), `last_value_*` are the errors of repeating the last
    score, `failed` says of laws that could not be fitted why. `cut` is the largest M
    that extrapolation was fitted to (None: there is none), `dispersion` by how much the
    scores vary more than their items explain.
    """

    series: Series
    errors: str
    fits: dict[str, LawFit]
    grid: Float[np.ndarray, " G"]
    bands: dict[str, tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]]
    chosen: str | None
    last_value_leave_one_out: float
    last_value_extrapolation: float
    failed: dict[str, str]
    cut: int | None = None
    dispersion: float = 1.0


class Analysis(NamedTuple):
    """Every series of a table of scores with its fits; `cut` is the one that all series
    share, None where they share none."""

    scores: Scores
    fits: tuple[SeriesFits, ...]
    cut: int | None
    seed: int
    replicates: int

    def of(self, metric: str, inputs: str) -> SeriesFits | None:
        """The fits of one series, or None."""
        for one in self.fits:
            if (one.series.metric, one.series.inputs) == (metric, inputs):
                return one
        return None
