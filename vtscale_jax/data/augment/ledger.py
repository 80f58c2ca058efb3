"""What the language model wrote, kept as it comes.

    OUT/replies.jsonl   a line for every question asked, in the order of the batches

The lines of a batch are on the disk before the next batch is asked, so a command that
ends at any moment goes on after its last whole line. Questions that were written are
never asked again, and what becomes of them is decided anew from this file.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

FILE = "replies.jsonl"
# How a reply came about: ended by the model, cut at the limit, or not asked because the
# prompt leaves no room in the model's context.
ENDED, CUT, NO_ROOM = "ended", "cut", "no room"


class RepliesError(ValueError):
    """A line of replies.jsonl that is no reply."""


class Reply(NamedTuple):
    """The model's words in answer to one ask (`prompts.Ask.key`); `state` is ENDED, CUT
    or NO_ROOM, `tokens` how many were written."""

    record_id: str
    kind: str
    number: int
    text: str
    state: str
    tokens: int

    @property
    def key(self) -> tuple[str, str, int]:
        """The ask that it answers."""
        return (self.record_id, self.kind, self.number)


class Ledger:
    """The replies of a folder; `append` while the context of `writing` lasts."""

    def __init__(self, folder: Path):
        self.file = folder / FILE
        self._open: IO[bytes] | None = None

    def read(self) -> dict[tuple[str, str, int], Reply]:
        """The replies by key. What follows the last whole line, which a kill leaves, is
        passed over; RepliesError names the line of anything else that is no reply."""
        if not self.file.exists():
            return {}
        found: dict[tuple[str, str, int], Reply] = {}
        with self.file.open("rb") as file:
            for row, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                reply = self._reply(line, row)
                found[reply.key] = reply
        return found

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The file is open to `append`; a torn last line is cut off first."""
        with self.file.open("ab+") as self._open:
            self._open.truncate(_whole_bytes(self._open))
            try:
                yield
            finally:
                self._open = None

    def append(self, replies: Sequence[Reply]) -> None:
        """Adds replies; they are on the disk when this returns."""
        assert self._open is not None, "append within `writing`"
        lines = [json.dumps(one._asdict()) + "\n" for one in replies]
        self._open.write("".join(lines).encode())
        self._open.flush()
        os.fsync(self._open.fileno())

    def _reply(self, line: bytes, row: int) -> Reply:
        where = f"{self.file}:{row}"
        remedy = "delete the line, and the question is asked again"
        try:
            fields: Any = json.loads(line)
        except ValueError as error:
            raise RepliesError(f"{where} is no JSON ({error}): {remedy}") from error
        types = Reply.__annotations__
        right = isinstance(fields, dict) and set(fields) == set(types)
        if not right or any(type(fields[name]) is not types[name] for name in types):
            raise RepliesError(
                f"{where}: got {line[:60]!r}, expected the fields {list(types)}: "
                f"{remedy}"
            )
        return Reply(**fields)


def _whole_bytes(file: IO[bytes]) -> int:
    """Bytes up to the end of the last whole line, looked for from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
