"""Several prepared folders, each with a weight, as one source of records."""

import bisect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vtscale_jax.data import array_record_source
from vtscale_jax.data.array_record_source import ArrayRecordSource
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.mixture_manifest import (
    Manifest,
    MixtureError,
    Part,
    Subset,
    check_draw,
    check_names,
    check_part,
    drawn,
    ids_hash,
    read_manifest,
    taken_of,
    to_json,
)
from vtscale_jax.data.prepared_folder import RECORDS
from vtscale_jax.run_folder import code_version, versions, write_whole
from vtscale_jax.types import Record

Stored = FolderSource | ArrayRecordSource


class Weighed:
    """One source with its weight: all its records `whole` times, `extra` once more.

    Records are numbered from 0 to `len` in that order. Those of a repeat have ids of
    their own: "name/id", "name/id#2", "name/id#3".
    """

    def __init__(self, part: Part, stored: Stored, seed: int):
        self.part = part
        self.stored = stored
        self.whole = part.taken // part.records
        self.extra = drawn(part.name, part.records, part.taken, seed)

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
        found = index.longest(number, None if self.whole else self.extra)
        places = found if self.whole else np.searchsorted(self.extra, found).tolist()
        return [
            (place, int(index.messages[one]), int(index.characters[one]))
            for place, one in zip(places, found, strict=True)
        ]

    def _at(self, number: int) -> tuple[int, int]:
        """(repeat from 0, index in the source) of record `number`."""
        repeat, place = divmod(number, self.part.records)
        return repeat, place if repeat < self.whole else int(self.extra[place])


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
        best = set()
        for by in (1, 2):
            best |= {row[0] for row in sorted(found, key=lambda row: -row[by])[:number]}
        return sorted(best)

    def draw(self, seed: int, fraction: float) -> Subset:
        """The random part that a run with this seed and data.subset trains on."""
        from vtscale_jax.loader import kept_records  # brings grain, which brings JAX

        kept = kept_records(len(self), (seed, fraction))
        return Subset(seed, float(fraction), len(kept), ids_hash(map(self.id, kept)))

    def _at(self, index: int) -> tuple[Weighed, int]:
        place = range(len(self))[index]
        number = bisect.bisect_right(self._starts, place) - 1
        return self._sources[number], place - self._starts[number]


class Mixture:
    """The records of a mixture by index: `len(mixture)`, `mixture[i]`.

    `file` is a mixture.json; the sources' records follow one another in its order, as
    `Weighed` counts them (training shuffles). Folders are relative to the file.
    `image_root` is used in place of each prepared folder's own; packed ones need none.

    Opening it hashes what each source holds (see `FolderSource`, `ArrayRecordSource`)
    and compares that and the counts with the file; MixtureError names the source that
    differs. `fingerprint` is the file's hash: training does not go on from another.

    It may be pickled to worker processes and used from threads.
    """

    def __init__(self, file: str | Path, *, image_root: str | None = None):
        self.file = Path(file)
        self.manifest = read_manifest(self.file)
        self.fingerprint = self.manifest.sha256
        seed = self.manifest.seed
        self._records = Joined(
            [
                Weighed(part, _opened_part(self.file, part, image_root), seed)
                for part in self.manifest.parts
            ]
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Record `index`; negative ones count from the end. Raises IndexError beyond
        them, and the source's errors."""
        return self._records[index]

    def __repr__(self) -> str:
        parts = ", ".join(f"{one.name}: {one.taken}" for one in self.manifest.parts)
        return f"Mixture({str(self.file)!r}, {len(self)} records; {parts})"

    def longest(self, number: int) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters: what the shapes of batches must hold."""
        return self._records.longest(number)

    def check_subset(self, seed: int, fraction: float) -> None:
        """MixtureError unless a run with this seed (`config.seed`) and fraction
        (`data.subset`) trains on all records, or on the very part in the file."""
        if fraction == 1:
            return
        listed = self.manifest.subset
        if (seed, fraction) != (listed.seed, listed.fraction):
            raise MixtureError(
                f"{self.file}: this run draws the part (seed {seed}, data.subset "
                f"{fraction:g}) of the records, but the mixture's part for adaptation "
                f"is (seed {listed.seed}, fraction {listed.fraction:g}). Run with "
                f"--config.seed={listed.seed} --config.data.subset="
                f"{listed.fraction:g}, or make the mixture anew with --subset_seed "
                f"{seed} --subset_fraction {fraction:g}."
            )
        found = self._records.draw(seed, fraction)
        if found != listed:
            raise MixtureError(
                f"{self.file}: the part (seed {seed}, fraction {fraction:g}) has "
                f"{found.records:,} records with the hash {found.sha256}, expected "
                f"{listed.records:,} with {listed.sha256}: the file was edited, or "
                "this version of numpy draws differently. Use the versions in the file,"
                " or make the mixture anew, for a new run."
            )


def make_mixture(
    file: Path,
    sources: Sequence[tuple[str, Path, float]],
    *,
    seed: int = 0,
    subset: tuple[int, float] = (0, 0.1),
) -> Mixture:
    """Writes a mixture.json of (name, folder, weight) and returns the mixture.

    A folder is a prepared one, whose packed records are used where it has them, or the
    records.jsonl or arrayrecord/ in it. `seed` draws the parts of weights that are not
    whole; `subset` is the (seed, fraction) for adaptation. Beside the file an index of
    each source that is read in place is written, which makes opening quick.

    Raises MixtureError for names, weights and seeds that cannot be used, and for ids
    that repeats would take twice; the sources' errors for folders that are damaged.
    """
    check_names([name for name, _, _ in sources])
    check_draw(seed)
    check_draw(*subset)
    if not sources:
        raise MixtureError("got no sources; expected at least one NAME=FOLDER.")
    parts, weighed = [], []
    for name, folder, weight in sources:
        check_part(name, weight)
        store, where = store_of(name, folder)
        kinds = {"jsonl": FolderSource, "arrayrecord": ArrayRecordSource}
        stored = kinds[store](where)
        number = len(stored)
        if number == 0:
            raise MixtureError(
                f"source {name!r}: {where} has no records; expected at least one."
            )
        taken = taken_of(number, weight)
        path = _relative(where, file)
        part = Part(name, path, store, float(weight), number, taken, stored.fingerprint)
        parts.append(part)
        weighed.append(Weighed(part, stored, seed))
        _check_repeats(weighed[-1])
    manifest = Manifest(seed, tuple(parts), Joined(weighed).draw(*subset))
    file.parent.mkdir(parents=True, exist_ok=True)
    for one in weighed:
        if isinstance(one.stored, FolderSource):
            index = index_file(file, one.part.name)
            index.parent.mkdir(exist_ok=True)
            one.stored.write_index(index)
    text = to_json(manifest, code_version() | versions())
    write_whole(file, text.encode())
    return Mixture(file)


def store_of(name: str, folder: Path) -> tuple[str, Path]:
    """("jsonl", prepared folder) or ("arrayrecord", packed folder): what `folder` of
    source `name` is. MixtureError where it is neither."""
    for one in (folder, folder / array_record_source.FOLDER):
        if (one / array_record_source.PACK).is_file():
            return "arrayrecord", one
    if folder.name == RECORDS and folder.is_file():
        return "jsonl", folder.parent
    if (folder / RECORDS).is_file():
        return "jsonl", folder
    raise MixtureError(
        f"source {name!r}: {folder} is no prepared folder (it has no {RECORDS}); "
        "expected one that `python -m vtscale_jax.data prepare … --out FOLDER` wrote, "
        "as NAME=FOLDER or NAME=FOLDER:WEIGHT."
    )


def index_file(file: Path, name: str) -> Path:
    """Where the index of a source lies that is read in place."""
    return file.with_name(f"{file.stem}.index") / f"{name}.safetensors"


def _relative(folder: Path, file: Path) -> str:
    """A folder as the mixture names it: relative to the file, so that both can be moved
    together."""
    return Path(os.path.relpath(folder, file.parent)).as_posix()


def _opened_part(file: Path, part: Part, image_root: str | None) -> Stored:
    """The source of a part; MixtureError unless it is what the manifest says."""
    folder = file.parent / part.folder
    try:
        if part.store == "arrayrecord":
            stored = ArrayRecordSource(folder)
        else:
            index = index_file(file, part.name)
            stored = FolderSource(folder, image_root=image_root, index=index)
    except ValueError as error:
        raise MixtureError(
            f"{file}, source {part.name!r}: {error}\nA run goes on with the data it "
            "was started from only; for other data make the mixture anew, in a new run."
        ) from error
    there = {"records": len(stored), "sha256": stored.fingerprint}
    for field, found in there.items():
        expected = getattr(part, field)
        if found != expected:
            raise MixtureError(
                f"{file}, source {part.name!r}: its {field} in {folder} is {found}, "
                f"expected {expected}: the data have changed since the mixture was "
                "made. Bring them back, or make the mixture anew, in a new run."
            )
    return stored


def _check_repeats(source: Weighed) -> None:
    """No id of a source is what a repeat of another will be called."""
    copies = source.whole + (len(source.extra) > 0)
    if copies < 2:
        return
    ids = set(source.stored.index.all_ids())
    for one in ids:
        base, mark, number = one.rpartition("#")
        if mark and base in ids and number in map(str, range(2, copies + 1)):
            raise MixtureError(
                f"source {source.part.name!r}, record {one!r}: its weight "
                f"{source.part.weight:g} repeats record {base!r}, and a repeat is "
                "named so. Rename the record, or weigh the source 1 at most."
            )
