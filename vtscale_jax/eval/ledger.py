"""What a model answered, item by item, kept as it comes.

    OUT/POPE/ledger.jsonl    one line for every item, in the order of the answers

A line is written before the next batch is asked and brought to the disk, so an
evaluation that ends at any moment goes on after its last whole line: no item is asked
twice and none is left out.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

EMPTY, TRUNCATED, EXCEPTION = "empty", "truncated", "exception"
IMAGES_LEFT_OUT = "images left out"

# What stands for the answer that an exception prevented. It is no answer to any
# question, and no option or reference is part of it: wrong under every scorer.
NO_ANSWER = "∅"


class LedgerError(ValueError):
    """A ledger with a line that is none, or of other items than the task's."""


class Entry(NamedTuple):
    """One item's answer.

    `index` is the item's in its table. `prompt_tokens` counts what the LLM read,
    `vision_tokens` those of them that stand for images. `flags` are EMPTY (nothing but
    white space), TRUNCATED (cut at the limit), EXCEPTION (the model could not answer:
    `error` says why, `prediction` is NO_ANSWER) and IMAGES_LEFT_OUT (the model looked
    at the first `images_seen` of `images` only).
    """

    index: str
    prompt_sha256: str
    prediction: str
    prompt_tokens: int
    vision_tokens: int
    images: int
    images_seen: int
    flags: tuple[str, ...] = ()
    error: str | None = None


class Ledger:
    """The entries of a task; `append` while the context of `writing` lasts."""

    def __init__(self, file: Path):
        self.file = file
        self._open: IO[bytes] | None = None

    def read(self) -> dict[str, Entry]:
        """The entries by index, in the order of the file.

        What follows the last whole line, which a kill leaves, is passed over.
        LedgerError names the line of anything else that is no entry, and both lines of
        an item that is there twice.
        """
        if not self.file.exists():
            return {}
        entries: dict[str, Entry] = {}
        lines: dict[str, int] = {}
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            entry = self._entry(line, number)
            if entry.index in entries:
                raise LedgerError(
                    f"{self.file}: lines {lines[entry.index]} and {number} are both of "
                    f"item {entry.index!r}: take one of them out"
                )
            entries[entry.index], lines[entry.index] = entry, number
        return entries

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The file is open to `append`; a torn last line is cut off first."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as self._open:
            self._open.seek(0)
            content = self._open.read()
            self._open.truncate(content.rfind(b"\n") + 1)
            try:
                yield
            finally:
                self._open = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds entries; they are on the disk when this returns."""
        assert self._open is not None, "append within `writing`"
        lines = [json.dumps(e._asdict(), ensure_ascii=False) + "\n" for e in entries]
        self._open.write("".join(lines).encode())
        self._open.flush()
        os.fsync(self._open.fileno())

    def without(self, indices: set[str]) -> None:
        """Takes the entries of these items out, so that they are asked again."""
        kept = [e for e in self.read().values() if e.index not in indices]
        lines = [json.dumps(e._asdict(), ensure_ascii=False) + "\n" for e in kept]
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(self.file)

    def _entry(self, line: bytes, number: int) -> Entry:
        where = f"{self.file}:{number}"
        try:
            fields: Any = json.loads(line)
        except ValueError as error:
            raise LedgerError(
                f"{where} is no JSON ({error}): restore the line, or delete it, and "
                "the item is asked again"
            ) from error
        wanted = set(Entry._fields)
        if not isinstance(fields, Mapping) or set(fields) != wanted:
            got = sorted(fields) if isinstance(fields, Mapping) else type(fields)
            raise LedgerError(
                f"{where} has {got}, expected the fields {sorted(wanted)}: it is no "
                "entry of an evaluation, or of another version; choose another --out"
            )
        return Entry(**{**fields, "flags": tuple(fields["flags"])})
