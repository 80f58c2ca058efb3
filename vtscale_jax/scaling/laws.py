"""The laws S(M) that scores are fitted with, each for many fits at once.

    law           S(M)                                  parameters
    constant      c                                     c
    power         c·M^(−α)          (paper, eq. 38)     c, alpha
    logarithmic   a + b·ln M                            a, b
    saturating    S∞ − a·M^(−b)                         s_inf, a, b
    shifted       c·(M + m0)^(−α)                       c, alpha, m0
    theory        c·(M(M + n)/(1 + n))^(β/2)            c, beta, n_balance

The last is S = κ(√Υ(M))^β for constant ψ (§3.5), with Υ(M)/Υ(1) = M(M + n_bal)/(1 +
n_bal) and c = κ·Υ(1)^(β/2). Each is held in coordinates in which a fit can walk freely:
logarithms of what is positive, and values at M = 1 in place of those at 0 or infinity.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Limits of coordinates: beyond them a law has become another one of the list.
ALPHA = (-8.0, 8.0)
RATE = (np.log(0.02), np.log(8.0))  # b of `saturating`: logarithmic … one step
SHIFT = (np.log(0.02), np.log(2e3))  # 1 + m0: a jump at M = 1 … exponential in M
BALANCE = (np.log(0.02), np.log(2e4))  # n_bal: linear from the start … never
LOG_SCALE = (-40.0, 40.0)


class Law(NamedTuple):
    """A family of curves over M.

    `curve` takes coordinates [R, p] and M [K] to scores [R, K]; `estimates` takes
    coordinates [R, p] to arrays [R] by parameter name. `limits` are those of the
    coordinates. `starts` takes scores [K] and M [K] to coordinates [s, p] to start
    from. `edges` names, for each coordinate, the parameter that it decides. `positive`
    are the parameters above 0 whatever the coordinates, and `growth` the one that is 0
    where M does not matter.
    """

    name: str
    formula: str
    curve: Callable[[Float[np.ndarray, "R p"], Float[np.ndarray, " K"]], np.ndarray]
    estimates: Callable[[Float[np.ndarray, "R p"]], dict[str, np.ndarray]]
    limits: tuple[tuple[float, float], ...]
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray]
    edges: tuple[str, ...]
    positive: tuple[str, ...] = ()
    growth: str | None = None

    @property
    def num_parameters(self) -> int:
        """How many numbers the scores must decide."""
        return len(self.limits)


def _power(u: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.exp(u[:, :1] - u[:, 1:2] * np.log(m))


def _power_estimates(u: np.ndarray) -> dict[str, np.ndarray]:
    return {"c": np.exp(u[:, 0]), "alpha": u[:, 1]}


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    slope = np.cov(x, y, bias=True)[0, 1] / np.var(x) if np.ptp(x) else 0.0
    return float(y.mean() - slope * x.mean()), float(slope)


def _positive(score: np.ndarray) -> np.ndarray:
    """For starts: what is not positive counts as a tenth of the smallest that is."""
    least = score[score > 0].min(initial=np.inf)
    return np.maximum(score, least / 10 if np.isfinite(least) else 1.0)


def _power_starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
    intercept, slope = _line(np.log(m), np.log(_positive(score)))
    flat = float(np.log(_positive(score)).mean())
    # The flat one can always be computed; a line may leave the scale at its end.
    return np.array([[intercept, -slope], [flat, 0.0]])


def _logarithmic_starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
    score = _positive(score)
    return np.array([_line(np.log(m), score), (float(score.mean()), 0.0)])


def _saturating(u: np.ndarray, m: np.ndarray) -> np.ndarray:
    first, last = np.exp(u[:, :1]), np.exp(u[:, 1:2])
    return last - (last - first) * m ** -np.exp(u[:, 2:3])


def _saturating_estimates(u: np.ndarray) -> dict[str, np.ndarray]:
    first, last = np.exp(u[:, 0]), np.exp(u[:, 1])
    return {"s_inf": last, "a": last - first, "b": np.exp(u[:, 2])}


def _saturating_starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
    score = _positive(score)
    ends = np.log(score[m == m.min()].mean()), np.log(score[m == m.max()].mean())
    flat = np.log(score).mean()
    return np.array(
        [[*ends, np.log(b)] for b in (0.1, 0.3, 0.7, 1.5)] + [[flat, flat, -0.5]]
    )


def _shifted(u: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.exp(u[:, :1] - u[:, 1:2] * _shifted_log(u, m))


def _shifted_log(u: np.ndarray, m: np.ndarray) -> np.ndarray:
    """ln((M + m0)/(1 + m0))."""
    return np.log1p((m - 1) * np.exp(-u[:, 2:3]))


def _shifted_estimates(u: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "c": np.exp(u[:, 0] + u[:, 1] * u[:, 2]),
        "alpha": u[:, 1],
        "m0": np.expm1(u[:, 2]),
    }


def _shifted_starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
    rows = []
    for shift in (-1.0, 0.0, 2.0, 4.0):
        u = np.array([[0.0, 0.0, shift]])
        intercept, slope = _line(_shifted_log(u, m)[0], np.log(_positive(score)))
        rows.append([intercept, -slope, shift])
    return np.array([*rows, [float(np.log(_positive(score)).mean()), 0.0, 0.0]])


def log_growth(balance: np.ndarray, m: np.ndarray) -> np.ndarray:
    """½·ln(Υ(M)/Υ(1)) for constant ψ with that n_bal (math §4)."""
    return 0.5 * (np.log(m) + np.log1p((m - 1) / (1 + balance)))


def _theory(u: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.exp(u[:, :1] + u[:, 1:2] * log_growth(np.exp(u[:, 2:3]), m))


def _theory_estimates(u: np.ndarray) -> dict[str, np.ndarray]:
    return {"c": np.exp(u[:, 0]), "beta": u[:, 1], "n_balance": np.exp(u[:, 2])}


def _theory_starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
    rows = []
    for balance in (0.1, 3.0, 30.0, 300.0):
        growth = log_growth(np.array(balance), m)
        intercept, slope = _line(growth, np.log(_positive(score)))
        rows.append([intercept, slope, np.log(balance)])
    return np.array([*rows, [float(np.log(_positive(score)).mean()), 0.0, 1.0]])


CONSTANT = Law(
    "constant",
    "S = c",
    lambda u, m: np.broadcast_to(np.exp(u[:, :1]), (len(u), len(m))),
    lambda u: {"c": np.exp(u[:, 0])},
    (LOG_SCALE,),
    lambda score, m: np.log(_positive(score)).mean()[None, None],
    ("c",),
    ("c",),
    None,
)
POWER = Law(
    "power",
    "S = c·M^(−α)",
    _power,
    _power_estimates,
    (LOG_SCALE, ALPHA),
    _power_starts,
    ("c", "alpha"),
    ("c",),
    "alpha",
)
LOGARITHMIC = Law(
    "logarithmic",
    "S = a + b·ln M",
    lambda u, m: u[:, :1] + u[:, 1:2] * np.log(m),
    lambda u: {"a": u[:, 0], "b": u[:, 1]},
    ((-np.inf, np.inf), (-np.inf, np.inf)),
    _logarithmic_starts,
    ("a", "b"),
    (),
    "b",
)
SATURATING = Law(
    "saturating",
    "S = S∞ − a·M^(−b)",
    _saturating,
    _saturating_estimates,
    (LOG_SCALE, LOG_SCALE, RATE),
    _saturating_starts,
    ("a", "s_inf", "b"),
    ("s_inf", "b"),
    "a",
)
SHIFTED = Law(
    "shifted",
    "S = c·(M + m0)^(−α)",
    _shifted,
    _shifted_estimates,
    (LOG_SCALE, ALPHA, SHIFT),
    _shifted_starts,
    ("c", "alpha", "m0"),
    ("c",),
    "alpha",
)
THEORY = Law(
    "theory",
    "S = c·(M(M + n)/(1 + n))^(β/2)",
    _theory,
    _theory_estimates,
    (LOG_SCALE, ALPHA, BALANCE),
    _theory_starts,
    ("c", "beta", "n_balance"),
    ("c", "n_balance"),
    "beta",
)
# The power law by the scores' own errors; `power` is fitted as the paper does (unless
# Huber's loss is asked for).
WEIGHTED_POWER = POWER._replace(name="power_weighted")
LAWS = {
    law.name: law for law in (CONSTANT, POWER, LOGARITHMIC, SATURATING, SHIFTED, THEORY)
}


MEASURED_THEORY = "theory_measured"


def measured_theory(upsilon: Mapping[int, float]) -> Law:
    """S(M) = c·(Υ(M)/Υ(1))^(β/2) with Υ as it was measured, which leaves c and β.

    `upsilon` has Υ(1) and Υ of every M that the law is asked for; ValueError names the
    M that it lacks, and values that are not above 0.
    """
    bad = [n for n, value in upsilon.items() if not (np.isfinite(value) and value > 0)]
    if bad or 1 not in upsilon:
        said = f"Υ({bad[0]}) is {upsilon[bad[0]]}" if bad else "Υ(1) is not there"
        raise ValueError(f"{said}, expected Υ above 0 at 1 and at each M of the scores")

    def growth(m: np.ndarray) -> np.ndarray:
        missing = [f"{n:g}" for n in m if n not in upsilon]
        if missing:
            raise ValueError(
                f"Υ was not measured at M = {', '.join(missing)}: leave these scores "
                "out, or measure longer branches"
            )
        return 0.5 * np.log([upsilon[int(n)] / upsilon[1] for n in m])

    def starts(score: np.ndarray, m: np.ndarray) -> np.ndarray:
        logs = np.log(_positive(score))
        return np.array([_line(growth(m), logs), (float(logs.mean()), 0.0)])

    return Law(
        MEASURED_THEORY,
        "S = c·(Υ(M)/Υ(1))^(β/2), Υ measured",
        lambda u, m: np.exp(u[:, :1] + u[:, 1:2] * growth(m)),
        lambda u: {"c": np.exp(u[:, 0]), "beta": u[:, 1]},
        (LOG_SCALE, ALPHA),
        starts,
        ("c", "beta"),
        ("c",),
        "beta",
    )


def on_scale(law: Law, upper: float) -> Law:
    """The law with values at its ends that are no larger than `upper`, where it has
    such coordinates (`saturating`: S(1) and S∞)."""
    if law.name != SATURATING.name or not np.isfinite(upper):
        return law
    ends = (LOG_SCALE[0], float(np.log(upper)))
    return law._replace(limits=(ends, ends, RATE))
