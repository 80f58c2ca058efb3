"""The fused kernel for TPUs (Pallas, Mosaic).

One step of the grid takes `chunk` numbers of d from `tile` positions I and from `tile`
earlier ones J, and adds their four products a_I·a_Jᵀ, b_I·b_Jᵀ, a_I·b_Jᵀ and b_I·a_Jᵀ
to four [tile, tile] sums in vector memory; after the last chunk these are made
positive, weighed by the 1/‖y_j‖ and reduced into the rows of I. Four products from four
reads: 2·tile operations for each number read.

Steps run in order, I slowest, then J = 0 … I, then chunks, so the rows of one I are
gathered in vector memory and written once. They are gathered as [tile, 128]: whole
vectors are added, and only for the last J are the 128 lanes of a row reduced.

Vector memory, with the tile and chunk chosen here: 4 MiB of inputs (each twice, one
being fetched), up to 4 MiB of products and 1 MiB of rows, whatever n and d are; the
compilers allow 16 MiB on v4, v5e and v5p, 32 MiB on v6e.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vtscale_jax.divergence.kernels.rows import Branches, RowReduction

LANES = 128
SMALLEST_TILE = LANES
LARGEST_TILE = 512

# Of one [tile, chunk] block in vector memory: enough to keep the matrix unit busy
# while the next one comes.
BLOCK_BYTES = 512 * 1024


def tile_for(n: int, dtype: DTypeLike) -> int:
    """Positions in a tile: the larger, the fewer reads, but the more of the diagonal
    tiles is computed in vain."""
    del dtype
    return 128 if n <= 128 else 256 if n < 2048 else LARGEST_TILE


def chunk_for(d: int, tile: int, dtype: DTypeLike) -> int:
    """Numbers of d in a step, a multiple of 128 with few zeros behind the last one."""
    largest = max(BLOCK_BYTES // (tile * jnp.dtype(dtype).itemsize), LANES)
    steps = pl.cdiv(d, largest)
    return pl.cdiv(pl.cdiv(d, steps), LANES) * LANES


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
    rows, cols = (side.astype(np.int32) for side in np.tril_indices(n // tile))
    num_chunks = d // chunk
    inverse = jnp.stack([branches.inv_a, branches.inv_b], axis=1)  # [B, 2, n]

    of_rows = pl.BlockSpec((1, tile, chunk), lambda p, t, k, i, j: (p, i[t], k))
    of_cols = pl.BlockSpec((1, tile, chunk), lambda p, t, k, i, j: (p, j[t], k))
    kernel = functools.partial(_kernel, reduction=reduction, num_chunks=num_chunks)
    lanes = min(tile, LANES)  # fewer only where a small tile is interpreted
    itemsize = jnp.dtype(branches.a.dtype).itemsize
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, len(rows), num_chunks),
            in_specs=[
                of_rows,
                of_rows,
                of_cols,
                of_cols,
                pl.BlockSpec((1, 2, tile), lambda p, t, k, i, j: (p, 0, j[t])),
            ],
            out_specs=pl.BlockSpec((1, 4, tile), lambda p, t, k, i, j: (p, 0, i[t])),
            scratch_shapes=[
                pltpu.VMEM((4, tile, tile), jnp.float32),
                pltpu.VMEM((4, tile, lanes), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, 4, n), jnp.float32),
        # Pairs are apart, so the two cores of a v4 or v5p chip can share them.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=8 * batch * len(rows) * tile**2 * d,
            bytes_accessed=4 * batch * len(rows) * tile * d * itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name=f"cross_rows_{reduction}",
    )(rows, cols, branches.a, branches.b, branches.a, branches.b, inverse)


def _kernel(
    i_ref,
    j_ref,
    a_rows,
    b_rows,
    a_cols,
    b_cols,
    inverse,
    out,
    products,
    partial,
    *,
    reduction: RowReduction,
    num_chunks: int,
) -> None:
    """One pair, one tile, one chunk."""
    i, j = i_ref[pl.program_id(1)], j_ref[pl.program_id(1)]
    k = pl.program_id(2)
    last = k == num_chunks - 1
    # Rows, columns, and which inverse norm is that of the columns.
    kinds = (
        (a_rows, a_cols, 0),
        (b_rows, b_cols, 1),
        (a_rows, b_cols, 1),
        (b_rows, a_cols, 0),
    )
    tile, lanes = partial.shape[1:]
    join = {"sum": jnp.add, "max": jnp.maximum}[reduction]
    over_lanes = {"sum": jnp.sum, "max": jnp.max}[reduction]
    whole = a_rows.dtype == jnp.float32

    @pl.when((k == 0) & (j == 0))
    def first_tile_of_a_row() -> None:
        partial[...] = jnp.zeros_like(partial)

    @pl.when(k == 0)
    def first_chunk() -> None:
        products[...] = jnp.zeros_like(products)

    for kind, (x, y, _) in enumerate(kinds):
        products[kind] += jax.lax.dot_general(
            x[0],
            y[0],
            (((1,), (1,)), ((), ())),
            # Without it a TPU rounds float32 to bfloat16 before it multiplies.
            precision=jax.lax.Precision.HIGHEST if whole else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def gather(keep: Array | None) -> None:
        for kind, (_, _, inv_y) in enumerate(kinds):
            weighed = jnp.maximum(products[kind], 0) * inverse[0, inv_y : inv_y + 1]
            if keep is not None:
                weighed = jnp.where(keep, weighed, 0)
            row = partial[kind]
            for lane in range(0, tile, lanes):
                row = join(row, weighed[:, lane : lane + lanes])
            partial[kind] = row

    @pl.when(last & (j < i))
    def under_the_diagonal() -> None:
        gather(None)

    @pl.when(last & (j == i))
    def on_the_diagonal() -> None:
        place = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0)
        earlier = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
        gather(earlier < place)
        for kind in range(4):
            # Turned, so that positions lie along the lanes, as they do in the result.
            turned = partial[kind].T
            out[0, kind : kind + 1] = over_lanes(turned, axis=0, keepdims=True)
