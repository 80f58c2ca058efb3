"""Reading preference pairs: `for row in read_pairs("pairs.jsonl")`.

A row of a JSONL file (`.jsonl`, `.json`: one object a line) or of a Parquet file has

    orca_dpo_pairs:  system (optional), question or prompt, chosen, rejected: strings
    TRL chat lists:  prompt (optional), chosen, rejected: [{"role", "content"}, …]

Other columns are passed over. Without `prompt`, `chosen` and `rejected` hold the whole
conversation; what precedes the last message, which both must share, is the prompt. A
row that is no pair becomes a `BadRow`, which is counted and never dropped in silence.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from vtscale_jax.divergence.pairs.schemas import (
    REASONS,
    BadRow,
    Pair,
    PairsError,
    pair_of,
    shown,
)

LINE_SUFFIXES = (".jsonl", ".json")
FIELDS = ("system", "prompt", "question", "chosen", "rejected")
SHOWN = 10  # bad rows that a message lists
BATCH = 256  # rows of a Parquet file that are decoded at once
PIECE = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8


def read_pairs(path: str | Path) -> Iterator[Pair | BadRow]:
    """The rows of a file in order, read as they are asked for.

    Lines that are blank count, and are no rows. Raises PairsError, at once, for a file
    that is missing, empty, of another kind, or (Parquet) without the needed columns;
    and, at its end, for one with blank lines only.
    """
    path = Path(path)
    if not path.is_file():
        raise PairsError(
            f"{path}: there is no such file; expected one of pairs (.jsonl, .json or "
            ".parquet): check the path"
        )
    if path.stat().st_size == 0:
        raise PairsError(
            f"{path} is empty, expected a pair on each line: fetch it anew"
        )
    if row_word(path) == "line":
        _check_is_no_array(path)
        return _read_lines(path)
    return _read_parquet(path, _open_parquet(path))


def row_word(path: str | Path) -> str:
    """What `line` counts in this file, by its suffix: "line", or "row" of a Parquet
    file. PairsError for another suffix."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*LINE_SUFFIXES, ".parquet"):
        raise PairsError(
            f"{path}: the suffix is {suffix!r}, expected .jsonl, .json (one object a "
            "line) or .parquet: convert the file, or rename it to what it is"
        )
    return "row" if suffix == ".parquet" else "line"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_share(
    bad: Sequence[BadRow],
    total: int,
    most: float = 0.01,
    *,
    where: str = "the pairs",
    word: str = "line",
) -> dict[str, Any]:
    """The summary of what was left out of `total` rows, for a result file.

    `rows` is `total`, `used` what is left, `bad` the number of bad rows by reason and
    `bad_lines` their lines by reason. `where` and `word` (see `row_word`) are for the
    message. Raises PairsError, listing the first ten, when more than the share `most`
    of the rows is bad, or when no row is left.
    """
    if not 0 <= most <= 1:
        raise PairsError(
            f"max_bad_share is {most}, expected a share from 0 to 1: 0.01 is 1 row in "
            "100"
        )
    if total == 0:
        raise PairsError(f"{where}: got no row, expected at least one pair")
    counts = Counter(row.reason for row in bad)
    if len(bad) > most * total or len(bad) == total:
        listed = [f"  {word} {row.line}: {row.reason}: {row.detail}" for row in bad]
        more = len(listed) - SHOWN
        after = [f"  and {more} more"] if more > 0 else []
        share = len(bad) / total
        if len(bad) == total:
            remedy = "No pair is left: mend the rows, or give another file."
        else:
            # Rounded up, so that what the message says is enough.
            enough = -(-len(bad) * 10_000 // total) / 10_000
            remedy = (
                f"Mend or delete them, or allow as many with --max_bad_share {enough:g}"
            )
        by_reason = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
        raise PairsError(
            "\n".join(
                [
                    f"{where}: {len(bad)} of {total} rows ({share:.2%}) are no pairs, "
                    f"expected at most {most:.2%}: {by_reason}",
                    *listed[:SHOWN],
                    *after,
                    remedy,
                ]
            )
        )
    return {
        "rows": total,
        "used": total - len(bad),
        "bad": {reason: counts[reason] for reason in REASONS if counts[reason]},
        "bad_lines": {
            reason: [row.line for row in bad if row.reason == reason]
            for reason in REASONS
            if counts[reason]
        },
    }


def _check_is_no_array(path: Path) -> None:
    # An array is often one line, as long as the file: it must not be read as a line.
    with path.open("rb") as file:
        start = file.read(PIECE).removeprefix(BYTE_ORDER_MARK).lstrip()
    if start.startswith(b"["):
        raise PairsError(
            f"{path} begins with '[', expected one JSON object on each line; it is one "
            "array: write its items line by line (jq -c '.[]')"
        )


def _read_lines(path: Path) -> Iterator[Pair | BadRow]:
    any_row = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if not line.strip():
                continue
            any_row = True
            try:
                raw = json.loads(line.decode("utf-8"))
            except json.JSONDecodeError as error:
                # Its own words count lines from this one.
                said = f"{error.msg} at character {error.pos + 1}"
                yield BadRow(number, "not JSON", f"{said} of {shown(line[:40])}")
                continue
            except (ValueError, RecursionError) as error:
                yield BadRow(number, "not JSON", f"{error}: {shown(line[:40])}")
                continue
            yield pair_of(number, raw)
    if not any_row:
        raise PairsError(f"{path} has blank lines only, expected a pair on each line")


def _open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        opened = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise PairsError(
            f"{path} cannot be read as Parquet ({error}): fetch it anew, or rename it "
            "to what it is"
        ) from error
    names = opened.schema_arrow.names
    missing = [name for name in ("chosen", "rejected") if name not in names]
    if missing or not opened.metadata.num_rows:
        opened.close()
        got = f"no column {', '.join(missing)}" if missing else "no row"
        raise PairsError(
            f"{path}: got {got} (its columns are {', '.join(names)}); expected pairs, "
            "with the columns chosen, rejected and question or prompt: rename them"
        )
    return opened


def _read_parquet(
    path: Path, opened: pyarrow.parquet.ParquetFile
) -> Iterator[Pair | BadRow]:
    names = [name for name in FIELDS if name in opened.schema_arrow.names]
    number = 0
    with opened:
        try:
            for batch in opened.iter_batches(batch_size=BATCH, columns=names):
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        raw = {n: batch.column(n)[row].as_py() for n in names}
                    except UnicodeDecodeError as error:
                        yield BadRow(number, "broken text", str(error))
                        continue
                    yield pair_of(number, raw)
        except (pyarrow.ArrowException, OSError) as error:
            raise PairsError(
                f"{path}: damaged behind row {number} ({error}): fetch it anew"
            ) from error
