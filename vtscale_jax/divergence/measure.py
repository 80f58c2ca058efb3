"""The measurement: chunks of pairs in, curves of single pairs out, then one result.

Rows are dealt out in chunks of a fixed size, and a chunk's batches depend on its rows
only: whoever measures a chunk, on however many processes, finds the same.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.divergence import null
from vtscale_jax.divergence.curves import Curves, Reduction, choose, traced_curves
from vtscale_jax.divergence.estimate import Estimate, derived
from vtscale_jax.divergence.histograms import NUM_BINS, Histograms, histograms
from vtscale_jax.divergence.parts import Part
from vtscale_jax.divergence.result import CURVES, PAIR_CURVES

CHUNK_ROWS = 256  # by default
NOT_FINITE = "a hidden state is NaN or infinite: try --dtype float32"
NULL = ("null",)  # the curve of the null test


class PairBatch(NamedTuple):
    """Some pairs of a chunk, of similar length.

    index:   which pairs of the chunk            lengths: n that each reaches
    inputs:  what `Source.states` takes; its rows may be more than the pairs (padding)
    """

    index: list[int]
    lengths: Int[np.ndarray, " P"]
    inputs: Any


class Chunk(NamedTuple):
    """Some rows that follow each other: the numbers of those that are pairs, these in
    batches, the rows that are left out, as {"line", "reason", "detail"}, and how many
    pairs have each note (`pairs.tokens.TokenPair`)."""

    rows: list[int]
    batches: Iterable[PairBatch]
    bad: list[dict[str, Any]]
    notes: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class Source(Protocol):
    """Where pairs and their hidden states come from.

    `chunk_rows` rows make a chunk; the last one may have fewer. `mesh` holds the
    devices of this process: a batch is shared out over all its axes.
    """

    num_rows: int
    chunk_rows: int
    mesh: Mesh

    def chunks(self, wanted: Collection[int]) -> Iterator[tuple[int, Chunk]]:
        """The chunks of these numbers, in order."""
        ...

    def states(
        self, inputs: Any
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B n D"]]:
        """The two branches' hidden states of a batch."""
        ...


class How(NamedTuple):
    """How the curves are made of hidden states.

    `swaps` is how many times A and B are exchanged at random for the null test (0: no
    null test); `seed` is that of the exchanges.
    """

    reduction: Reduction = "mean"
    kernel: str = "auto"
    swaps: int = 0
    seed: int = 0


def num_chunks(source: Source) -> int:
    """Chunks that the rows of a source make."""
    return -(-source.num_rows // source.chunk_rows)


def measure_chunk(
    source: Source, chunk: Chunk, how: How, step: "Step", say: Callable[[int], None]
) -> Part:
    """The part of one chunk; `say` hears the number of pairs of each batch that is
    done."""
    size = len(chunk.rows)
    rows = np.asarray(chunk.rows, np.int64)
    found: list[tuple[PairBatch, Curves, Any]] = []
    counts = np.zeros((4, NUM_BINS), np.int64)
    for batch in chunk.batches:
        curves, binned, swapped = _of_batch(source, batch, rows, how, step)
        counts += np.stack(binned)
        found.append((batch, curves, swapped))
        say(len(batch.index))
    n = max([int(batch.lengths.max()) for batch, _, _ in found], default=1)
    whole = {name: np.full((size, n), np.nan, np.float32) for name in PAIR_CURVES}
    lengths, norm = np.zeros(size, np.int64), np.zeros(size, np.float32)
    exchanged = np.full((size, n), np.nan, np.float32) if how.swaps else None
    for batch, curves, swapped in found:
        at, pairs = np.asarray(batch.index), len(batch.index)
        width = min(n, curves.D.shape[1])
        for name in PAIR_CURVES:
            whole[name][at, :width] = getattr(curves, name)[:pairs, :width]
        lengths[at], norm[at] = batch.lengths, curves.norm[:pairs]
        if exchanged is not None:
            exchanged[at, :width] = swapped[:pairs, :width]
    # D(1) is known of every pair whose states are finite.
    known = np.isfinite(whole["D"][:, 0]) & np.isfinite(norm)
    bad = [
        {"line": int(row), "reason": "not finite", "detail": NOT_FINITE}
        for row in rows[~known]
    ]
    return Part(
        rows[known],
        lengths[known],
        {name: value[known] for name, value in whole.items()},
        norm[known],
        Histograms(*counts),
        None if exchanged is None else exchanged[known],
        sorted([*chunk.bad, *bad], key=lambda row: row["line"]),
        dict(chunk.notes),
    )


def _of_batch(
    source: Source, batch: PairBatch, rows: np.ndarray, how: How, step: "Step"
) -> tuple[Curves, Histograms, Any]:
    """Curves, histograms and null curves of one batch, on the host."""
    a, b = source.states(batch.inputs)
    B, n = a.shape[:2]
    pairs = len(batch.index)
    lengths = np.zeros(B, np.int32)  # 0: a row of padding
    lengths[:pairs] = batch.lengths
    exchanged = np.zeros((how.swaps, B, n), bool)
    exchanged[:, :pairs] = null.swaps(
        rows[np.asarray(batch.index)], n, how.swaps, how.seed
    )
    found = step(a, b, lengths, exchanged)
    return jax.device_get(found)


class Step:
    """(a, b, lengths, exchanged) → curves, histograms and the null curve: one program
    for each shape, over all devices of `mesh`.

    Every device works on its own pairs; only histograms are summed over devices.
    `exchanged` [K, B, n] says which positions are swapped, K times.
    """

    def __init__(self, how: How, mesh: Mesh) -> None:
        rows = choose(how.kernel, mesh.devices.flat[0].platform)
        curves_of = functools.partial(
            traced_curves, reduction=how.reduction, cross_rows=rows
        )

        def local(
            a: Float[Array, "B n D"],
            b: Float[Array, "B n D"],
            lengths: Int[Array, " B"],
            exchanged: Bool[Array, "K B n"],
        ) -> tuple[Curves, Histograms, Float[Array, "B n"]]:
            def once(swapped: Array) -> Array:
                curves = curves_of(*null.exchange(a, b, swapped), lengths)
                within = (curves.psi_cross_aa + curves.psi_cross_bb) / 2
                return within - curves.psi_cross_ab

            swapped = jnp.zeros(a.shape[:2])
            if exchanged.shape[0]:
                swapped = jax.lax.map(once, exchanged).mean(axis=0)
            # A pair with a state that is not finite is no pair: NaN from n = 1 on.
            there = (jnp.arange(a.shape[1]) < lengths[:, None])[:, :, None]
            finite = jnp.isfinite(jnp.where(there, a, 0)) & jnp.isfinite(
                jnp.where(there, b, 0)
            )
            lengths = jnp.where(finite.all(axis=(1, 2)), lengths, 0)
            binned = histograms(a, b, lengths)
            return (
                curves_of(a, b, lengths),
                jax.tree.map(lambda x: jax.lax.psum(x, mesh.axis_names), binned),
                swapped,
            )

        pairs = PartitionSpec(mesh.axis_names)
        swaps = PartitionSpec(None, mesh.axis_names)
        self._on = [NamedSharding(mesh, spec) for spec in (pairs, pairs, pairs, swaps)]
        self._program = jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(pairs, pairs, pairs, swaps),
                out_specs=(pairs, PartitionSpec(), pairs),
                check_vma=False,
            )
        )

    def __call__(self, *arrays: Any) -> tuple[Curves, Histograms, Any]:
        return self._program(*jax.device_put(arrays, tuple(self._on)))


class Whole(NamedTuple):
    """All parts together."""

    estimate: Estimate
    null: Estimate | None
    histograms: Histograms
    largest_norm: float
    bad: list[dict[str, Any]]
    notes: dict[str, int]


def combine(
    parts: Iterable[Part], num_positions: int, *, replicates: int, seed: int
) -> Whole:
    """Folds parts in the order given, one at a time, into estimates over n = 1 …
    `num_positions`."""
    estimate = Estimate.empty(num_positions, replicates=replicates, seed=seed)
    exchanged = None
    counts = np.zeros((4, NUM_BINS), np.int64)
    largest, bad, notes = 0.0, [], Counter[str]()
    for part in parts:
        estimate = estimate.add(part.rows, derived(part.curves))
        if part.null is not None:
            if exchanged is None:
                exchanged = Estimate.empty(
                    num_positions, names=NULL, replicates=replicates, seed=seed
                )
            exchanged = exchanged.add(part.rows, part.null[None].astype(np.float64))
        counts += np.stack(part.histograms)
        largest = max([largest, *part.norm.tolist()])
        bad += part.bad
        notes.update(part.notes)
    assert estimate.names == CURVES
    return Whole(estimate, exchanged, Histograms(*counts), largest, bad, dict(notes))
