"""Fused: products, positive part, weights and row sums in one pass over the tiles.

    row_i = 1/‖x_i‖ · Σ_{j<i} (x_i·y_j)_+ · 1/‖y_j‖

for x, y each of the branches a, b: the cross measures of the paper's Def. 1 (eqs. 15,
29–31; spec math.md §2) before they are divided by the number of pairs of positions.

Only tiles on and under the diagonal are computed, and each is summed where it was
made: the n×n cosines never lie in memory. Inputs are O(n·d), results O(n), and partial
sums O(n²/tile) at most (GPU only). Float32 states are multiplied in full float32,
bfloat16 ones as they are; sums are float32.

`pallas_tpu` and `pallas_gpu` hold the two forms, for compilers that want different
programs. Both take whole tiles and give sums without the factor 1/‖x_i‖ of their own
row, which this file puts in.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from vtscale_jax.divergence.kernels import pallas_gpu, pallas_tpu
from vtscale_jax.divergence.kernels.rows import Branches, CrossRows, RowReduction

Backend = Literal["tpu", "gpu"]


class PallasError(ValueError):
    """Something the fused kernel cannot be built for."""


def cross_rows(
    branches: Branches,
    *,
    reduction: RowReduction,
    tile: int | None = None,
    backend: Backend | None = None,
    interpret: bool = False,
) -> CrossRows:
    """Row sums or maxima of positive cosines over earlier positions, B pairs at once.

    `tile` positions by `tile` are done at a time, by default as many as suit n and the
    dtype: a power of two, on TPUs from 128 to 512, on GPUs from 16 to 128. n and d need
    not be multiples of anything: zeros are put behind. `backend` is the compiler to
    write for, by default that of JAX's default device; `interpret` runs the same
    program on any device, slowly, with JAX's own operations, and takes tiles from 8.

    Raises PallasError when there is no program for the default device, or for these
    shapes, this dtype or this tile.
    """
    _check_states(branches)
    backend = _backend(backend)
    batch, n, d = branches.a.shape
    if 0 in (batch, n, d):
        nothing = jnp.zeros((batch, n), jnp.float32)
        return CrossRows(nothing, nothing, nothing)
    form = pallas_tpu if backend == "tpu" else pallas_gpu
    tile = form.tile_for(n, branches.a.dtype) if tile is None else tile
    _check_tile(tile, 8 if interpret else form.SMALLEST_TILE, form.LARGEST_TILE)
    chunk = form.chunk_for(d, tile, branches.a.dtype)
    aa, bb, ab, ba = jnp.moveaxis(
        form.weighted_rows(
            _padded(branches, tile, chunk),
            reduction=reduction,
            tile=tile,
            chunk=chunk,
            interpret=interpret,
        )[:, :, :n],
        1,
        0,
    )
    inv_a, inv_b = branches.inv_a, branches.inv_b
    both = {"sum": jnp.add, "max": jnp.maximum}[reduction]
    return CrossRows(aa=inv_a * aa, bb=inv_b * bb, ab=both(inv_a * ab, inv_b * ba))


def _check_states(branches: Branches) -> None:
    a, b, inv_a, inv_b = branches
    if a.shape != b.shape or a.ndim != 3:
        raise PallasError(
            f"the branches are {a.shape} and {b.shape}, expected [B, n, d] for both: "
            "fill the shorter one with zeros, and its inverse norms too"
        )
    if inv_a.shape != a.shape[:2] or inv_b.shape != a.shape[:2]:
        raise PallasError(
            f"the inverse norms are {inv_a.shape} and {inv_b.shape}, expected "
            f"{a.shape[:2]}: one for each position"
        )
    if a.dtype != b.dtype or a.dtype not in (jnp.float32, jnp.bfloat16):
        raise PallasError(
            f"the branches are {a.dtype} and {b.dtype}, expected both float32 or both "
            "bfloat16: cast them (float16 has too small a range for products)"
        )


def _backend(backend: str | None) -> Backend:
    found = jax.default_backend() if backend is None else backend
    for known in ("tpu", "gpu"):
        if found == known:
            return known
    raise PallasError(
        f"there is no fused program for {found!r}, only for 'tpu' and 'gpu': use the "
        "tiled kernel here, or name the backend and pass interpret=True"
    )


def _check_tile(tile: int, smallest: int, largest: int) -> None:
    # Triton has only powers of two; a TPU has 128 lanes to a row. Larger tiles do not
    # fit in vector memory, or in registers.
    if not smallest <= tile <= largest or tile.bit_count() != 1:
        raise PallasError(
            f"tile is {tile}, expected a power of two from {smallest} to {largest}"
        )


def _padded(branches: Branches, tile: int, chunk: int) -> Branches:
    """With zeros up to whole tiles and chunks; their inverse norms are 0 as well."""
    _, n, d = branches.a.shape
    n, d = -n % tile, -d % chunk

    def states(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, n), (0, d)))

    def norms(x: jax.Array) -> jax.Array:
        return jnp.pad(x.astype(jnp.float32), ((0, 0), (0, n)))

    a, b, inv_a, inv_b = branches
    return Branches(states(a), states(b), norms(inv_a), norms(inv_b))
