"""The batches of a run: the phases of its curriculum, and what was fed.

Which records are in a batch is a function of (seed, step): neither the phases nor the
number of hosts change it, and `Feeding.fed` shows it after the fact.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vtscale_jax.assemble import Parts, probed
from vtscale_jax.collate import BatchSpec
from vtscale_jax.encoders import Encoder
from vtscale_jax.loader import Source, Stream, StreamIterator
from vtscale_jax.skips import SkipLog
from vtscale_jax.types import Batch, Shards

HELDOUT_BATCHES = 4


class Phase(NamedTuple):
    """Batches up to step `end` with M = `num_queries`, and held-out ones like them."""

    num_queries: int
    end: int
    spec: BatchSpec
    stream: Stream
    heldout: list[Batch]


class Step(NamedTuple):
    """What is trained on at `number` (counted from 1), and the place after it."""

    number: int
    phase: Phase
    batch: Batch
    place: dict[str, Any]


def make_phases(
    parts: Parts,
    train: Source,
    heldout: Source,
    schedule: tuple[tuple[int, int], ...],
    total_steps: int,
    shards: Shards,
    encoder: Encoder,
) -> list[Phase]:
    """The phases of the curriculum, of training samples that `encoder` makes; what is
    wrong with the data shows here."""
    ends = [first for first, _ in schedule[1:]] + [total_steps]
    phases, probe = [], [*probed(train), *probed(heldout)]
    for (first, num_queries), end in zip(schedule, ends, strict=True):
        spec = parts.training_shapes(probe, num_queries, shards)
        stream = parts.stream(train, spec, num_queries, first, shards, encoder)
        batches = parts.heldout_batches(
            heldout, spec, num_queries, HELDOUT_BATCHES, shards
        )
        phases.append(Phase(num_queries, end, spec, stream, batches))
    return phases


class Feeding:
    """Iterates over the steps of all phases, from where a run stands.

    `fed` is a number that stands for the samples this process has fed so far: the sum
    over rows of a hash of (step, row, sample id), modulo 2⁶⁴. Sums of several processes
    add up to that of one which feeds all rows.
    """

    def __init__(self, phases: Sequence[Phase], shards: Shards, say: Callable = print):
        self._phases = phases
        self._shards = shards
        self._say = say
        self.fed = 0

    def steps(
        self, start: int, place: dict[str, Any] | None, skips: SkipLog
    ) -> Iterator[Step]:
        """Steps after `start`; `place` is the one saved there, None at the start. What
        the stream skips is noted in `skips`."""
        for phase in self._phases:
            if start >= phase.end:
                continue
            batches: StreamIterator = iter(phase.stream)
            if place is not None:
                batches.restore(place)
                place = None
            self._say(
                f"M = {phase.num_queries} until step {phase.end:,}: "
                f"{phase.stream.describe()}"
            )
            while batches.step < phase.end:
                step = batches.step
                batch, ids, skipped = next(batches)
                skips.see(batches.step, skipped)
                rows = self._shards.rows(phase.spec.batch_size)
                self.fed = (self.fed + samples_hash(step, rows, ids)) % 2**64
                yield Step(batches.step, phase, batch, batches.state())
            batches.close()

    def sample_ids(self, number: int) -> list[str]:
        """Ids of the records that all hosts together are fed for step `number`."""
        phase = next(phase for phase in self._phases if number <= phase.end)
        return phase.stream.sample_ids(number - 1)


def samples_hash(step: int, rows: Sequence[int], ids: Sequence[str]) -> int:
    """A number below 2⁶⁴ for the samples `ids` in the `rows` of the batch at `step`."""
    total = 0
    for row, name in zip(rows, ids, strict=True):
        text = f"{step}\0{row}\0{name}".encode()
        total += int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return total % 2**64


def total_hash(parts: np.ndarray) -> int:
    """The sum of all processes' numbers. Rows are (first own part of the batch, upper
    and lower half of the number); processes that feed the same parts count once."""
    numbers = {int(part): (int(high) << 32) + int(low) for part, high, low in parts}
    return sum(numbers.values()) % 2**64
