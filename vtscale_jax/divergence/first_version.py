"""The bound and the thresholds of the paper's first version (arXiv 2412.18387v1).

It looks at the differences Δ_i = h_i^A − h_i^B alone: ψ_Δ(n) is the mean cosine of
their angles over i ≠ j ≤ n, and

    D(n) ≤ σ·√(n + (n² − n)·ψ_Δ(n))

which grows like √n as long as n·ψ_Δ is small, and like n afterwards (spec math.md §6).
Its figures are part of the record. Formulas marked † are reconstructed.
"""

import numpy as np

from vtscale_jax.divergence.theory import (
    Numbers,
    Values,
    correlations,
    finite,
    one_shape,
)


def delta_spread(psi_delta: Numbers) -> Values:
    """n + (n² − n)·ψ_Δ(n) of v1 (spec math.md §6) from a curve; the last axis is n.

    1 at n = 1, where there is no pair and ψ_Δ is NaN.
    """
    (psi,) = correlations(psi_delta=psi_delta)
    if psi.ndim == 0 or psi.shape[-1] == 0:
        raise ValueError(
            f"psi_delta has shape {psi.shape}, expected a curve over n = 1…N"
        )
    n = np.arange(1, psi.shape[-1] + 1, dtype=np.float64)
    return np.asarray(n + np.where(n == 1, 0, (n * n - n) * psi))


def delta_bound(psi_delta: Numbers, *, sigma: float | int) -> Values:
    """σ·√(n + (n² − n)·ψ_Δ(n)), v1's bound on D(n) (spec math.md §6); NaN where what is
    under the root is negative."""
    inside = delta_spread(psi_delta)
    root = np.sqrt(np.where(inside >= 0, inside, np.nan))
    return np.asarray(finite("sigma", sigma) * root)


def linear_ratio(n: Numbers, psi_delta: Numbers) -> Values:
    """r(n) = √(n + (n² − n)ψ)/(n√ψ), the bound over its linear part n·√ψ (v1,
    Threshold 1; spec math.md §6).

    It falls to 1 as n grows. Computed as √(1 + (1 − ψ)/(n·ψ)), which is the same.
    Infinite for ψ = 0 and NaN for ψ < 0, where there is no linear part.
    """
    (psi,) = correlations(psi_delta=psi_delta)
    n, psi = one_shape(n=n, psi_delta=psi)
    if not np.all(n >= 1):
        raise ValueError("n holds values below 1 or NaN, expected positions from 1 on")
    part = (1 - psi) / (n * np.where(psi > 0, psi, 1))
    defined = np.where(psi > 0, np.sqrt(1 + part), np.where(psi == 0, np.inf, np.nan))
    return np.asarray(defined)


def ratio_threshold(psi_delta: Numbers, *, ratio: float | int) -> Values:
    """The n at which `linear_ratio` has come down to `ratio`, for constant ψ_Δ:
    (1 − ψ)/(ψ·(r² − 1)) (v1, Threshold 1 †: r² = 1 + (1 − ψ)/(n·ψ) solved for n; spec
    math.md §6).

    A real number, below 1 when the ratio is lower than that from the start. Infinite
    for ψ = 0 and NaN for ψ < 0. ψ = 0.5, r = √2 gives 1.
    """
    if not finite("ratio", ratio) > 1:
        raise ValueError(
            f"ratio is {ratio}, expected more than 1: the bound stays above its linear "
            "part for every n"
        )
    (psi,) = correlations(psi_delta=psi_delta)
    reached = (1 - psi) / (np.where(psi > 0, psi, 1) * (ratio * ratio - 1))
    return np.where(psi > 0, reached, np.where(psi == 0, np.inf, np.nan))


def gradient_threshold(psi_delta: Numbers, *, level: float | int) -> int | None:
    """The first n from which on |ψ_Δ(n + 1) − ψ_Δ(n)| ≤ level, for every later n of
    the curve (v1, Threshold 2; spec math.md §6); None when the last step is still
    larger.

    Undefined values at the end of the curve are left out; one in the middle counts as a
    step that is too large. The curve ends somewhere: a step after its end is not known.
    """
    if not finite("level", level) >= 0:
        raise ValueError(f"level is {level}, expected 0 or more")
    (psi,) = correlations(psi_delta=psi_delta)
    if psi.ndim != 1:
        raise ValueError(f"psi_delta has shape {psi.shape}, expected one curve [N]")
    defined = np.flatnonzero(~np.isnan(psi))
    steps = np.abs(np.diff(psi[: defined[-1] + 1])) if defined.size else np.zeros(0)
    if steps.size == 0:
        return None
    too_large = np.flatnonzero(~(steps <= level))  # NaN is not small
    first = int(too_large[-1]) + 1 if too_large.size else 0
    return first + 1 if first < steps.size else None
