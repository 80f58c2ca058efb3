"""What the paper's theory makes of the dependency measures (v4 §3, App. A).

Everything here is arithmetic on numbers and curves. With

    A = 1 − ψ_equal        B = ψ_within − ψ_cross

the spread is Υ(n) = n·A + (n² − n)·B = (A − B)·n + B·n² (eq. 16), the divergence is
bounded by √2·h·√Υ(n) (eqs. 17 and 18), and n_balance = A/B − 1 (§3.5) parts the n where
the bound grows like √n from those where it grows like n. The ψ are those of Def. 1
(eqs. 15 and 29–31): `psi_within` is ψ_cross^AA as eq. 16 has it, or the symmetric
estimate ½(ψ_cross^AA + ψ_cross^BB) (§3.6); `psi_cross` is ψ_cross^AB.

    spread(psi_equal=[0.5, 0.5], psi_within=[nan, 0.4], psi_cross=[nan, 0.3])
    -> [0.5, 1.2]        1·0.5, then 2·0.5 + 2·0.1

Arguments are numbers or arrays of one shape (numbers go with any shape), results are
float64 arrays of that shape, of no axis for numbers. NaN stands for what is not
defined. Formulas marked † are reconstructed from the prose of the paper.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy import special

# What is taken: a number, or an array of them. What is given: an array.
Numbers = int | float | np.number | np.ndarray | Sequence[int | float]
Values = Float64[np.ndarray, "..."]

# Means of cosines in float32 may pass ±1 by their rounding; they are taken as ±1.
ROUNDING = 1e-5
# How many times n must lie below or above n_balance for √n or n to stand alone: there
# the other term of Υ is a third of it or less.
BORDER = 3.0


class Terms(NamedTuple):
    """The two weights of Υ(n) = n·gap + (n² − n)·excess (eq. 16): A and B of §3.5."""

    gap: Values
    excess: Values


class Regime(NamedTuple):
    """How the bound grows for constant ψ (§3.5, App. A.2 and A.3).

    label:     at the longest n: "sublinear", "transition" or "linear"; when B < 0
               "no bound beyond n = …", also where that n is beyond the longest;
               "no divergence" when Υ = 0 for all n
    ranges:    first and last n of each regime, of those that occur in 1…longest
    n_balance: A/B − 1, as `n_balance` gives it
    sentence:  the same in plain words
    """

    label: str
    ranges: dict[str, tuple[int, int]]
    n_balance: float
    sentence: str


def correlations(**psi: Numbers) -> tuple[Values, ...]:
    """The given ψ (Def. 1, eqs. 15 and 29–31) as float64 arrays of one shape; values
    beyond ±1 by float32 rounding are taken as ±1.

    Raises ValueError, naming the argument, for a value outside [−1, 1] or a shape that
    differs from that of the first array.
    """
    arrays = one_shape(**psi)
    for name, array in zip(psi, arrays, strict=True):
        outside = array[np.abs(array) > 1 + ROUNDING]
        if outside.size:
            raise ValueError(
                f"{name} holds {outside[0]:.6g}, expected values in [−1, 1]: it is a "
                "mean, or the largest, of cosines (NaN where there is none)"
            )
    return tuple(np.asarray(np.clip(array, -1, 1)) for array in arrays)


def one_shape(**numbers: Numbers) -> tuple[Values, ...]:
    """The arguments as float64 arrays, with numbers spread over the shape of the
    arrays; ValueError names an array whose shape is another than the first one's."""
    arrays = {name: np.asarray(value, np.float64) for name, value in numbers.items()}
    shaped = {name: array.shape for name, array in arrays.items() if array.ndim}
    first = next(iter(shaped), None)
    shape = shaped[first] if first else ()
    for name, found in shaped.items():
        if found != shape:
            raise ValueError(
                f"{name} has shape {found}, expected {shape} as {first}, or one number"
            )
    return tuple(np.broadcast_to(array, shape) for array in arrays.values())


def finite(name: str, value: float | int) -> float:
    """The value as a float; ValueError names it when it is infinite or NaN."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    return float(value)


def terms(psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers) -> Terms:
    """A = 1 − ψ_equal and B = ψ_within − ψ_cross of eq. 16."""
    equal, within, cross = correlations(
        psi_equal=psi_equal, psi_within=psi_within, psi_cross=psi_cross
    )
    return Terms(np.asarray(1 - equal), np.asarray(within - cross))


def spread(psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers) -> Values:
    """Υ(n) of eq. 16 from curves; the last axis is n = 1…N.

        Υ(n) = n(1 − ψ_equal(n)) + (n² − n)(ψ_within(n) − ψ_cross(n))

    Υ(1) is the linear term alone: one position has no pair, and what the cross measures
    hold there (NaN) is not read. Raises ValueError for a number, or no n at all.
    """
    gap, excess = terms(psi_equal, psi_within, psi_cross)
    if gap.ndim == 0 or gap.shape[-1] == 0:
        raise ValueError(
            f"psi_equal has shape {gap.shape}, expected curves over n = 1…N; for "
            "constant ψ use constant_spread"
        )
    n = np.arange(1, gap.shape[-1] + 1, dtype=np.float64)
    return _upsilon(n, gap, excess)


def constant_spread(
    n: Numbers, psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers
) -> Values:
    """Υ(n) of eq. 16 when ψ does not change with n: (A − B)·n + B·n² (§3.5)."""
    gap, excess = terms(psi_equal, psi_within, psi_cross)
    n, gap, excess = one_shape(n=_positions(n), gap=gap, excess=excess)
    return _upsilon(n, gap, excess)


def bound(upsilon: Numbers, *, largest_norm: float | int) -> Values:
    """√2·h·√Υ(n), which E[D(n)] does not pass (eqs. 17 and 18).

    `largest_norm` is h of eq. 14. NaN where Υ < 0: there the bound does not exist.
    """
    if not finite("largest_norm", largest_norm) >= 0:
        raise ValueError(f"largest_norm is {largest_norm}, expected 0 or more")
    return np.asarray(math.sqrt(2) * largest_norm * _root(upsilon))


def bound_limit(psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers) -> Values:
    """Up to which n the bound exists (constraint 39, Υ ≥ 0; cases of App. A.2).

        ψ_within ≥ ψ_cross: all n (infinity)
        ψ_within < ψ_cross: n ≤ 1 + (1 − ψ_equal)/(ψ_cross − ψ_within) †

    The second is Υ(n)/n = A + (n − 1)·B ≥ 0 solved for n. A real number; the last n is
    its floor. With curves it is the limit that the values at each n would give.
    """
    gap, excess = terms(psi_equal, psi_within, psi_cross)
    negative = excess < 0
    limit = 1 + gap / np.where(negative, -excess, 1)
    undefined = np.isnan(gap) | np.isnan(excess)
    return np.where(undefined, np.nan, np.where(negative, limit, np.inf))


def n_balance(psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers) -> Values:
    """The n at which both terms of Υ are equal: A/B − 1 (§3.5, ρ = 1).

    Infinite for B = 0 (the linear term rules for all n). Zero or less for B ≥ A > 0:
    the quadratic term rules from the start. Below −1 for B < 0: there is no such n, and
    `bound_limit` is −n_balance. NaN for A = B = 0. Curves give a curve.
    """
    gap, excess = terms(psi_equal, psi_within, psi_cross)
    flat = excess == 0
    ratio = gap / np.where(flat, 1, excess)
    ratio = np.where(flat, np.where(gap == 0, np.nan, np.inf), ratio)
    return np.asarray(np.where(np.isnan(gap), np.nan, ratio) - 1)


def balance(
    n: Numbers, psi_equal: Numbers, psi_within: Numbers, psi_cross: Numbers
) -> Values:
    """ρ(n) = (A/B − 1)/n, the linear term of Υ over the quadratic one (§3.5).

    Above 1 the bound grows like √n, below 1 like n. With curves, n = 1…N beside them.
    """
    middle = n_balance(psi_equal, psi_within, psi_cross)
    n, middle = one_shape(n=_positions(n), n_balance=middle)
    return np.asarray(middle / n)


def regime(
    psi_equal: float | int,
    psi_within: float | int,
    psi_cross: float | int,
    *,
    longest: int,
    border: float | int = BORDER,
) -> Regime:
    """The regimes of constant ψ over n = 1…longest, in words (§3.5, App. A.2 and A.3).

    sublinear: n < n_balance / border, or B = 0, or B < 0 as far as Υ ≥ 0
    linear:    n > n_balance · border
    transition: between
    no bound:  n > `bound_limit`, only when B < 0
    """
    if longest < 1:
        raise ValueError(f"longest is {longest}, expected the last n, 1 or more")
    if not finite("border", border) >= 1:
        raise ValueError(f"border is {border}, expected a factor of 1 or more")
    values = {"psi_equal": psi_equal, "psi_within": psi_within, "psi_cross": psi_cross}
    for name, value in values.items():
        finite(name, value)
    gap, excess = (float(term) for term in terms(**values))
    middle = float(n_balance(**values))
    if gap == 0 and excess == 0:
        # Not a growth at all, so it is none of the three.
        return Regime(
            "no divergence",
            {},
            middle,
            "ψ_equal is 1 and B is 0: the branches are alike and Υ is 0 for every n.",
        )
    if excess < 0:
        return _without_bound(float(bound_limit(**values)), middle, longest)
    if excess == 0:
        sentence = "B is 0: the bound grows like √n for every n (sublinear)."
        return Regime("sublinear", {"sublinear": (1, longest)}, middle, sentence)
    first_linear = max(1, math.floor(middle * border) + 1)
    last_sublinear = min(math.ceil(middle / border) - 1, longest)
    ranges = {
        "sublinear": (1, last_sublinear),
        "transition": (max(1, last_sublinear + 1), min(first_linear - 1, longest)),
        "linear": (first_linear, longest),
    }
    ranges = {name: ends for name, ends in ranges.items() if ends[0] <= ends[1]}
    label = list(ranges)[-1]
    if middle <= 0:
        sentence = (
            f"n_balance is {middle:.4g}, below any n: the quadratic term of Υ rules "
            "from the start and the bound grows like n (linear)."
        )
    else:
        # Ends that are not cut off at the longest n, and only of ranges that hold an n.
        below = math.ceil(middle / border) - 1
        parts = [f"like √n for n ≤ {below:,}"] if below >= 1 else []
        parts += [f"like n for n ≥ {first_linear:,}" if first_linear > 1 else "like n"]
        size = f"{middle:.4g}" if middle < 1000 else f"{middle:,.0f}"
        sentence = (
            f"n_balance is {size}: the bound grows {', '.join(parts)}; at n = "
            f"{longest:,}, the last one, this is {label}."
        )
    return Regime(label, ranges, middle, sentence)


def exponent(upsilon: Numbers, *, beta: float | int) -> Values:
    """α(n) = −(β/2)·log_n(Υ(n)/Υ(1)), so that S(n) = c/n^α(n) (App. A.3, general form).

    The last axis of `upsilon` is n = 1…N. NaN at n = 1, where log_n is not defined, and
    where Υ(n) or Υ(1) is not positive.
    """
    upsilon = np.asarray(upsilon, np.float64)
    if upsilon.ndim == 0 or upsilon.shape[-1] == 0:
        raise ValueError(
            f"upsilon has shape {upsilon.shape}, expected a curve over n = 1…N"
        )
    logs = np.log(np.where(upsilon > 0, upsilon, np.nan))
    log_n = np.log(np.arange(1, upsilon.shape[-1] + 1))
    log_n[0] = np.nan
    return np.asarray(-finite("beta", beta) / 2 * (logs - logs[..., :1]) / log_n)


def constant_exponent(n: Numbers, *, n_balance: Numbers, beta: float | int) -> Values:
    """α(n) for constant ψ (App. A.3).

        B ≠ 0: α(n) = (β/2)·log_n((1 + n_balance)/(n + n_balance)) − β/2
        B = 0: α(n) = −β/2             (n_balance infinite)

    At n = 1 it is its limit −(β/2)(1 + 1/(1 + n_balance)) †; for n → ∞ it tends to −β.
    Between it falls with n when β > 0 and n_balance > 0. n may be any real number from
    1 on. For B < 0 (n_balance < −1) NaN from the n on where Υ is no more positive; NaN
    throughout for n_balance = −1, that is ψ_equal = 1, where c = 0.
    """
    n, middle = one_shape(n=_positions(n), n_balance=n_balance)
    start = np.where(middle == -1, np.nan, 1 + middle)
    # (n + n_balance)/(1 + n_balance) = 1 + (n − 1)/(1 + n_balance): exact near n = 1
    # and for an infinite n_balance.
    step = (n - 1) / start
    above = np.where(step > -1, step, np.nan)
    growth = np.where(n == 1, 1 / start, np.log1p(above) / _log_or_one(n))
    return np.asarray(-finite("beta", beta) / 2 * (1 + growth))


def score(upsilon: Numbers, *, kappa: float | int, beta: float | int) -> Values:
    """S(n) = κ·(√Υ(n))^β (§3.5). NaN where Υ < 0; infinite where Υ = 0 and β < 0."""
    if not finite("kappa", kappa) > 0:
        raise ValueError(f"kappa is {kappa}, expected more than 0, as scores are")
    with np.errstate(divide="ignore"):
        return np.asarray(kappa * _root(upsilon) ** finite("beta", beta))


def score_at_one(
    psi_equal: Numbers, *, kappa: float | int, beta: float | int
) -> Values:
    """c = κ(1 − ψ_equal(1))^{β/2}, the score of one token (App. A.3: S(n) = c/n^α(n)).

    `psi_equal` is ψ_equal at n = 1.
    """
    (equal,) = correlations(psi_equal=psi_equal)
    return score(1 - equal, kappa=kappa, beta=beta)


def expected_positive_cosine(d: Numbers) -> Values:
    """E[(cos)_+] of two independent, isotropic unit vectors in R^d (spec math.md §5):
    Γ(d/2) / (2√π·Γ((d + 1)/2)). What ψ of Def. 1 is where states have nothing in
    common.

    d = 1: 1/2. d = 2: 1/π. d = 3: 1/4.
    """
    width = np.asarray(d, np.float64)
    if not np.all((width >= 1) & (width == np.floor(width)) & np.isfinite(width)):
        raise ValueError(f"d is {d}, expected the width of the states: 1, 2, 3, …")
    # The beta function is the quotient of gammas without their cancellation.
    return np.asarray(special.beta(width / 2, 0.5) / (2 * math.pi))


def _positions(n: Numbers) -> Values:
    n = np.asarray(n, np.float64)
    wrong = n[~((n >= 1) & np.isfinite(n))]
    if wrong.size:
        raise ValueError(f"n holds {wrong[0]:.6g}, expected positions from 1 on")
    return n


def _upsilon(
    n: Values,
    gap: Values,
    excess: Values,
) -> Values:
    # Not 0·excess: at n = 1 the cross measures are NaN.
    pairs = np.where(n == 1, 0, (n * n - n) * excess)
    return np.asarray(n * gap + pairs)


def _root(upsilon: Numbers) -> Values:
    upsilon = np.asarray(upsilon, np.float64)
    return np.asarray(np.sqrt(np.where(upsilon >= 0, upsilon, np.nan)))


def _log_or_one(n: Values) -> Values:
    return np.where(n == 1, 1.0, np.log(n))


def _without_bound(limit: float, middle: float, longest: int) -> Regime:
    """B < 0: sublinear as far as Υ ≥ 0, nothing after (constraint 39, App. A.2)."""
    # 0.3/0.1 is a last bit less than 3, and n = 4 has its bound all the same.
    last = math.floor(limit * (1 + 1e-12))
    ranges = {"sublinear": (1, min(last, longest)), "no bound": (last + 1, longest)}
    ranges = {name: ends for name, ends in ranges.items() if ends[0] <= ends[1]}
    label = f"no bound beyond n = {last:,}"
    slow = "it grows more slowly than √n"
    if last > longest:
        sentence = (
            f"B is below 0: Υ would be negative beyond n = {last:,}. The bound would "
            f"end there, beyond what was measured (n ≤ {longest:,}); so far {slow}."
        )
    else:
        place = "beyond that" if last < longest else "just there"
        sentence = (
            f"B is below 0: Υ is negative beyond n = {last:,}, where the bound does "
            f"not exist (the last n, {longest:,}, is {place}); as far as it exists "
            f"{slow}."
        )
    return Regime(label, ranges, middle, sentence)
