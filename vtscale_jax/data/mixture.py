"""Several prepared folders, each with a weight, as one source of records."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtscale_jax.data import array_record_source
from vtscale_jax.data.array_record_source import ArrayRecordSource
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.mixture_manifest import (
    HeldOut,
    Manifest,
    MixtureError,
    Part,
    check_draw,
    check_names,
    check_part,
    default_heldout,
    held_out,
    read_manifest,
    taken_of,
    to_json,
)
from vtscale_jax.data.mixture_records import Apart, Joined, Stored, Weighed
from vtscale_jax.data.prepared_folder import RECORDS
from vtscale_jax.run_folder import code_version, versions, write_whole
from vtscale_jax.types import Record

SPLITS = ("train", "heldout")


class Mixture:
    """The records of a mixture by index: `len(mixture)`, `mixture[i]`.

    `file` is a mixture.json. Split "train" has the sources' records one after another
    in its order, as `Weighed` counts them (training shuffles), without those that are
    held out: these are split "heldout", each once, in random order. They are drawn by
    record: a record of "train" may show the same image as one of them.

    Folders are relative to the file. `image_root` is used in place of each prepared
    folder's own; packed ones need none.

    Opening it hashes what each source holds (see `FolderSource`, `ArrayRecordSource`),
    draws what is held out, and compares both and the counts with the file; MixtureError
    names what differs. `fingerprint` is the hash of what decides the split's records:
    training does not go on from another.

    It may be pickled to worker processes and used from threads.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        split: str = "train",
        image_root: str | None = None,
    ):
        self.file, self.split = Path(file), split
        if split not in SPLITS:
            raise MixtureError(f"split: got {split!r}; expected one of {SPLITS}.")
        self.manifest = read_manifest(self.file)
        heldout = self.manifest.heldout
        if split == "heldout" and heldout.records == 0:
            raise MixtureError(
                f"{self.file} holds no records out of training; expected some, for "
                "the loss on them. Make the mixture anew with --heldout N (as 512), "
                "or name others (--config.data.heldout_path=FILE)."
            )
        stored = {
            part.name: _opened_part(self.file, part, image_root)
            for part in self.manifest.parts
        }
        sizes = {name: len(source) for name, source in stored.items()}
        apart = Apart(stored, held_out(sizes, heldout.records, heldout.seed))
        self._check_heldout(apart)
        if split == "heldout":
            self.fingerprint = self.manifest.heldout_sha256
            self._records = apart
            return
        self.fingerprint = self.manifest.sha256
        seed = self.manifest.seed
        self._records = Joined(
            [
                Weighed(part, stored[part.name], seed, apart.of(part.name))
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
        counts = {
            part.name: part.taken if self.split == "train" else part.heldout
            for part in self.manifest.parts
        }
        parts = ", ".join(f"{name}: {number}" for name, number in counts.items())
        return (
            f"Mixture({str(self.file)!r}, {self.split}, {len(self)} records; {parts})"
        )

    def longest(self, number: int) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters: what the shapes of batches must hold."""
        return self._records.longest(number)

    def check_subset(self, seed: int, fraction: float) -> None:
        """MixtureError unless a run with this seed (`config.seed`) and fraction
        (`data.subset`) trains on all records, or on the very part in the file. Of what
        is held out nothing is drawn."""
        if fraction == 1 or isinstance(self._records, Apart):
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

    def _check_heldout(self, apart: Apart) -> None:
        """MixtureError unless these are the records that the manifest holds out."""
        listed, found = self.manifest.heldout, apart.ids_hash()
        counts = {part.name: len(apart.of(part.name)) for part in self.manifest.parts}
        expected = {part.name: part.heldout for part in self.manifest.parts}
        if (found, counts) != (listed.sha256, expected):
            raise MixtureError(
                f"{self.file}: what is held out (seed {listed.seed}, "
                f"{listed.records:,} records) is {counts} with the hash {found}, "
                f"expected {expected} with {listed.sha256}: the file was edited, or "
                "this version of numpy draws differently. Use the versions in the file,"
                " or make the mixture anew, for a new run."
            )


def make_mixture(
    file: Path,
    sources: Sequence[tuple[str, Path, float]],
    *,
    seed: int = 0,
    subset: tuple[int, float] = (0, 0.1),
    heldout: tuple[int, int | None] = (0, None),
) -> Mixture:
    """Writes a mixture.json of (name, folder, weight) and returns the mixture.

    A folder is a prepared one, whose packed records are used where it has them, or the
    records.jsonl or arrayrecord/ in it. `seed` draws the parts of weights that are not
    whole; `subset` is the (seed, fraction) for adaptation; `heldout` the (seed, number)
    of records that training never sees, None for `default_heldout`. Beside the file an
    index of each source that is read in place is written, which makes opening quick.

    Raises MixtureError for names, weights, numbers and seeds that cannot be used, and
    for ids that repeats would take twice; the sources' errors for folders that are
    damaged.
    """
    check_names([name for name, _, _ in sources])
    check_draw(seed)
    check_draw(*subset)
    check_draw(heldout[0])
    if not sources:
        raise MixtureError("got no sources; expected at least one NAME=FOLDER.")
    kinds = {"jsonl": FolderSource, "arrayrecord": ArrayRecordSource}
    stores, opened = {}, {}
    for name, folder, weight in sources:
        check_part(name, weight)
        store, where = stores[name] = store_of(name, folder)
        opened[name] = kinds[store](where)
        if len(opened[name]) == 0:
            raise MixtureError(
                f"source {name!r}: {where} has no records; expected at least one."
            )
    apart = _drawn_apart(opened, *heldout)
    weighed = []
    for name, _, weight in sources:
        number, indices = len(opened[name]), apart.of(name)
        left = number - len(indices)
        if left == 0:
            raise MixtureError(
                f"source {name!r}: all its {number:,} records would be held out; "
                "expected some to train on. Hold out fewer (--heldout), or draw others "
                "(--heldout_seed)."
            )
        store, where = stores[name]
        part = Part(
            *(name, _relative(where, file), store, float(weight)),
            *(number, len(indices), taken_of(left, weight)),
            opened[name].fingerprint,
        )
        weighed.append(Weighed(part, opened[name], seed, indices))
        _check_repeats(weighed[-1])
    manifest = Manifest(
        seed,
        tuple(one.part for one in weighed),
        HeldOut(heldout[0], len(apart), apart.ids_hash()),
        Joined(weighed).draw(*subset),
    )
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


def _drawn_apart(opened: Mapping[str, Stored], seed: int, number: int | None) -> Apart:
    """What is held out of these sources; MixtureError where so many cannot be."""
    sizes = {name: len(source) for name, source in opened.items()}
    total = sum(sizes.values())
    number = default_heldout(total) if number is None else number
    if type(number) is not int or not 0 <= number < total:
        raise MixtureError(
            f"records held out: got {number!r}; expected a whole number from 0 on, "
            f"below the {total:,} records that there are (--heldout)."
        )
    return Apart(opened, held_out(sizes, number, seed))


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
