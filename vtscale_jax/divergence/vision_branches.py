"""Two images under one question, as a trained run's language model sees them.

The branch is the block of M fused vision tokens; its prefix is all that stands before
it. This is where the theory, which the paper measures on text only, meets training.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import BatchSpec, collate
from vtscale_jax.divergence.measure import CHUNK_ROWS, Chunk, PairBatch
from vtscale_jax.divergence.pairs.images import ImagePair, readable
from vtscale_jax.divergence.pairs.rows import check_share
from vtscale_jax.divergence.pairs.schemas import BadRow, PairsError
from vtscale_jax.divergence.states import FINAL, Rows, branch_states, through_layer
from vtscale_jax.encoding import encode
from vtscale_jax.images import ImageLike
from vtscale_jax.tokens import llm_slots
from vtscale_jax.trained import Trained
from vtscale_jax.types import FusionInput, Record, Turn
from vtscale_jax.vlm import VLM, ModelConfig

PROBED = 8  # pairs with the longest questions: batch shapes are fitted to them


class VisionBranches:
    """Pairs of images and the hidden states at their vision tokens, in a trained run.

    `pairs` are rows as `read_image_pairs` gives them. `layer` is "final" or a block of
    the language model. Batches have `batch_size` pairs, or the next multiple of the
    devices of `mesh`; images are fused on each device alike, pairs are read apart.
    Raises PairsError for too many bad rows, and for none that is good.
    """

    def __init__(
        self,
        run: Trained,
        pairs: Sequence[ImagePair | BadRow],
        *,
        layer: str,
        mesh: Mesh,
        batch_size: int,
        where: str = "the pairs",
        max_bad_share: float = 0.01,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self.chunk_rows = chunk_rows
        self._run, self._rows, self.mesh = run, list(pairs), mesh
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        params = dict(run.params)
        llm, self._config = through_layer(params.pop("llm"), run.model.llm, layer)
        self._llm = jax.device_put(llm, self._whole)
        self._eyes = jax.device_put(params, self._whole)
        self._final = layer == FINAL
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self.num_rows = len(self._rows)
        bad = [row for row in self._rows if isinstance(row, BadRow)]
        check_share(bad, self.num_rows, max_bad_share, where=where)
        good = [row for row in self._rows if isinstance(row, ImagePair)]
        encode_text = run.encoding.fusion_tokenizer.encode
        good.sort(
            key=lambda pair: len(encode_text(pair.question, add_special_tokens=False)),
            reverse=True,
        )
        seen = (row for row in good if isinstance(readable(row), ImagePair))
        self._prefix, self._spec = self._shapes(
            list(itertools.islice(seen, PROBED)), where
        )

    def chunks(self, wanted: Collection[int]) -> Iterator[tuple[int, Chunk]]:
        """The chunks of these numbers, in order."""
        for index in sorted(wanted):
            rows = self._rows[index * self.chunk_rows :][: self.chunk_rows]
            checked = [readable(row) for row in rows]
            pairs = [row for row in checked if isinstance(row, ImagePair)]
            bad = [row._asdict() for row in checked if isinstance(row, BadRow)]
            yield index, Chunk([p.line for p in pairs], self._batches(pairs), bad)

    def states(
        self, inputs: FusionInput
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B n D"]]:
        """h^A and h^B at the M vision tokens of both images."""
        placed = jax.device_put(inputs, self._whole)
        vectors = _vectors(self._eyes, placed, config=self._run.model)
        B, M = self._batch_size, vectors.shape[1]
        rows = Rows(
            np.broadcast_to(self._prefix, (B, len(self._prefix))),
            np.full(B, len(self._prefix), np.int32),
            *(vectors[:B], vectors[B:]),
            np.full(B, M, np.int32),
        )
        return branch_states(
            self._llm,
            jax.device_put(rows, self._split),
            config=self._config,
            final=self._final,
        )

    def _record(self, pair: ImagePair, image: ImageLike) -> Record:
        return Record(f"pair {pair.line}", cast(Any, image), (Turn(pair.question, ""),))

    def _encoded(self, pairs: Sequence[ImagePair]) -> list[Any]:
        """All images A, then all images B."""
        records = [self._record(pair, pair.image_a) for pair in pairs]
        records += [self._record(pair, pair.image_b) for pair in pairs]
        return [encode(r, self._run.encoding, self._run.layout) for r in records]

    def _shapes(
        self, longest: Sequence[ImagePair], where: str
    ) -> tuple[np.ndarray, BatchSpec]:
        """The tokens before the block of vision tokens, the same for every question,
        and the shapes of batches."""
        if not longest:
            raise PairsError(f"{where}: no image of any pair can be read")
        samples = self._encoded(longest)
        slots = llm_slots(samples[0].llm)
        assert np.all(np.diff(slots) == 1), "the block of vision tokens has gaps"
        encoding = self._run.encoding
        spec = fit_buckets(
            samples,
            batch_size=2 * self._batch_size,
            tokens_per_crop=self._run.model.vision.tokens_per_crop,
            most_crops=1 + encoding.max_local_views,
        )
        return samples[0].llm.ids[: slots[0]], spec.largest()

    def _batches(self, pairs: Sequence[ImagePair]) -> Iterator[PairBatch]:
        M = self._run.layout.num_queries
        for start in range(0, len(pairs), self._batch_size):
            some = pairs[start : start + self._batch_size]
            filled = [*some, *[some[-1]] * (self._batch_size - len(some))]
            batch = collate(self._encoded(filled), self._spec)
            yield PairBatch(
                list(range(start, start + len(some))),
                np.full(len(some), M, np.int32),
                batch.fusion,
            )


@functools.partial(jax.jit, static_argnames="config")
def _vectors(
    params: Any, inputs: FusionInput, *, config: ModelConfig
) -> Float[Array, "B M E"]:
    inputs = jax.tree.map(jnp.asarray, inputs)
    found: Any = VLM(config).apply({"params": params}, inputs, method=VLM.query_vectors)
    return found
