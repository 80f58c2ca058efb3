"""The records of several sources under one numbering: to train on, or held out."""

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

from vtscale_jax.data.array_record_source import ArrayRecordSource
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.mixture_manifest import Part, Subset, drawn, ids_hash
from vtscale_jax.types import Record

Stored = FolderSource | ArrayRecordSource


class Weighed:
    """One source with its weight: all its records `whole` times, `extra` once more.

    Its records are those that are left without the `heldout` ones (their indices, in
    rising order). They are numbered from 0 to `len` in that order. Those of a repeat
    have ids of their own: "name/id", "name/id#2", "name/id#3".
    """

    def __init__(self, part: Part, stored: Stored, seed: int, heldout: Sequence[int]):
        self.part = part
        self.stored = stored
        self.whole = part.taken // part.left
        self.extra = drawn(part.name, part.left, part.taken, seed)
        # How many of those left stand before each that is held out. Not the indices
        # of all that are left: those are 8 bytes a record, in every worker process.
        self._before = [index - number for number, index in enumerate(heldout)]

    def __len__(self) -> int:
        return self.part.taken

    def __getitem__(self, number: int) -> Record:
        record = self.stored[self._at(number)[1]]
        return record._replace(id=self.id(number))

    def id(self, number: int) -> str:
        """The id that record `number` has in the mixture."""
        repeat, index = self._at(number)
        again = f"#{repeat + 1}" if repeat else ""
        return f"{self.part.name}/{self.stored.index.id(index)}{again}"

    def longest(self, number: int) -> list[tuple[int, int, int]]:
        """(number, messages, characters) of the records that are longest in either, of
        those that are taken, without repeats."""
        index = self.stored.index
        places = np.arange(self.part.left) if self.whole else self.extra
        taken = places + np.searchsorted(self._before, places, side="right")
        found = index.longest(number, taken)
        return [
            (place, int(index.messages[one]), int(index.characters[one]))
            for place, one in zip(
                np.searchsorted(taken, found).tolist(), found, strict=True
            )
        ]

    def _at(self, number: int) -> tuple[int, int]:
        """(repeat from 0, index in the source) of record `number`."""
        repeat, place = divmod(number, self.part.left)
        place = place if repeat < self.whole else int(self.extra[place])
        return repeat, place + bisect.bisect_right(self._before, place)


class Joined:
    """Weighed sources, one after the other."""

    def __init__(self, sources: Sequence[Weighed]):
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        source, number = self._at(index)
        return source[number]

    def id(self, index: int) -> str:
        """The id of record `index`, without reading the record."""
        source, number = self._at(index)
        return source.id(number)

    def longest(self, number: int) -> list[int]:
        """As `Mixture.longest`."""
        found = [
            (start + place, messages, characters)
            for source, start in zip(self._sources, self._starts, strict=False)
            for place, messages, characters in source.longest(number)
        ]
        return _longest(found, number)

    def draw(self, seed: int, fraction: float) -> Subset:
        """The random part that a run with this seed and data.subset trains on."""
        from vtscale_jax.loader import kept_records  # brings grain, which brings JAX

        kept = kept_records(len(self), (seed, fraction))
        return Subset(seed, float(fraction), len(kept), ids_hash(map(self.id, kept)))

    def _at(self, index: int) -> tuple[Weighed, int]:
        place = range(len(self))[index]
        number = bisect.bisect_right(self._starts, place) - 1
        return self._sources[number], place - self._starts[number]


class Apart:
    """Records of several sources that training does not see, in the order in which they
    were drawn: the first few of them are a sample of all sources."""

    def __init__(self, sources: Mapping[str, Stored], drawn: list[tuple[str, int]]):
        self._sources = dict(sources)
        self._drawn = drawn

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> Record:
        name, place = self._drawn[index]
        return self._sources[name][place]._replace(id=self.id(index))

    def id(self, index: int) -> str:
        """The id of record `index`, without reading the record."""
        name, place = self._drawn[index]
        return f"{name}/{self._sources[name].index.id(place)}"

    def ids_hash(self) -> str:
        """The hash of the ids, in their order."""
        return ids_hash(map(self.id, range(len(self))))

    def of(self, name: str) -> list[int]:
        """Indices, in rising order, of the records of source `name` that are here."""
        return sorted(place for of, place in self._drawn if of == name)

    def longest(self, number: int) -> list[int]:
        """As `Mixture.longest`."""
        found = []
        for index, (name, place) in enumerate(self._drawn):
            known = self._sources[name].index
            sizes = int(known.messages[place]), int(known.characters[place])
            found.append((index, *sizes))
        return _longest(found, number)


def _longest(found: Sequence[tuple[int, int, int]], number: int) -> list[int]:
    """The first of (index, messages, characters), of the `number` rows with the most
    messages and the `number` with the most characters; in rising order."""
    best = set()
    for by in (1, 2):
        best |= {row[0] for row in sorted(found, key=lambda row: -row[by])[:number]}
    return sorted(best)
