"""The cross sums by XLA: strips of rows against earlier strips, two by two.

A strip holds T rows of A and the same T rows of B, one above the other. Its product
with an earlier strip is a [2T, 2T] matrix with all four kinds of cosines; positive
parts are summed at once. Strips above the diagonal are left out, so no more than 4T² of
the n² cosines of a Gram matrix are there at a time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtscale_jax.divergence.kernels.rows import Branches, CrossRows, RowReduction

# The rows of a strip, at least. Smaller ones compute less in vain on the diagonal; on
# accelerators only larger ones are worth a launch.
CPU_TILE, TILE = 64, 256
MAX_STRIPS = 16  # their pairs are laid out in the program: more take long to compile


def cross_rows(
    branches: Branches,
    *,
    reduction: RowReduction,
    tile: int | None = None,
    on_cpu: bool = False,
) -> CrossRows:
    """The rows of all pairs (see `CrossRows`), in float32.

    `tile` is T; by default 256 (64 on CPU), and n/16 where that is more. float32 states
    are multiplied in full float32 on every device. `on_cpu` takes pairs one after
    another and bfloat16 states as float32, which is faster there; elsewhere all pairs
    are one batch of products.
    """
    n = branches.a.shape[1]
    tile = tile or max(CPU_TILE if on_cpu else TILE, -(-n // MAX_STRIPS))
    if not on_cpu:
        return _rows(branches, reduction, tile)
    wide = Branches(*(x.astype(jnp.float32) for x in branches))

    def one(pair: Branches) -> CrossRows:
        rows = _rows(Branches(*(x[None] for x in pair)), reduction, tile)
        return CrossRows(*(row[0] for row in rows))

    return jax.lax.map(one, wide)


def _rows(branches: Branches, reduction: RowReduction, tile: int) -> CrossRows:
    n = branches.a.shape[1]
    cuts = [(start, min(start + tile, n)) for start in range(0, n, tile)]
    states, inverses = (
        [jnp.concatenate([x[:, i:j], y[:, i:j]], axis=1) for i, j in cuts]
        for x, y in (
            (branches.a, branches.b),
            (branches.inv_a, branches.inv_b),
        )
    )
    join = jnp.maximum if reduction == "max" else jnp.add
    strips = []
    for later in range(len(cuts)):
        found = None
        for earlier in range(later + 1):
            block = _met(
                states[later],
                states[earlier],
                inverses[earlier],
                reduction,
                diagonal=later == earlier,
            )
            found = block if found is None else join(found, block)
        assert found is not None
        weighed = found * inverses[later][:, :, None]
        aa_ab, ba_bb = jnp.split(weighed, 2, axis=1)
        strips.append(
            (aa_ab[..., 0], ba_bb[..., 1], join(aa_ab[..., 1], ba_bb[..., 0]))
        )
    joined = (jnp.concatenate(rows, axis=1) for rows in zip(*strips, strict=True))
    return CrossRows(*joined)


def _met(
    later: Float[Array, "B R d"],
    earlier: Float[Array, "B C d"],
    inverse: Float[Array, "B C"],
    reduction: RowReduction,
    *,
    diagonal: bool,
) -> Float[Array, "B R 2"]:
    """Of each row of a strip, over the A half and over the B half of an earlier strip
    (or, `diagonal`, over what stands before the row in its own): sums or maxima of
    positive products times `inverse`."""
    B, rows, _ = later.shape
    products = jnp.einsum(
        "Bid,Bjd->Bij",
        later,
        earlier,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    cosines = jnp.maximum(products, 0) * inverse[:, None]
    if diagonal:
        before = jnp.tile(jnp.tri(rows // 2, k=-1, dtype=bool), (2, 2))
        cosines = jnp.where(before, cosines, 0)
    halves = cosines.reshape(B, rows, 2, -1)
    return halves.max(axis=3) if reduction == "max" else halves.sum(axis=3)
