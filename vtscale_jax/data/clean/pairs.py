"""Pairs of an original text and a generated one, read from JSONL.

    {"image": "mPLUG_imgs/a.png", "src": "# Title …", "generated": "# Title …"}

Any other key is an error of the row, and so is a missing one. A row that is no pair is
set aside with its reason, and the others are read.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.records import RecordError, parse_record

FIELDS = ("image", "src", "generated")
FORM = f"JSONL with the fields {', '.join(FIELDS)}"
MALFORMED = "no pair"
DUPLICATE = "a later row of the same image replaces it"


class PairsError(ValueError):
    """A file without pairs."""


class Pair(NamedTuple):
    """A row: its line number from 1, the image's path below the image root, and both
    texts as they are in the file."""

    row: int
    image: str
    src: str
    generated: str


class RowError(ValueError):
    """A row that is no pair: the field, what was got, what was expected."""


def read_pairs(
    path: Path, reject: Callable[[str, Mapping[str, Any]], None]
) -> Iterator[Pair]:
    """The pairs of a file in order; of several rows of one image only the last, as the
    authors' table of originals keeps the last one.

    `reject` is told the reason and the row of all that is left out, before the first
    pair is given. The file is read twice, and only a hash of each image's name is held
    in memory. Raises PairsError for a file without rows.
    """
    last: dict[bytes, int] = {}
    rows = 0
    for number, line in _lines(path):
        rows += 1
        try:
            pair = parse_pair(line, number)
        except RowError as error:
            reject(MALFORMED, {"row": number, "error": str(error)})
            continue
        before = last.get(_key(pair))
        if before is not None:
            about = {"row": before, "image": pair.image, "replaced_by": number}
            reject(DUPLICATE, about)
        last[_key(pair)] = number
    if not rows:
        raise PairsError(f"{path} is empty; expected {FORM}.")
    for number, line in _lines(path):
        try:
            pair = parse_pair(line, number)
        except RowError:
            continue  # counted above
        if last[_key(pair)] == number:
            yield pair


def parse_pair(line: bytes, row: int) -> Pair:
    """One line of the file; RowError says what is wrong with it."""
    where = f"row {row}"
    try:
        raw: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RowError(
            f"{where}: got {line[:60]!r} ({error}); expected one JSON object in UTF-8"
        ) from error
    if not isinstance(raw, dict) or set(raw) != set(FIELDS):
        got = f"the keys {sorted(raw)}" if isinstance(raw, dict) else f"{raw!r:.60}"
        raise RowError(f"{where}: got {got}; expected an object with {list(FIELDS)}")
    for field in FIELDS:
        if not isinstance(raw[field], str):
            raise RowError(f"{where}: {field}: got {raw[field]!r:.60}, expected text")
    try:
        # The rules of records: valid Unicode, an image below its root. A letter before
        # each text, as the criteria say what becomes of an empty one.
        turn = [
            {"role": "user", "content": f"q{raw['src']}"},
            {"role": "assistant", "content": f"a{raw['generated']}"},
        ]
        made = {"image": raw["image"], "messages": turn}
        record = parse_record(made, record_id=where, image_root="images")
    except RecordError as error:
        raise RowError(str(error)) from error
    if record.image is None:
        raise RowError(f"{where}: image: got {raw['image']!r}, expected a path")
    return Pair(row, raw["image"], raw["src"], raw["generated"])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _key(pair: Pair) -> bytes:
    return hashlib.sha256(pair.image.encode()).digest()[:16]
