"""Histograms of the cosines between positions (paper Fig. 15)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRIP = 64  # rows whose cosines are there at a time
NUM_BINS = 100
EDGES = np.linspace(-1, 1, NUM_BINS + 1)


class Histograms(NamedTuple):
    """How many cosines fall between two `EDGES`, over all pairs of branches.

    equal:    cos(a_i, b_i)                     cross_bb: cos(b_i, b_j), i < j
    cross_aa: cos(a_i, a_j), i < j              cross_ab: cos(a_i, b_j), i ≠ j

    A cosine of 1 is in the last bin, one with a zero vector, 0, in the bin above 0.
    """

    equal: Int[Array | np.ndarray, " bins"]
    cross_aa: Int[Array | np.ndarray, " bins"]
    cross_bb: Int[Array | np.ndarray, " bins"]
    cross_ab: Int[Array | np.ndarray, " bins"]


@functools.partial(jax.jit, static_argnames="num_bins")
def histograms(
    a: Float[Array, "B n d"],
    b: Float[Array, "B n d"],
    lengths: Int[Array, " B"],
    *,
    num_bins: int = NUM_BINS,
) -> Histograms:
    """Counts over B pairs as int32: at most 2³¹ cosines in one call."""

    def of_pair(pair: tuple) -> Histograms:
        a, b, length = pair
        there = jnp.arange(len(a)) < length
        unit_a, unit_b = (_unit(jnp.where(there[:, None], x, 0)) for x in (a, b))
        return _of_pair(unit_a, unit_b, there, num_bins)

    found = jax.lax.map(of_pair, (a, b, lengths))
    return jax.tree.map(lambda counts: counts.sum(axis=0), found)


def _of_pair(
    a: Float[Array, "n d"], b: Float[Array, "n d"], there: Bool[Array, " n"], bins: int
) -> Histograms:
    n = len(a)
    strip = min(STRIP, n)
    steps = -(-n // strip)
    short = steps * strip - n
    rows_a, rows_b = (jnp.pad(x, ((0, short), (0, 0))) for x in (a, b))
    rows_there = jnp.pad(there, (0, short))
    equal = _count(jnp.sum(a * b, axis=1), there, bins)

    def step(counts: tuple, begin: Array) -> tuple[tuple, None]:
        row = begin + jnp.arange(strip)
        of_a, of_b = (
            jax.lax.dynamic_slice_in_dim(x, begin, strip) for x in (rows_a, rows_b)
        )
        seen = jax.lax.dynamic_slice_in_dim(rows_there, begin, strip)
        both = seen[:, None] & there
        later, other = row[:, None] < jnp.arange(n), row[:, None] != jnp.arange(n)
        new = (
            _count(_dots(of_a, a), both & later, bins),
            _count(_dots(of_b, b), both & later, bins),
            _count(_dots(of_a, b), both & other, bins),
        )
        return tuple(x + y for x, y in zip(counts, new, strict=True)), None

    zeros = (jnp.zeros(bins, jnp.int32),) * 3
    cross, _ = jax.lax.scan(step, zeros, jnp.arange(steps) * strip)
    return Histograms(equal, *cross)


def _dots(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    return jnp.einsum("md,nd->mn", x, y, precision=jax.lax.Precision.HIGHEST)


def _count(
    cosines: Float[Array, "..."], kept: Bool[Array, "..."], bins: int
) -> Int[Array, " bins"]:
    bin_of = jnp.clip(jnp.floor((cosines + 1) * (bins / 2)), 0, bins - 1)
    bin_of = jnp.where(kept, bin_of.astype(jnp.int32), bins)  # beyond: dropped
    return jnp.zeros(bins, jnp.int32).at[bin_of.reshape(-1)].add(1, mode="drop")


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=1, keepdims=True)
    x = x / jnp.where(largest == 0, 1, largest)  # no square overflows
    norm = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return x / jnp.where(norm == 0, 1, norm)
