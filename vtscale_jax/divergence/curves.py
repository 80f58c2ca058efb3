"""D(n) and the dependency measures of pairs of branches, for every n at once.

    curves = pair_curves(a, b, lengths, reduction="mean")
    curves.D[:, 9], curves.psi_cross_aa[:, 9]           # of each pair, at n = 10

A and B are the hidden states of two branches at the n positions after their common
prefix (paper §3, Def. 1, eqs. 15 and 29–31; spec math.md §1–2).
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.divergence.kernels import tiled
from vtscale_jax.divergence.kernels.prefix import inverse, linear, prefix_dots
from vtscale_jax.divergence.kernels.reference import reference_curves
from vtscale_jax.divergence.kernels.rows import Branches, CrossKernel, CrossRows

Reduction = Literal["mean", "max", "signed"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "max", "signed")
KERNELS = ("auto", "reference", "xla", "pallas")

_EXACT = 126  # powers of two that float32 holds with their inverse


class Curves(NamedTuple):
    """Of every pair, for n = 1…N (index n − 1); NaN beyond the pair's length.

    D:             ‖Σ_{i≤n} (a_i − b_i)‖
    psi_equal:     of cos(a_i, b_i), i ≤ n
    psi_cross_aa:  of cos(a_i, a_j), i ≠ j ≤ n; NaN at n = 1, where there is no pair
    psi_cross_bb:  of cos(b_i, b_j)
    psi_cross_ab:  of cos(a_i, b_j)
    psi_delta:     mean of cos(Δ_i, Δ_j), i ≠ j, Δ_i = a_i − b_i (v1; always signed)
    norm:          the largest ‖a_i‖ or ‖b_i‖ of the pair (h of eq. 14)

    A cosine with a zero vector is 0. float32.
    """

    D: Float[Array, "B n"]
    psi_equal: Float[Array, "B n"]
    psi_cross_aa: Float[Array, "B n"]
    psi_cross_bb: Float[Array, "B n"]
    psi_cross_ab: Float[Array, "B n"]
    psi_delta: Float[Array, "B n"]
    norm: Float[Array, " B"]


class BranchError(ValueError):
    """Arrays that are not two branches."""


def pair_curves(
    a: Float[Array | np.ndarray, "..."],
    b: Float[Array | np.ndarray, "..."],
    lengths: Int[Array | np.ndarray, "..."] | None = None,
    *,
    reduction: Reduction = "mean",
    kernel: str = "auto",
) -> Curves:
    """The curves of B pairs whose branches, a and b [B, n, d], are both `lengths` [B]
    long (default: n).

    `reduction` is of the positive parts (·)_+ of the cosines, "mean" (§3.6) or "max"
    (Def. 1's worst case), or "signed": the mean without positive part. `kernel` is
    "xla" (tiles), "pallas" (fused; interpreted on CPU, which is slow), "reference"
    (float64, enumerates; for checks) or "auto": pallas on TPU, xla elsewhere. Products
    are of the inputs' dtype, float32 or bfloat16, and everything else is float32.

    Raises BranchError for arrays that do not fit together.
    """
    lengths = _checked(a, b, lengths, reduction, kernel)
    if kernel == "reference":
        values = reference_curves(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            np.asarray(lengths),
            reduction=reduction,
        )
        return Curves(*(jnp.asarray(value, jnp.float32) for value in values))
    return jitted_curves(
        jnp.asarray(a),
        jnp.asarray(b),
        jnp.asarray(lengths),
        reduction=reduction,
        kernel=kernel,
        platform=jax.default_backend(),
    )


@functools.partial(jax.jit, static_argnames=("reduction", "kernel", "platform"))
def jitted_curves(
    a: Float[Array, "B n d"],
    b: Float[Array, "B n d"],
    lengths: Int[Array, " B"],
    *,
    reduction: Reduction,
    kernel: str,
    platform: str,
) -> Curves:
    """`pair_curves` as one program for `platform` ("cpu", "gpu" or "tpu")."""
    return traced_curves(
        a, b, lengths, reduction=reduction, cross_rows=choose(kernel, platform)
    )


def choose(kernel: str, platform: str) -> CrossKernel:
    """The kernel of that name for "cpu", "gpu" or "tpu"; "auto" is the fused one on
    TPU and XLA's elsewhere."""
    if kernel == "auto":
        kernel = "pallas" if platform == "tpu" else "xla"
    if kernel == "xla":
        return functools.partial(tiled.cross_rows, on_cpu=platform == "cpu")
    if kernel != "pallas":
        raise BranchError(f"kernel is {kernel!r}, expected auto, xla or pallas here")
    # Only who asks for it waits for Pallas to be loaded.
    from vtscale_jax.divergence.kernels import pallas

    backend = "gpu" if platform in ("gpu", "cuda") else "tpu"
    return functools.partial(
        pallas.cross_rows, backend=backend, interpret=platform == "cpu"
    )


def traced_curves(
    a: Float[Array, "B n d"],
    b: Float[Array, "B n d"],
    lengths: Int[Array, " B"],
    *,
    reduction: Reduction,
    cross_rows: CrossKernel,
) -> Curves:
    """The curves as a function to be traced, in O(n²d) work and O(n·d) memory."""
    n = a.shape[1]
    there = jnp.arange(n) < lengths[:, None]
    a, b, exponent = _scaled(a, b, there)
    parts = linear(a, b)
    branches = Branches(a, b, inverse(parts.norm_a), inverse(parts.norm_b))

    numbers = jnp.arange(1, n + 1, dtype=jnp.float32)
    pairs = numbers * (numbers - 1)
    equal = parts.equal
    if reduction == "signed":
        rows = _signed_rows(branches)
    else:
        equal = jnp.maximum(equal, 0)
        rows = cross_rows(branches, reduction="max" if reduction == "max" else "sum")
    if reduction == "max":
        running = jax.lax.cummax
        psi_equal = running(equal, axis=1)
        cross = [running(row, axis=1) for row in rows]
    else:
        psi_equal = jnp.cumsum(equal, axis=1) / numbers
        within = 2 / jnp.maximum(pairs, 1)  # g(i, j) and g(j, i) are the same there
        between = 1 / jnp.maximum(pairs, 1)
        cross = [
            jnp.cumsum(row, axis=1) * weight
            for row, weight in zip(rows, (within, within, between), strict=True)
        ]
    psi_delta = jnp.cumsum(parts.delta, axis=1) * 2 / jnp.maximum(pairs, 1)
    crossing = there & (pairs > 0)
    return Curves(
        D=jnp.where(there, jnp.ldexp(parts.distance, exponent), jnp.nan),
        psi_equal=jnp.where(there, psi_equal, jnp.nan),
        psi_cross_aa=jnp.where(crossing, cross[0], jnp.nan),
        psi_cross_bb=jnp.where(crossing, cross[1], jnp.nan),
        psi_cross_ab=jnp.where(crossing, cross[2], jnp.nan),
        psi_delta=jnp.where(crossing, psi_delta, jnp.nan),
        norm=jnp.ldexp(
            jnp.maximum(parts.norm_a, parts.norm_b).max(axis=1), exponent[:, 0]
        ),
    )


def _scaled(
    a: Float[Array, "B n d"], b: Float[Array, "B n d"], there: Bool[Array, "B n"]
) -> tuple[Float[Array, "B n d"], Float[Array, "B n d"], Int[Array, "B 1"]]:
    """Both branches times 2^−exponent, which is exact, and 0 beyond the length.

    The largest component of a pair is then about 1: no product of two overflows. What
    stands beyond the length may be anything, also NaN.
    """
    a, b = (jnp.where(there[:, :, None], x, 0) for x in (a, b))
    largest = jnp.maximum(jnp.abs(a), jnp.abs(b)).max(axis=(1, 2)).astype(jnp.float32)
    exponent = jnp.clip(jnp.frexp(largest)[1], -_EXACT, _EXACT)
    scale = jnp.ldexp(jnp.ones_like(largest), -exponent)[:, None, None]
    return a * scale.astype(a.dtype), b * scale.astype(b.dtype), exponent[:, None]


def _signed_rows(branches: Branches) -> CrossRows:
    """The rows without positive part: Σ_{j<i} a_i·a_j = a_i·Σ_{j<i} a_j, so that no
    Gram matrix is needed."""
    a = branches.a.astype(jnp.float32) * branches.inv_a[:, :, None]
    b = branches.b.astype(jnp.float32) * branches.inv_b[:, :, None]
    return CrossRows(
        prefix_dots(a, a), prefix_dots(b, b), prefix_dots(a, b) + prefix_dots(b, a)
    )


def _checked(
    a: Float[Array | np.ndarray, "..."],
    b: Float[Array | np.ndarray, "..."],
    lengths: Int[Array | np.ndarray, "..."] | None,
    reduction: str,
    kernel: str,
) -> Int[Array | np.ndarray, " B"]:
    if a.ndim != 3 or a.shape != b.shape or 0 in a.shape:
        raise BranchError(
            f"a and b have shapes {a.shape} and {b.shape}, expected the same [B, n, d] "
            "with no axis of 0: cut both branches of a pair to the shorter one"
        )
    if reduction not in REDUCTIONS:
        raise BranchError(f"reduction is {reduction!r}, expected one of {REDUCTIONS}")
    if kernel not in KERNELS:
        raise BranchError(f"kernel is {kernel!r}, expected one of {KERNELS}")
    if lengths is None:
        return np.full(a.shape[0], a.shape[1], np.int32)
    if lengths.shape != a.shape[:1]:
        raise BranchError(
            f"lengths has shape {lengths.shape}, expected ({a.shape[0]},): one for "
            "each pair"
        )
    found = np.asarray(lengths)
    wrong = np.flatnonzero((found < 1) | (found > a.shape[1]))
    if len(wrong):
        raise BranchError(
            f"lengths[{wrong[0]}] is {found[wrong[0]]}, expected 1 to {a.shape[1]}"
        )
    return lengths
