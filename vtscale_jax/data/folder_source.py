"""The records of a prepared folder, read in place."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vtscale_jax.data.prepared_folder import (
    RECORDS,
    PreparedFolderError,
    read_manifest,
)
from vtscale_jax.data.record_index import RecordIndex, read_index, write_index
from vtscale_jax.records import RecordError, parse_record
from vtscale_jax.types import Record


class FolderSource:
    """The records of a prepared folder by index: `len(source)`, `source[i]`.

    All of them: which lengths are allowed was decided when the folder was prepared.
    Opening it hashes records.jsonl and compares that with the folder's manifest
    (about 2 GB/s); `fingerprint` is that hash, of the records, not of their images.
    Images are below `image_root`, or below the root in the manifest.

    `index` is a file that `write_index` of this source wrote: with it, opening reads no
    record. Without it, or where it belongs to other records, each record is read once
    and checked.

    The file is opened anew for each record and nothing is shared, so the source may be
    pickled to worker processes and used from threads. Raises PreparedFolderError for a
    folder that is not what its manifest says, and RecordError for a bad record.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        image_root: str | None = None,
        index: Path | None = None,
    ):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.image_root = image_root or manifest.get("images")
        self._file = self.folder / RECORDS
        if not self._file.is_file():
            raise PreparedFolderError(
                f"{self._file}: no such file; expected the records that the manifest "
                "beside it tells of. Prepare the folder again."
            )
        self._state = _file_state(self._file)
        with self._file.open("rb") as opened:
            self.fingerprint = hashlib.file_digest(opened, "sha256").hexdigest()
        expected = manifest.get("sha256")
        if self.fingerprint != expected:
            raise PreparedFolderError(
                f"{self._file} has changed: its SHA-256 is {self.fingerprint}, but "
                f"{self.folder}/manifest.json says {expected}. Bring the file back, or "
                "prepare the folder again."
            )
        known = None if index is None else read_index(index)
        if known and known[2].get("records_sha256") == self.fingerprint:
            self.index, self._offsets = known[0], known[1]["offsets"]
        else:
            self.index, self._offsets = _read_all(self._file)
        if self.index.number != manifest.get("records"):
            raise PreparedFolderError(
                f"{self._file} holds {self.index.number:,} records, but the manifest "
                f"says {manifest.get('records')}. Prepare the folder again."
            )

    def __len__(self) -> int:
        return self.index.number

    def __getitem__(self, index: int) -> Record:
        """Record `index`; negative ones count from the end. Raises IndexError beyond
        them, and PreparedFolderError when the file has changed since it was opened."""
        place = range(len(self))[index]
        if _file_state(self._file) != self._state:
            raise PreparedFolderError(
                f"{self._file}: got a file changed since it was opened; expected its "
                "size and modification time to stay. Open the source again."
            )
        with self._file.open("rb") as file:
            file.seek(int(self._offsets[place]))
            line = file.readline()
        expected = self.index.id(place)
        raw = _decoded(line, f"{self._file}, record {place}")
        record = parse_record(raw, record_id=expected, image_root=self.image_root)
        if record.id != expected:
            raise PreparedFolderError(
                f"{self._file}: got record {record.id!r} where the index has "
                f"{expected!r}; delete the index, which is made again."
            )
        return record

    def __repr__(self) -> str:
        return f"FolderSource({str(self.folder)!r}, {len(self)} records)"

    def longest(self, number: int) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters: what the shapes of batches must hold."""
        return self.index.longest(number)

    def write_index(self, file: Path) -> None:
        """Writes what opening the folder again needs, to be given as `index`."""
        about = {"records_sha256": self.fingerprint}
        write_index(file, self.index, about, offsets=self._offsets)


def _read_all(path: Path) -> tuple[RecordIndex, np.ndarray]:
    ids, sizes, offsets, seen, offset = [], [], [], set(), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            raw = _decoded(line, where)
            record = parse_record(raw, record_id=where)
            if "id" not in raw or record.id in seen:
                got = f"{record.id!r} again" if "id" in raw else "none"
                raise PreparedFolderError(
                    f"{where}, id: got {got}; expected one of its own, as every record "
                    "of a prepared folder has. Prepare the folder again."
                )
            seen.add(record.id)
            ids.append(record.id)
            sizes.append(record_size(raw))
            offsets.append(offset)
            offset += len(line)
    return RecordIndex.of(ids, sizes), np.asarray(offsets, np.int64)


def record_size(raw: dict[str, Any]) -> tuple[int, int]:
    """(messages, characters in them) of a record as it lies in the file."""
    messages = raw["messages"]
    return len(messages), sum(len(message["content"]) for message in messages)


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{where}: got {line[:60]!r} ({error}); expected one JSON object in UTF-8 "
            "on the line. Prepare the folder again."
        ) from error


def _file_state(path: Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns
