"""The fused kernel for NVIDIA GPUs (Pallas, Triton).

One program multiplies `tile` positions I of one branch with `tile` earlier ones J of
one branch, over all of d; the products stay in registers, where they are made positive,
weighed by the 1/‖y_j‖ and reduced to one number for each row of I. The four
combinations of branches are four programs, so that each has a square of the size that
tensor cores want.

Programs have no order and no memory in common. Each writes its row sums, and these,
4·n²/tile numbers for each pair, of which half are used, are reduced over J afterwards:
no atomics, so every run gives the same bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vtscale_jax.divergence.kernels.rows import Branches, RowReduction

# The least that Triton multiplies, and the most of which the products fit in registers.
SMALLEST_TILE = 16
LARGEST_TILE = 128
SMALLEST_CHUNK = 16


def tile_for(n: int, dtype: DTypeLike) -> int:
    """Positions in a tile: 128 · 128 float32 are a quarter of a multiprocessor's
    registers. Float32 states, which tensor cores do not multiply, need registers for
    what is multiplied too."""
    largest = LARGEST_TILE if dtype == jnp.bfloat16 else 64
    return min(largest, max(SMALLEST_TILE, pl.next_power_of_2(n)))


def chunk_for(d: int, tile: int, dtype: DTypeLike) -> int:
    """Numbers of d at a time: 128 bytes, a line of the cache."""
    del tile
    largest = 128 // jnp.dtype(dtype).itemsize
    return min(largest, max(SMALLEST_CHUNK, pl.next_power_of_2(d)))


def weighted_rows(
    branches: Branches,
    *,
    reduction: RowReduction,
    tile: int,
    chunk: int,
    interpret: bool = False,
) -> Float[Array, "B 4 n"]:
    """For each position i the sums or maxima over j < i of (x_i·y_j)_+ / ‖y_j‖.

    The four are aa, bb, ab (x = a, y = b) and ba. n and d are multiples of tile and
    chunk.
    """
    batch, n, d = branches.a.shape
    assert n % tile == 0 and d % chunk == 0, (n, d, tile, chunk)
    num_tiles = n // tile
    rows, cols = (side.astype(np.int32) for side in np.tril_indices(num_tiles))
    states = jnp.stack([branches.a, branches.b], axis=1)  # [B, 2, n, d]
    inverse = jnp.stack([branches.inv_a, branches.inv_b], axis=1)  # [B, 2, n]
    tensor_cores = states.dtype == jnp.bfloat16
    of_tiles = pl.pallas_call(
        functools.partial(_kernel, reduction=reduction, tile=tile, chunk=chunk),
        # Programs that run together are of one pair: its states fit in the cache.
        grid=(len(rows), 4, batch),
        out_shape=jax.ShapeDtypeStruct((batch, 4, num_tiles, n), jnp.float32),
        compiler_params=plgpu.CompilerParams(
            num_warps=8 if tile == 128 else 4, num_stages=3 if tensor_cores else 2
        ),
        cost_estimate=pl.CostEstimate(
            flops=8 * batch * len(rows) * tile**2 * d,
            bytes_accessed=states.nbytes + 4 * batch * num_tiles * n * 4,
            transcendentals=0,
        ),
        interpret=interpret,
        name=f"cross_rows_{reduction}",
    )(rows, cols, states, inverse)  # [B, 4, tiles, n]
    # Tiles above the diagonal were written by nobody and may hold anything.
    written = np.tril(np.ones((num_tiles, num_tiles), bool)).T.repeat(tile, axis=1)
    over_tiles = {"sum": jnp.sum, "max": jnp.max}[reduction]
    return over_tiles(jnp.where(written, of_tiles, 0), axis=2)


def _kernel(
    i_ref,
    j_ref,
    states,
    inverse,
    out,
    *,
    reduction: RowReduction,
    tile: int,
    chunk: int,
) -> None:
    """One tile of one of the four products of one pair."""
    here, kind, pair = (pl.program_id(axis) for axis in range(3))
    i, j = i_ref[here], j_ref[here]
    x = kind & 1  # aa, bb, ab, ba: rows of a, b, a, b
    y = (kind ^ (kind >> 1)) & 1  # and columns of a, b, b, a
    at_i, at_j = pl.ds(i * tile, tile), pl.ds(j * tile, tile)
    whole = states.dtype == jnp.float32

    def add(k: Array, products: Array) -> Array:
        at_k = pl.ds(k * chunk, chunk)
        return products + jax.lax.dot_general(
            states[pair, x, at_i, at_k],
            states[pair, y, at_j, at_k],
            (((1,), (1,)), ((), ())),
            # Without it tensor cores round float32 to 10 bits (TF32).
            precision=jax.lax.Precision.HIGHEST if whole else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    products = jnp.zeros((tile, tile), jnp.float32)
    products = jax.lax.fori_loop(0, states.shape[3] // chunk, add, products)
    weighed = jnp.maximum(products, 0) * inverse[pair, y, at_j][None]
    over_cols = {"sum": jnp.sum, "max": jnp.max}[reduction]

    @pl.when(j < i)
    def under_the_diagonal() -> None:
        out[pair, kind, j, at_i] = over_cols(weighed, axis=1)

    @pl.when(j == i)
    def on_the_diagonal() -> None:
        place = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0)
        earlier = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
        kept = jnp.where(earlier < place, weighed, 0)
        out[pair, kind, j, at_i] = over_cols(kept, axis=1)
