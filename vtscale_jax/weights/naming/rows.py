"""Tables that need another number of rows than they were trained with."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def resize_rows(
    table: Float[np.ndarray, "old D"], rows: int, seed: int | Sequence[int]
) -> Float[np.ndarray, "rows D"]:
    """The first `rows` rows of a table, or all of them with new ones drawn like them.

    New rows are drawn from the normal distribution with the mean and deviation of all
    the numbers of the table, as the authors grow tables (spec, section 9). Two tables
    that are grown with one seed get the same draws: give each a seed of its own, such
    as (seed, number of the table).
    """
    if rows <= len(table):
        return table[:rows]
    # In float64: sums in bfloat16 would stop growing.
    mean, std = table.mean(dtype=np.float64), table.std(dtype=np.float64)
    shape = (rows - len(table), *table.shape[1:])
    new = np.random.default_rng(seed).normal(mean, std, shape)
    return np.concatenate([table, new.astype(table.dtype)])
