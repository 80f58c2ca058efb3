"""The cross sums by XLA: one strip of rows at a time, triangles above left out.

A strip of T rows meets all columns up to its end: four matrix products of [T, d] with
[d, ≤ n], whose positive parts are summed at once. So at most T·n cosines of one pair
are there at a time, of the n² of its Gram matrices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtscale_jax.divergence.kernels.rows import Branches, CrossRows, RowReduction

TILE = 256
MAX_STRIPS = 16  # each is laid out in the program: more take longer to compile


def cross_rows(
    branches: Branches,
    *,
    reduction: RowReduction,
    tile: int | None = None,
    on_cpu: bool = False,
) -> CrossRows:
    """The rows of all pairs (see `CrossRows`), in float32.

    `tile` is T; by default 256, and n/16 where that is more. float32 states are
    multiplied in full float32 on every device. `on_cpu` takes pairs one after another
    and bfloat16 states as float32, which is faster there; elsewhere all pairs are one
    batch of products.
    """
    n = branches.a.shape[1]
    tile = tile or max(TILE, -(-n // MAX_STRIPS))
    if not on_cpu:
        return _rows(branches, reduction, tile)
    wide = Branches(*(x.astype(jnp.float32) for x in branches))

    def one(pair: Branches) -> CrossRows:
        rows = _rows(Branches(*(x[None] for x in pair)), reduction, tile)
        return CrossRows(*(row[0] for row in rows))

    return jax.lax.map(one, wide)


def _rows(branches: Branches, reduction: RowReduction, tile: int) -> CrossRows:
    n = branches.a.shape[1]
    strips = [
        _strip(branches, start, min(start + tile, n), reduction)
        for start in range(0, n, tile)
    ]
    joined = (jnp.concatenate(rows, axis=1) for rows in zip(*strips, strict=True))
    return CrossRows(*joined)


def _strip(
    branches: Branches, start: int, end: int, reduction: RowReduction
) -> CrossRows:
    """Rows `start` to `end` against all columns up to `end`."""
    earlier = jnp.arange(end) < jnp.arange(start, end)[:, None]

    def met(x: Array, inv_x: Array, y: Array, inv_y: Array) -> Float[Array, "B rows"]:
        """Over j < i of (cos(x_i, y_j))_+."""
        products = jnp.einsum(
            "Bid,Bjd->Bij",
            x[:, start:end],
            y[:, :end],
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        cosines = jnp.where(earlier, jnp.maximum(products, 0) * inv_y[:, None, :end], 0)
        reduced = cosines.max(axis=2) if reduction == "max" else cosines.sum(axis=2)
        return reduced * inv_x[:, start:end]

    a, b, inv_a, inv_b = branches
    ab, ba = met(a, inv_a, b, inv_b), met(b, inv_b, a, inv_a)
    return CrossRows(
        met(a, inv_a, a, inv_a),
        met(b, inv_b, b, inv_b),
        jnp.maximum(ab, ba) if reduction == "max" else ab + ba,
    )
