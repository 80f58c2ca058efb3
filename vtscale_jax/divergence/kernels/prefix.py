"""What needs no Gram matrix: norms, equal positions, running sums. O(n·d) work.

Rows are taken in tiles, so that each is read once while it is in the cache. Within a
tile a running sum is a small triangular matrix product; between tiles one vector is
carried. All of it is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 16  # rows at a time
_FULL = jax.lax.Precision.HIGHEST


class Linear(NamedTuple):
    """Of every position i: ‖a_i‖, ‖b_i‖, cos(a_i, b_i), ‖Σ_{j≤i} Δ_j‖ and
    Σ_{j<i} cos(Δ_i, Δ_j), with Δ = a − b and cosines of zero vectors 0."""

    norm_a: Float[Array, "B n"]
    norm_b: Float[Array, "B n"]
    equal: Float[Array, "B n"]
    distance: Float[Array, "B n"]
    delta: Float[Array, "B n"]


def linear(a: Float[Array, "B n d"], b: Float[Array, "B n d"]) -> Linear:
    """All of `Linear` in one reading of the states."""

    def of_tile(before: tuple, rows: tuple) -> tuple[tuple, Linear]:
        (a, b), (sum_before, unit_before) = rows, before
        norm_a, norm_b = _norm(a), _norm(b)
        equal = jnp.sum(a * b, axis=2) * inverse(norm_a) * inverse(norm_b)
        delta = a - b
        unit = delta * inverse(_norm(delta))[:, :, None]
        sums = sum_before[:, None] + _earlier(delta)
        units = unit_before[:, None] + _earlier(unit)
        found = Linear(
            norm_a,
            norm_b,
            # Of equal branches it is 1, not 1 + 1e-7.
            jnp.clip(equal, -1, 1),
            _norm(sums + delta),
            jnp.sum(unit * units, axis=2),
        )
        return (sums[:, -1] + delta[:, -1], units[:, -1] + unit[:, -1]), found

    start = jnp.zeros((a.shape[0], a.shape[2]), jnp.float32)
    return _over_tiles(of_tile, (start, start), (a, b))


def prefix_dots(
    x: Float[Array, "B n d"], y: Float[Array, "B n d"]
) -> Float[Array, "B n"]:
    """x_i·Σ_{j<i} y_j for every i."""

    def of_tile(before: Array, rows: tuple) -> tuple[Array, Array]:
        x, y = rows
        sums = before[:, None] + _earlier(y)
        return sums[:, -1] + y[:, -1], jnp.sum(x * sums, axis=2)

    start = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    return _over_tiles(of_tile, start, (x, y))


def inverse(norm: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """1/‖·‖, and 0 of the zero vector."""
    return jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))


def _norm(x: Float[Array, "B n d"]) -> Float[Array, "B n"]:
    return jnp.sqrt(jnp.sum(x * x, axis=2))


def _earlier(x: Float[Array, "B n d"]) -> Float[Array, "B n d"]:
    """Σ_{j<i} x_j within a tile."""
    tri = jnp.tri(x.shape[1], k=-1)
    return jnp.einsum("ij,Bjd->Bid", tri, x, precision=_FULL)


def _over_tiles(of_tile: Callable, start, arrays: tuple[Array, ...]):
    """`of_tile(carry, rows)` for tile after tile of the arrays; what it gives for the
    rows, joined."""
    B, n, _ = arrays[0].shape
    tile = min(TILE, n)
    steps = -(-n // tile)
    short = steps * tile - n
    if short:
        arrays = tuple(jnp.pad(x, ((0, 0), (0, short), (0, 0))) for x in arrays)

    def step(carry, begin: Array):
        rows = tuple(
            jax.lax.dynamic_slice_in_dim(x, begin, tile, axis=1).astype(jnp.float32)
            for x in arrays
        )
        return of_tile(carry, rows)

    _, found = jax.lax.scan(step, start, jnp.arange(steps) * tile)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :n],  # was [steps, B, tile]
        found,
    )
