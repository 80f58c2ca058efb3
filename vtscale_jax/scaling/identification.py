"""Whether scores determine a law: what is said of it where they do not."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from vtscale_jax.scaling.intervals import MOST_HELD
from vtscale_jax.scaling.laws import Law
from vtscale_jax.scaling.result import Interval

ROUNDING = 1e-9
SYMBOLS = {
    "alpha": "α",
    "beta": "β",
    "s_inf": "S∞",
    "n_balance": "n_balance",
    "m0": "m0",
}


def symbol(name: str) -> str:
    """A parameter as people write it."""
    return SYMBOLS.get(name, name)


def problems(
    law: Law,
    estimates: Mapping[str, float],
    intervals: Mapping[str, Interval] | None,
    held: Float[np.ndarray, " p"],
    upper: float,
) -> tuple[str, ...]:
    """Why the law is not identified, in words; empty: it is.

    No interval; growth that cannot be told from 0; a parameter that runs to the limit
    of its range in more than 2.5 % of the replicates; S∞ whose interval reaches beyond
    the scale or is without end.
    """
    if intervals is None:
        return ("too few M for an interval",)
    found = []
    if law.growth is not None:
        low, high = intervals[law.growth]
        nothing = _rounding(law.growth, estimates)
        if low <= nothing and high >= -nothing:
            found.append(f"{symbol(law.growth)} cannot be told from 0")
    for name, share in zip(law.edges, held, strict=True):
        if share > MOST_HELD:
            found.append(
                f"{symbol(name)} runs to the end of its range in {share:.0%} of the "
                "resamples"
            )
    if "s_inf" in intervals and intervals["s_inf"].high >= upper:
        found.append(f"the interval of S∞ crosses the end of the scale ({upper:g})")
    endless = [
        symbol(name)
        for name, interval in intervals.items()
        if not np.all(np.isfinite(interval))
    ]
    if endless:
        found.append(f"no end to the interval of {', '.join(endless)}")
    return tuple(found)


def _rounding(growth: str, estimates: Mapping[str, float]) -> float:
    """Growth that is no more than rounding: equal scores leave α of 1e-16, with an
    interval as narrow. Exponents are numbers; other growth is in points of the score.
    """
    if growth in ("alpha", "beta"):
        return ROUNDING
    return ROUNDING * max(abs(estimates.get(name, 0.0)) for name in ("a", "s_inf"))


def told(names: Sequence[str]) -> str:
    """Problems in one line."""
    return "not identified: " + "; ".join(names)
