"""Two answers to one question, as a language model reads them."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vtscale_jax.divergence.measure import CHUNK_ROWS, Chunk, PairBatch
from vtscale_jax.divergence.pairs.buckets import Bucket, buckets
from vtscale_jax.divergence.pairs.rows import BadRow, Pair, check_share
from vtscale_jax.divergence.pairs.tokens import Lengths, Tally, Writer, token_pairs
from vtscale_jax.divergence.states import Rows, branch_states
from vtscale_jax.llm import LLMConfig


class TextBranches:
    """Pairs of answers and their hidden states.

    `read` gives all rows from the first one on, each time it is called (as
    `pairs.rows.read_pairs` of a file); messages call them `where`, and one a `word`
    ("line", "row"). `write` makes ids of a pair; `params` and `config` are those of an
    `LLM` up to the layer that is measured, laid out on `mesh`; `final` says whether its
    norm follows. Batches have `batch_size` pairs, or the next multiple of the devices
    of `mesh`. Only the first `most` rows are read, where that is given.

    Raises PairsError when rows cannot be read, or more than the share `max_bad_share`
    of them is no pair.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Pair | BadRow]],
        write: Writer,
        lengths: Lengths,
        *,
        where: str,
        word: str = "line",
        params: Mapping[str, Any],
        config: LLMConfig,
        final: bool,
        mesh: Mesh,
        batch_size: int,
        most: int | None = None,
        max_bad_share: float = 0.01,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self.chunk_rows = chunk_rows
        self._read, self._write, self._lengths = read, write, lengths
        self._params = params
        self._config, self._final, self.mesh = config, final, mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._most = most
        self.num_rows, bad = 0, []
        for row in self._rows():
            self.num_rows += 1
            if isinstance(row, BadRow):
                bad.append(row)
        # Before anything is measured; what shows in tokens only is seen at the end.
        check_share(bad, self.num_rows, max_bad_share, where=where, word=word)

    def chunks(self, wanted: Collection[int]) -> Iterator[tuple[int, Chunk]]:
        """The chunks of these numbers, in order; the others are passed over."""
        rows = self._rows()
        index = 0
        while taken := list(itertools.islice(rows, self.chunk_rows)):
            if index in wanted:
                yield index, self._chunk(taken)
            index += 1

    def states(
        self, inputs: Rows
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B n D"]]:
        """h^A and h^B of a batch."""
        placed = jax.device_put(
            inputs, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        )
        return branch_states(
            self._params, placed, config=self._config, final=self._final
        )

    def _rows(self) -> Iterator[Pair | BadRow]:
        return itertools.islice(self._read(), self._most)

    def _chunk(self, rows: list[Pair | BadRow]) -> Chunk:
        tally = Tally()
        pairs = list(tally.good(token_pairs(rows, self._write, self._lengths)))
        return Chunk(
            [pair.line for pair in pairs],
            [self._batch(bucket) for bucket in buckets(pairs, self._batch_size)],
            [row._asdict() for row in tally.bad],
            tally.notes,
        )

    def _batch(self, bucket: Bucket) -> PairBatch:
        """A bucket's pairs as arrays; rows beyond them have no token at all."""
        B = self._batch_size
        prefix = np.zeros((B, bucket.prefix), np.int32)
        a, b = (np.zeros((B, bucket.branch), np.int32) for _ in range(2))
        prefix_lengths, lengths = (np.zeros(B, np.int32) for _ in range(2))
        for i, pair in enumerate(bucket.pairs):
            prefix_lengths[i], lengths[i] = len(pair.prefix), len(pair.a)
            prefix[i, : len(pair.prefix)] = pair.prefix
            a[i, : len(pair.a)], b[i, : len(pair.b)] = pair.a, pair.b
        return PairBatch(
            list(bucket.indices),
            lengths[: len(bucket.pairs)],
            Rows(prefix, prefix_lengths, a, b, lengths),
        )
