"""The stream of batches: grain over a random-access source of records.

    source[order(seed, step)] -> encode -> collate -> Batch

Which records are in the batch of a step is a pure function of (seed, step), whatever
the number of hosts, threads and workers and wherever the stream was resumed. The row
of a record whose image cannot be read stays empty, and is named beside the batch; no
other record takes its place. Whatever else is wrong with a record stops the stream.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from vtscale_jax.collate import BatchSpec, collate
from vtscale_jax.encoders import Encoder, Here, Unreadable
from vtscale_jax.encoding import Encoding, SampleError, empty_sample
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import WHOLE, Batch, Record, Shards


class Fed(NamedTuple):
    """What a process feeds at a step: its part of the batch, and which records it
    holds, by id, in the order of its rows. `skipped` are those among them whose image
    cannot be read, by row of the global batch: their rows are empty."""

    batch: Batch
    ids: tuple[str, ...]
    skipped: tuple[tuple[int, Unreadable], ...] = ()


@runtime_checkable
class Source(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    @property
    def fingerprint(self) -> str:
        """Changes when any record does."""
        ...

    def longest(self, number: int) -> list[int]:
        """Indices that show, with the first `number`, how long records get."""
        ...


class Stream:
    """Batches of a source, step by step; iterate it, or take `batch(step)`.

    The records of the global batch at step t are entries t*B to (t+1)*B of the order:
    `subset=(seed, fraction)` first keeps a random part of the records (stage adapt
    takes a tenth), then each epoch is shuffled with its own seed; `seed=None` keeps the
    source's order. After `epochs` epochs (None: never) the stream ends, without the
    records that do not fill a batch.

    One of several hosts reads its own rows of each global batch, those of the parts
    `shards.own`. All hosts must agree on shapes without talking to each other, so with
    several of them only the largest size of every bucket is used.

    Curriculum over the number of queries: one stream for each phase, with the phase's
    `layout` and `start_step`; the order of samples does not notice.

    `encoder` makes samples of the source's records (None: the thread that prepares the
    batch). `num_threads` threads prepare up to `prefetch` batches ahead; 0 prepares
    each batch when it is asked for.
    """

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        spec: BatchSpec,
        *,
        layout: QueryLayout,
        seed: int | None,
        epochs: int | None = None,
        subset: tuple[int, float] | None = None,
        start_step: int = 0,
        shards: Shards = WHOLE,
        encoder: Encoder | None = None,
        num_threads: int = 2,
        prefetch: int = 4,
    ):
        if spec.batch_size % shards.total or max(shards.own) >= shards.total:
            raise ValueError(
                f"parts {shards.own} of {shards.total} with data.batch_size "
                f"{spec.batch_size}: expected parts below the total, and a batch size "
                "that the total divides."
            )
        if spec.llm_rows and shards.feeders > 1:
            raise ValueError(
                "data.pack is set, but several processes feed this run: how many rows "
                "a batch packs into is known to the process that reads it only, and "
                "all need the same shapes; set --config.data.pack=False"
            )
        self._source = source
        self._encoding = encoding
        self._encoder = encoder or Here(source, encoding)
        self._spec = spec.agreed(shards)
        self._layout = layout
        self._rows = shards.rows(spec.batch_size)
        self._read = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
        )
        kept = kept_records(len(source), subset)
        order = grain.MapDataset.source(kept)
        if seed is not None:
            order = order.shuffle(seed)
        self._order = order.repeat(epochs)
        self.num_steps = len(self._order) // spec.batch_size
        self.start_step = self._checked_step(start_step)
        if self.num_steps == 0:
            raise ValueError(
                f"{len(kept)} records over {epochs} epochs give no batch of "
                f"{spec.batch_size}: lower data.batch_size, or raise data.subset, the "
                "number of records or the epochs."
            )
        self._identity = {
            "seed": seed,
            "subset": None if subset is None else list(subset),
            "num_records": len(kept),
            "batch_size": spec.batch_size,
        }

    def order(self, step: int) -> Int[np.ndarray, " B"]:
        """Source indices of the global batch at `step`, over all hosts."""
        start = step * self._spec.batch_size
        rows = range(start, start + self._spec.batch_size)
        return np.array([self._order[row] for row in rows], np.int64)

    def fed(self, step: int) -> Fed:
        """This process's part of the batch at `step`.

        Raises SampleError naming the record that cannot be encoded, and ValueError
        naming the one that does not fit the buckets.
        """
        indices = self.order(step)[self._rows].tolist()
        made = self._encoder.encoded(indices, self._layout)
        skipped = tuple(
            (row, one)
            for row, one in zip(self._rows, made, strict=True)
            if isinstance(one, Unreadable)
        )
        samples = [
            empty_sample(one.id, self._encoding) if isinstance(one, Unreadable) else one
            for one in made
        ]
        batch = collate(samples, self._spec, rows=self._rows)
        return Fed(batch, tuple(sample.id for sample in samples), skipped)

    def batch(self, step: int) -> Batch:
        """The batch of `fed`."""
        return self.fed(step).batch

    def sample_ids(self, step: int) -> list[str]:
        """Ids of the records of the global batch at `step`, over all hosts."""
        return [self._record(index).id for index in self.order(step).tolist()]

    def describe(self) -> str:
        """Records, steps and shapes, in a line for the log."""
        steps = "endless" if self.num_steps > 2**40 else f"{self.num_steps} steps"
        shapes = self._spec.describe(self._encoding.stage)
        return f"{self._identity['num_records']} records, {steps}; {shapes}"

    def __iter__(self) -> "StreamIterator":
        return StreamIterator(self, self.start_step)

    def _batches(self, step: int) -> grain.DatasetIterator[Fed]:
        steps = grain.MapDataset.range(step, self.num_steps)
        return iter(steps.map(self.fed).to_iter_dataset(self._read))

    def _record(self, index: int) -> Record:
        try:
            return self._source[index]
        except Exception as error:
            raise SampleError(f"record {index} of the source: {error}") from error

    def _checked_step(self, step: int) -> int:
        if not 0 <= step <= self.num_steps:
            raise ValueError(
                f"step is {step}, expected 0 to {self.num_steps}, the number of steps "
                "of this stream: give more epochs or records, or start earlier."
            )
        return step


class StreamIterator:
    """Iterates over a stream; its place is saved and restored as JSON."""

    def __init__(self, stream: Stream, step: int):
        self._stream = stream
        self._step = step
        self._batches = stream._batches(step)

    @property
    def step(self) -> int:
        """The step of the batch that comes next."""
        return self._step

    def __iter__(self) -> "StreamIterator":
        return self

    def __next__(self) -> Fed:
        fed = next(self._batches)
        self._step += 1
        return fed

    def state(self) -> dict[str, Any]:
        """What `restore` needs: the next step, and what the order depends on."""
        return {"step": self._step, **self._stream._identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, on any number of shards.

        Raises ValueError when the stream's order differs from that of `state`.
        """
        ours = self.state()
        if ours.keys() != state.keys():
            raise ValueError(
                f"loader state has the fields {sorted(state)}, expected {sorted(ours)}:"
                " it was saved by another version; start the data anew."
            )
        for name, value in self._stream._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"loader state was saved with {name} {state[name]}, but this run "
                    f"has {value}, so the samples would come in another order: use the "
                    f"saved {name}, or start without the saved loader state."
                )
        self._step = self._stream._checked_step(state["step"])
        self._batches.close()
        self._batches = self._stream._batches(self._step)

    def close(self) -> None:
        """Stops the threads that prepare batches ahead."""
        self._batches.close()


def kept_records(number: int, subset: tuple[int, float] | None) -> range | list[int]:
    """Indices of the records that are used, in the source's order: all of `number`, or
    with `subset` = (seed, fraction) a random part."""
    if number == 0:
        raise ValueError("the source has no records, expected at least one.")
    if subset is None or subset[1] == 1:
        return range(number)
    seed, fraction = subset
    if not 0 < fraction <= 1:
        raise ValueError(
            f"subset is {subset}, expected (seed, fraction) with 0 < fraction <= 1."
        )
    count = max(1, math.floor(fraction * number + 0.5))
    drawn = np.random.default_rng(seed).permutation(number)[:count]
    return sorted(drawn.tolist())
