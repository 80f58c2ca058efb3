"""What is known of each record of a source without reading it: its id and its length.

A source of a million records opens in a second with it, and tells which records are the
longest. It is kept in a safetensors file beside the records, and is a few dozen bytes
for each of them.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Int, UInt8

from vtscale_jax.run_folder import write_whole


class RecordIndex(NamedTuple):
    """Ids and lengths of n records, in their order.

    `ids` are all ids in UTF-8, one after the other; that of record i ends before
    `id_ends[i]`. `messages` counts the messages of a record and `characters` those in
    them, the system prompt apart, as `records.JSONLSource` does.
    """

    ids: UInt8[np.ndarray, " bytes"]
    id_ends: Int[np.ndarray, " n"]
    messages: Int[np.ndarray, " n"]
    characters: Int[np.ndarray, " n"]

    @staticmethod
    def of(ids: Sequence[str], sizes: Sequence[tuple[int, int]]) -> "RecordIndex":
        """The index of records with these ids and (messages, characters)."""
        encoded = [one.encode() for one in ids]
        counts = np.asarray(sizes, np.int32).reshape(-1, 2)
        return RecordIndex(
            np.frombuffer(b"".join(encoded), np.uint8),
            np.asarray(list(accumulate(map(len, encoded))), np.int64),
            np.ascontiguousarray(counts[:, 0]),
            np.ascontiguousarray(counts[:, 1]),
        )

    @property
    def number(self) -> int:
        """How many records there are."""
        return len(self.id_ends)

    def id(self, index: int) -> str:
        """The id of record `index`, from 0."""
        start = int(self.id_ends[index - 1]) if index else 0
        return self.ids[start : int(self.id_ends[index])].tobytes().decode()

    def all_ids(self) -> list[str]:
        """The ids of all records, in their order."""
        text, start, found = self.ids.tobytes(), 0, []
        for end in self.id_ends.tolist():
            found.append(text[start:end].decode())
            start = end
        return found

    def longest(
        self, number: int, among: Int[np.ndarray, " some"] | None = None
    ) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters, in rising order; of those in `among`, or of all."""
        kept = np.arange(self.number) if among is None else among
        order = [
            kept[np.argsort(sizes[kept], kind="stable")[max(len(kept) - number, 0) :]]
            for sizes in (self.messages, self.characters)
        ]
        return np.unique(np.concatenate(order)).tolist()


def joined(parts: Sequence[RecordIndex]) -> RecordIndex:
    """The index of the records of `parts`, one part after the other."""
    starts = accumulate((len(part.ids) for part in parts), initial=0)
    ends = [part.id_ends + at for part, at in zip(parts, starts, strict=False)]
    return RecordIndex(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(ends),
        np.concatenate([part.messages for part in parts]),
        np.concatenate([part.characters for part in parts]),
    )


def write_index(
    file: Path, index: RecordIndex, about: Mapping[str, str], **more: np.ndarray
) -> None:
    """Writes an index, with `more` arrays and facts `about` them, whole or not at
    all; the same input gives the same bytes."""
    arrays = {**index._asdict(), **more}
    write_whole(file, safetensors.numpy.save(arrays, dict(about)))


def read_index(
    file: Path,
) -> tuple[RecordIndex, dict[str, np.ndarray], dict[str, str]] | None:
    """(index, more arrays, facts about them) as `write_index` wrote them; None where
    there is no such file, or what is there is no index."""
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
            about = opened.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return None
    if not set(RecordIndex._fields) <= arrays.keys():
        return None
    index = RecordIndex(*(arrays.pop(name) for name in RecordIndex._fields))
    return index, arrays, about
