"""The file that says what a training set is made of.

    {"format": 1, "sha256": "…", "seed": 0, "records": 1234,
     "sources": [{"name": "llava", "folder": "llava", "store": "jsonl", "weight": 1.0,
                  "records": 1000, "heldout": 10, "taken": 990, "sha256": "…"}, …],
     "heldout": {"seed": 0, "records": 12, "sha256": "…"},
     "subset": {"seed": 0, "fraction": 0.1, "records": 123, "sha256": "…"},
     "versions": {…}}

`heldout` are records of all sources that training never sees, drawn each as likely as
any other, with the hash of their ids. A source that has n records left gives weight · n
of them to an epoch: each as often as the weight is whole, and a random part, drawn with
`seed`, once more; `records` counts those of an epoch. `subset` is the part of them that
stage adapt draws, with the hash of the ids in it.

The mixture's own `sha256` is of all that decides which records are trained on: names,
weights, counts and hashes of the sources in their order, the seed, and what is held
out; not of where the folders lie.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it begins ids: "name/id"
STORES = ("jsonl", "arrayrecord")
MAX_WEIGHT = 1000.0
MAX_RECORDS = 10**12  # of a source: more is no count
MAX_FLOAT = 1e300  # JSON has whole numbers that no float holds
MOST_HELD_OUT = 512  # unless a number is given


class MixtureError(ValueError):
    """A mixture that cannot be made, or is not what its manifest says."""


class Part(NamedTuple):
    """One source of a mixture: `records` are in it, of which `heldout` are held out of
    training; `taken` are drawn from the others for an epoch."""

    name: str
    folder: str
    store: str
    weight: float
    records: int
    heldout: int
    taken: int
    sha256: str

    @property
    def left(self) -> int:
        """How many records there are to train on."""
        return self.records - self.heldout


class HeldOut(NamedTuple):
    """The records that training never sees: drawn by `held_out` with the seed; `sha256`
    is of their ids, in the order they were drawn."""

    seed: int
    records: int
    sha256: str


class Subset(NamedTuple):
    """A random part of a mixture: drawn by `loader.kept_records` with (seed, fraction);
    `sha256` is of the ids in it, in order."""

    seed: int
    fraction: float
    records: int
    sha256: str


class Manifest(NamedTuple):
    """What mixture.json says; see the module's docstring."""

    seed: int
    parts: tuple[Part, ...]
    heldout: HeldOut
    subset: Subset

    @property
    def records(self) -> int:
        """Records of an epoch."""
        return sum(part.taken for part in self.parts)

    @property
    def sha256(self) -> str:
        """The hash of all that decides which records are trained on."""
        parts = [part._asdict() for part in self.parts]
        for part in parts:
            # Where it lies, and in which form: its own hash tells forms apart.
            # What is held out of it is in the hash of all that is held out.
            del part["folder"], part["store"], part["heldout"]
        content = {"format": FORMAT, "seed": self.seed, "sources": parts}
        if self.heldout.records:
            content["heldout"] = self.heldout._asdict()
        return _hash_of(content)

    @property
    def heldout_sha256(self) -> str:
        """The hash of all that decides what is held out, which weights do not."""
        sources = sorted((part.name, part.records, part.sha256) for part in self.parts)
        heldout = self.heldout._asdict()
        return _hash_of({"format": FORMAT, "heldout": heldout, "sources": sources})


def taken_of(records: int, weight: float) -> int:
    """How many of `records` records a weight takes for an epoch, at least one.

    >>> taken_of(10, 0.25), taken_of(3, 2.5), taken_of(10, 0.01)
    (3, 8, 1)
    """
    return max(1, math.floor(weight * records + 0.5))


def drawn(name: str, records: int, taken: int, seed: int) -> Int[np.ndarray, " part"]:
    """Which of the `records` records of source `name` are taken once more than the
    others, in rising order: taken - records * whole repeats of them.

    The draw depends on the source's own name and size and the mixture's seed only, so
    that another source beside it changes nothing (but what is held out of each).
    """
    number = taken % records
    chance = np.random.default_rng([seed, *name.encode()])
    return np.sort(chance.permutation(records)[:number])


def held_out(sizes: Mapping[str, int], number: int, seed: int) -> list[tuple[str, int]]:
    """(source, index) of `number` distinct records of sources of these sizes, in random
    order; each record is as likely as any other.

    The order of the sources changes nothing, nor do their weights.
    """
    names = sorted(sizes)
    ends = np.cumsum([sizes[name] for name in names])
    chance = np.random.default_rng([seed, *b"held out"])
    places = chance.choice(int(ends[-1]), number, replace=False)
    of = np.searchsorted(ends, places, side="right").tolist()
    starts = [0, *ends.tolist()]
    return [
        (names[source], place - starts[source])
        for source, place in zip(of, places.tolist(), strict=True)
    ]


def default_heldout(records: int) -> int:
    """How many of `records` records are held out when no number is given.

    >>> default_heldout(50), default_heldout(2_000), default_heldout(1_000_000)
    (0, 20, 512)
    """
    return min(MOST_HELD_OUT, records // 100)


def ids_hash(ids: Iterable[str]) -> str:
    """SHA-256 of ids in order, each as a JSON string on a line of its own."""
    digest = hashlib.sha256()
    for one in ids:
        digest.update(f"{json.dumps(one)}\n".encode("ascii"))
    return digest.hexdigest()


def check_part(name: Any, weight: Any) -> None:
    """MixtureError for a source's name or weight that cannot be used."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MixtureError(
            f"source name {name!r}: expected letters, digits, '_', '-' and '.', as it "
            "begins the ids of its records. Rename it."
        )
    if type(weight) not in (int, float) or not 0 < weight <= MAX_WEIGHT:
        raise MixtureError(
            f"source {name!r}: got the weight {weight!r}; expected a number above 0, "
            f"at most {MAX_WEIGHT:g}. Leave the source out instead of weighing it 0."
        )


def check_draw(seed: Any, fraction: Any = 1.0) -> None:
    """MixtureError for a seed or a fraction that nothing can be drawn with."""
    if type(seed) is not int or seed < 0:
        raise MixtureError(f"seed: got {seed!r}; expected a whole number from 0 on.")
    if type(fraction) not in (int, float) or not 0 < fraction <= 1:
        raise MixtureError(
            f"subset fraction: got {fraction!r}; expected more than 0, at most 1."
        )


def to_json(manifest: Manifest, versions: Mapping[str, Any]) -> str:
    """The text of mixture.json."""
    content = {
        "format": FORMAT,
        "sha256": manifest.sha256,
        "seed": manifest.seed,
        "records": manifest.records,
        "sources": [part._asdict() for part in manifest.parts],
        "heldout": manifest.heldout._asdict(),
        "subset": manifest.subset._asdict(),
        "versions": dict(versions),
    }
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n"


def read_manifest(file: Path) -> Manifest:
    """What a mixture.json says, checked against its own hash and counts.

    Raises MixtureError naming the file, the field, and what was expected.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MixtureError(
            f"{file}: no such file; expected a mixture that `python -m vtscale_jax.data"
            " mixture --out FILE` made."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _malformed(file, f"cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _malformed(file, f'has no "format": {FORMAT}')
    rows = content.get("sources")
    if not isinstance(rows, list) or not rows:
        raise _malformed(file, '"sources" is not a list of one or more')
    parts = [_part(file, f"sources[{i}]", row) for i, row in enumerate(rows)]
    check_names([part.name for part in parts])
    check_draw(content.get("seed"))
    kinds = {"seed": int, "records": int, "sha256": str}
    heldout = HeldOut(**_fields(file, "heldout", content.get("heldout"), kinds))
    check_draw(heldout.seed)
    kinds["fraction"] = float
    subset = Subset(**_fields(file, "subset", content.get("subset"), kinds))
    check_draw(subset.seed, subset.fraction)
    manifest = Manifest(content["seed"], tuple(parts), heldout, subset)
    number = sum(part.heldout for part in parts)
    if heldout.records != number:
        text = f"heldout.records is {heldout.records}, but the sources have {number}"
        raise _malformed(file, text)
    for field, expected in (
        ("sha256", manifest.sha256),
        ("records", manifest.records),
    ):
        if content.get(field) != expected:
            raise _malformed(
                file,
                f'"{field}" is {content.get(field)!r}, but what the file lists gives '
                f"{expected!r}: it was edited",
            )
    return manifest


def check_names(names: Sequence[str]) -> None:
    """MixtureError when two sources have one name."""
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise MixtureError(
            f"source name {again[0]!r} is given twice; expected each once, as it begins"
            " the ids of its records. Rename one, or give one of them another weight."
        )


def _part(file: Path, place: str, row: Any) -> Part:
    kinds = {"name": str, "folder": str, "store": str, "weight": float}
    kinds |= {"records": int, "heldout": int, "taken": int, "sha256": str}
    part = Part(**_fields(file, place, row, kinds))
    check_part(part.name, part.weight)
    if part.store not in STORES:
        raise _malformed(file, f"{place}.store is {part.store!r}, none of {STORES}")
    if not 1 <= part.records <= MAX_RECORDS or not 0 <= part.heldout < part.records:
        text = f"{place}: {part.heldout} held out of {part.records} cannot be"
        raise _malformed(file, text)
    if part.taken != taken_of(part.left, part.weight):
        text = f"{place}: {part.taken} taken of {part.left} is not its weight's share"
        raise _malformed(file, text)
    return part


def _fields(
    file: Path, place: str, row: Any, kinds: Mapping[str, type]
) -> dict[str, Any]:
    if not isinstance(row, dict) or row.keys() != kinds.keys():
        raise _malformed(file, f"{place} has not the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        value = row[name]
        allowed = (int, float) if kind is float else (kind,)
        if type(value) not in allowed or (kind is float and abs(value) > MAX_FLOAT):
            text = f"{place}.{name} is {value!r}, expected {kind.__name__}"
            raise _malformed(file, text)
    return {name: kind(row[name]) for name, kind in kinds.items()}


def _hash_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _malformed(file: Path, what: str) -> MixtureError:
    return MixtureError(
        f"{file}: {what}. Make the mixture anew (`python -m vtscale_jax.data mixture "
        f"--out {file} NAME=FOLDER …`)."
    )
