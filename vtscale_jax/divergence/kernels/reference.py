"""The definitions as they stand, in float64: every n by itself, every pair of i and j.

O(n³d) work and O(n²) memory. What the fast kernels are checked against.
"""

import numpy as np
from jaxtyping import Float, Int


def reference_curves(
    a: Float[np.ndarray, "B n d"],
    b: Float[np.ndarray, "B n d"],
    lengths: Int[np.ndarray, " B"],
    *,
    reduction: str,
) -> tuple[Float[np.ndarray, "..."], ...]:
    """D, ψ_equal, ψ_cross of AA, BB and AB, ψ_Δ (each [B, n]) and the largest norm [B],
    as `curves.Curves` has them, by enumeration (spec math.md §1, §2 and §6)."""
    B, n, _ = a.shape
    found = np.full((6, B, n), np.nan)
    norms = np.zeros(B)
    for pair in range(B):
        for m in range(1, lengths[pair] + 1):
            found[:, pair, m - 1] = _at(a[pair, :m], b[pair, :m], reduction)
        kept = np.concatenate([a[pair, : lengths[pair]], b[pair, : lengths[pair]]])
        norms[pair] = np.linalg.norm(kept, axis=1).max()
    return (*found, norms)


def _at(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], reduction: str
) -> list[float]:
    """The six numbers at one n."""
    difference = a - b
    ab = cosines(a, b)
    off = ~np.eye(len(a), dtype=bool)  # i ≠ j
    return [
        float(np.linalg.norm(difference.sum(axis=0))),
        _reduce(np.diag(ab), reduction),
        _reduce(cosines(a, a)[off], reduction),
        _reduce(cosines(b, b)[off], reduction),
        _reduce(ab[off], reduction),
        _reduce(cosines(difference, difference)[off], "signed"),
    ]


def cosines(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """cos(x_i, y_j) of all i and j; 0 where one of them is the zero vector."""

    def unit(v: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(v, axis=1, keepdims=True)
        return np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)

    return unit(x) @ unit(y).T


def _reduce(values: Float[np.ndarray, " k"], reduction: str) -> float:
    """NaN over no values: a cross measure at n = 1."""
    if len(values) == 0:
        return float("nan")
    if reduction == "signed":
        return float(values.mean())
    positive = np.maximum(values, 0)
    return float(positive.max() if reduction == "max" else positive.mean())
