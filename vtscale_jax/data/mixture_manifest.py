"""The file that says what a training set is made of.

    {"format": 1, "sha256": "…", "seed": 0, "records": 1234,
     "sources": [{"name": "llava", "folder": "llava", "store": "jsonl", "weight": 1.0,
                  "records": 1000, "taken": 1000, "sha256": "…"}, …],
     "subset": {"seed": 0, "fraction": 0.1, "records": 123, "sha256": "…"},
     "versions": {…}}

A source of n records gives weight · n of them to an epoch: each as often as the weight
is whole, and a random part, drawn with `seed`, once more. `subset` is the part of the
mixture that stage adapt draws, with the hash of the ids in it. The mixture's own
`sha256` is of all that decides which records are trained on: names, weights, counts and
hashes of the sources in their order, and the seed; not of where the folders lie.
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


class MixtureError(ValueError):
    """A mixture that cannot be made, or is not what its manifest says."""


class Part(NamedTuple):
    """One source of a mixture: `records` are in it, `taken` are drawn for an epoch."""

    name: str
    folder: str
    store: str
    weight: float
    records: int
    taken: int
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
            del part["folder"], part["store"]
        content = {"format": FORMAT, "seed": self.seed, "sources": parts}
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def taken_of(records: int, weight: float) -> int:
    """How many of `records` records a weight takes for an epoch, at least one.

    >>> taken_of(10, 0.25), taken_of(3, 2.5), taken_of(10, 0.01)
    (3, 8, 1)
    """
    return max(1, math.floor(weight * records + 0.5))


def drawn(name: str, records: int, taken: int, seed: int) -> Int[np.ndarray, " part"]:
    """Indices, in rising order, of the records of source `name` that are taken once
    more than the others: taken - records * whole repeats of them.

    The draw depends on the source's own name and size and the mixture's seed only, so
    that another source beside it changes nothing.
    """
    number = taken % records
    chance = np.random.default_rng([seed, *name.encode()])
    return np.sort(chance.permutation(records)[:number])


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
    rows, subset = content.get("sources"), content.get("subset")
    if not isinstance(rows, list) or not rows:
        raise _malformed(file, '"sources" is not a list of one or more')
    parts = [_part(file, f"sources[{i}]", row) for i, row in enumerate(rows)]
    check_names([part.name for part in parts])
    check_draw(content.get("seed"))
    kinds = {"seed": int, "fraction": float, "records": int, "sha256": str}
    found = Subset(**_fields(file, "subset", subset, kinds))
    check_draw(found.seed, found.fraction)
    manifest = Manifest(content["seed"], tuple(parts), found)
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
    kinds |= {"records": int, "taken": int, "sha256": str}
    part = Part(**_fields(file, place, row, kinds))
    check_part(part.name, part.weight)
    if part.store not in STORES:
        raise _malformed(file, f"{place}.store is {part.store!r}, none of {STORES}")
    if part.records < 1 or part.taken != taken_of(part.records, part.weight):
        text = (
            f"{place}: {part.taken} taken of {part.records} is not its weight's share"
        )
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
        if type(value) not in allowed:
            text = f"{place}.{name} is {value!r}, expected {kind.__name__}"
            raise _malformed(file, text)
    return {name: kind(row[name]) for name, kind in kinds.items()}


def _malformed(file: Path, what: str) -> MixtureError:
    return MixtureError(
        f"{file}: {what}. Make the mixture anew (`python -m vtscale_jax.data mixture "
        f"--out {file} NAME=FOLDER …`)."
    )
