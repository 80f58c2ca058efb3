"""Pairs of answers as token ids: one prefix, two branches of equal length.

write = writer_for(tokenizer)
for row in token_pairs(read_pairs(path), write, Lengths(max_length=256)): ...
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vtscale_jax.divergence.pairs.schemas import BadRow, Pair, PairsError
from vtscale_jax.divergence.pairs.writers import Writer, Written

CUT = "cut"


class Lengths(NamedTuple):
    """How long things may be, in tokens; None stands for any length.

    max_length: N; longer branches are cut to their first N tokens
    max_prefix: a pair with a longer prefix is not used
    limit:      positions of the model; a pair that needs more is not used
    """

    max_length: int | None = None
    max_prefix: int | None = None
    limit: int | None = None


class TokenPair(NamedTuple):
    """A pair as ids: A reads `prefix` and `a`, B reads `prefix` and `b`.

    Both branches have the same length, that of the shorter one and at most N: D(n)
    needs both. `notes` may hold "system moved" (into the first question: see
    `writers.ChatWriter`) and "cut" (both answers were longer than N).
    """

    line: int
    prefix: Int[np.ndarray, " k"]
    a: Int[np.ndarray, " n"]
    b: Int[np.ndarray, " n"]
    notes: tuple[str, ...] = ()


ANY_LENGTH = Lengths()


def token_pairs(
    rows: Iterable[Pair | BadRow], write: Writer, lengths: Lengths = ANY_LENGTH
) -> Iterator[TokenPair | BadRow]:
    """Each row as ids, or as the bad row that it is or turns out to be.

    A branch without tokens is an "empty branch"; branches whose ids agree as far as
    both go, after the cut, are the "same branches"; a prefix longer than `max_prefix`,
    or prefix and branch longer than `limit`, are "over-long". Raises PairsError for
    lengths below 1.
    """
    for name, value in lengths._asdict().items():
        if value is not None and value < 1:
            raise PairsError(f"{name} is {value}, expected at least 1 token")
    return (
        row if isinstance(row, BadRow) else _fitted(row.line, write(row), lengths)
        for row in rows
    )


class Tally:
    """What became of a stream of pairs.

        tally = Tally()
        for pair in tally.good(token_pairs(...)): ...
        check_share(tally.bad, tally.total) | {"notes": tally.notes}

    `total` counts all rows, `bad` lists those left out, `notes` says how many of the
    others have each note.
    """

    def __init__(self) -> None:
        self.total = 0
        self.bad: list[BadRow] = []
        self.notes: dict[str, int] = {}

    def good(self, rows: Iterable[TokenPair | BadRow]) -> Iterator[TokenPair]:
        """The pairs among the rows, as they come."""
        for row in rows:
            self.total += 1
            if isinstance(row, BadRow):
                self.bad.append(row)
                continue
            for note in row.notes:
                self.notes[note] = self.notes.get(note, 0) + 1
            yield row


def _fitted(
    line: int, written: Written | BadRow, lengths: Lengths
) -> TokenPair | BadRow:
    if isinstance(written, BadRow):
        return written
    for name, ids in (("chosen", written.a), ("rejected", written.b)):
        if not ids:
            return BadRow(line, "empty branch", f"{name} has no tokens")
    shorter = min(len(written.a), len(written.b))
    size = min(shorter, lengths.max_length or shorter)
    if written.a[:size] == written.b[:size]:
        detail = f"the same in all {size} tokens that both have"
        return BadRow(line, "same branches", detail)
    before = len(written.prefix)
    if lengths.max_prefix is not None and before > lengths.max_prefix:
        detail = f"the prefix has {before} tokens, at most {lengths.max_prefix} allowed"
        return BadRow(line, "over-long", detail)
    if lengths.limit is not None and before + size > lengths.limit:
        detail = (
            f"{before} + {size} tokens, but the model has {lengths.limit} positions"
        )
        return BadRow(line, "over-long", detail)
    notes = (*written.notes, CUT) if size < shorter else written.notes
    return TokenPair(
        line,
        np.array(written.prefix, np.int32),
        np.array(written.a[:size], np.int32),
        np.array(written.b[:size], np.int32),
        notes,
    )
