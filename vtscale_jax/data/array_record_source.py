"""The records of a packed folder (see `array_records`), for training.

It is TFDS's format, read without TFDS and without TensorFlow, whose imports take
seconds in each worker process: ArrayRecord's own random access finds the record, and
the protocol buffer is parsed here.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vtscale_jax.data import tf_example
from vtscale_jax.data.record_index import read_index
from vtscale_jax.records import parse_record
from vtscale_jax.types import Record

FOLDER = "arrayrecord"  # in a prepared folder
PACK, INDEX = "pack.json", "index.safetensors"
FORMAT = 1


class ArrayRecordError(ValueError):
    """A packed folder, or a record in it, that is not as it was packed."""


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Which records of a file are read, by the names of array_record's protocol."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecordSource:
    """The records of a packed folder by index: `len(source)`, `source[i]`.

    `folder` is the packed folder, or the prepared folder that holds it. Each record
    brings its image as the bytes of the original file.

    Opening compares every shard's size, and the digests of the records with
    `fingerprint`, the hash of all that is in them; a record's bytes are compared with
    its digest each time it is read, so no other data can be fed. Opening reads none
    of them: a million take a second.

    It may be pickled to worker processes (files are opened there, when they are read)
    and used from threads. Raises ArrayRecordError for what is not as it was packed.
    """

    def __init__(self, folder: str | Path):
        self.folder = packed_folder(Path(folder))
        pack = read_pack(self.folder)
        found = read_index(self.folder / INDEX)
        if found is None or "digests" not in found[1]:
            raise _changed(self.folder, f"{INDEX} cannot be read")
        self.index, more, _ = found
        self._digests = more["digests"]
        self.fingerprint = content_hash(self._digests)
        if self.fingerprint != pack["sha256"]:
            text = f"{INDEX} has the hash {self.fingerprint}, expected {pack['sha256']}"
            raise _changed(self.folder, text)
        shards = []
        for shard in pack["shards"]:
            file, number = self.folder / shard["name"], shard["records"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                got = "is missing" if size is None else f"has {size:,} bytes"
                text = f"{file.name} {got}, expected {shard['bytes']:,} bytes"
                raise _changed(self.folder, text)
            shards.append(_Shard(str(file), 0, number, number))
        if sum(shard.take for shard in shards) != self.index.number:
            text = f"{PACK} and {INDEX} differ in the number of records"
            raise _changed(self.folder, text)
        self._stored = ArrayRecordDataSource(shards)

    def __len__(self) -> int:
        return self.index.number

    def __getitem__(self, index: int) -> Record:
        """Record `index`; negative ones count from the end. Raises IndexError beyond
        them, and ArrayRecordError for one that is not what was packed."""
        place = range(len(self))[index]
        record_id = self.index.id(place)
        try:
            stored = self._stored[place]
        # array_record's errors of a corrupt file are of several kinds.
        except Exception as error:
            why = f"it cannot be read ({type(error).__name__}: {error})"
            raise _changed(self.folder, f"record {record_id!r}: {why}") from error
        if hashlib.sha256(stored).digest() != self._digests[place].tobytes():
            why = "its bytes have another hash than those that were packed"
            raise _changed(self.folder, f"record {record_id!r}: {why}")
        return parse_record(unpacked(stored), record_id=record_id)

    def __repr__(self) -> str:
        return f"ArrayRecordSource({str(self.folder)!r}, {len(self)} records)"

    def longest(self, number: int) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters: what the shapes of batches must hold."""
        return self.index.longest(number)


def packed_folder(folder: Path) -> Path:
    """The packed folder that `folder` is or holds; ArrayRecordError where there is
    none."""
    for one in (folder, folder / FOLDER):
        if (one / PACK).is_file():
            return one
    raise ArrayRecordError(
        f"{folder}: got no {PACK} in it or in {FOLDER}/; expected a folder that "
        "`python -m vtscale_jax.data prepare … --store arrayrecord` has finished. The "
        "same command goes on where it was stopped."
    )


def read_pack(folder: Path) -> dict[str, Any]:
    """What pack.json of a packed folder says; ArrayRecordError where it is damaged."""
    try:
        pack = json.loads((folder / PACK).read_text(encoding="utf-8"))
        known = pack["format"] == FORMAT
        shards = [(s["name"], s["bytes"], s["records"]) for s in pack["shards"]]
        named = isinstance(pack["sha256"], str) and all(
            isinstance(name, str)
            and Path(name).name == name
            # A bool is an int to isinstance, and no number of anything here.
            and type(size) is int
            and type(number) is int
            for name, size, number in shards
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise _changed(folder, f"{PACK} cannot be read ({why})") from error
    if not known or not named:
        raise _changed(folder, f"{PACK} is not of the form that is known here")
    return pack


def content_hash(digests: np.ndarray) -> str:
    """SHA-256 over the SHA-256 digests of all records, `[n, 32]` uint8, in order: the
    same however they are cut into shards."""
    return hashlib.sha256(digests.tobytes()).hexdigest()


def unpacked(stored: bytes) -> dict[str, Any]:
    """A stored record as a raw sample, its image the bytes of the file."""
    fields = tf_example.parse(stored)
    names = ("role", "content", "family")
    columns = [fields.get(f"messages/{name}", []) for name in names]
    messages = []
    for role, content, family in zip(*columns, strict=True):
        message = {"role": role.decode(), "content": content.decode()}
        messages.append(message | ({"family": family.decode()} if family else {}))
    raw: dict[str, Any] = {"image": None, "messages": messages}
    raw |= {
        name: fields[name][0].decode() for name in ("id", "system") if name in fields
    }
    return raw | ({"image": fields["image"][0]} if "image" in fields else {})


def _changed(folder: Path, what: str) -> ArrayRecordError:
    return ArrayRecordError(
        f"{folder}: {what}. The folder has changed since it was packed: bring it back "
        "from a copy, or delete it and pack again (`python -m vtscale_jax.data prepare "
        "… --store arrayrecord`)."
    )
