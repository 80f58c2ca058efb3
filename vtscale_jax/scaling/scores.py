"""Scores by M: one series for each metric and kind of inputs.

What reads them is in `tables` (CSV), `run_folders` and `vlmevalkit`; they all end here,
so that one place says which scores can be fitted.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# The largest score that there is, of metrics that are not in per cent: VLMEvalKit's
# scales (MME adds up 14 categories of 200; OCRBench counts hits).
UPPER = {
    "MME/Overall": 2800.0,
    "MME/Perception": 2000.0,
    "MME/Cognition": 800.0,
    "OCRBench/Final Score": 1000.0,
    "COCO_VAL/CIDEr": 1000.0,
}


class ScoresError(ValueError):
    """Scores that cannot be read, or are not what they are said to be."""


class Score(NamedTuple):
    """One score as it was read; `where` names its file and line.

    `upper` is the largest score possible, `n_items` the questions behind it, `stderr`
    its standard error; None where nothing says so. `items` are the scores of single
    questions by their id, as shares of `upper`.
    """

    inputs: str
    metric: str
    n_l: int
    score: float
    where: str
    upper: float | None = None
    n_items: int | None = None
    stderr: float | None = None
    items: dict[str, float] | None = None


class Excluded(NamedTuple):
    """A score that no law is fitted to, and why."""

    inputs: str
    metric: str
    n_l: int
    value: str
    reason: str
    where: str


class Series(NamedTuple):
    """The scores of one metric and kind of inputs by rising M.

    `n_items`, `stderr` and `items` (share of `upper` of each of I questions, the same
    at every M) are there for all M or for none; `item_ids` names the questions, so that
    those of two series can be paired. `upper` is None where no end of the scale is
    known.
    """

    inputs: str
    metric: str
    m: Int[np.ndarray, " K"]
    score: Float[np.ndarray, " K"]
    upper: float | None = None
    n_items: Int[np.ndarray, " K"] | None = None
    stderr: Float[np.ndarray, " K"] | None = None
    items: Float[np.ndarray, "K I"] | None = None
    item_ids: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Metric and inputs, as figures and errors say them."""
        return f"{self.metric} ({self.inputs})" if self.inputs else self.metric


class Scores(NamedTuple):
    """All series of a source, what was left out of them, and what to know of them."""

    source: str
    series: tuple[Series, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()

    def inputs(self) -> tuple[str, ...]:
        """The kinds of inputs, in the order of the source."""
        return tuple(dict.fromkeys(one.inputs for one in self.series))

    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order of the source."""
        return tuple(dict.fromkeys(one.metric for one in self.series))

    def of(self, metric: str, inputs: str) -> Series | None:
        """That series, or None."""
        for one in self.series:
            if (one.metric, one.inputs) == (metric, inputs):
                return one
        return None
