"""A part of the input's rows -> the records of it, in one process.

Of every row one line is written: what it was counted under, how many messages it had,
its records, and what was left out of it. `join` makes one file of all parts.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.data.image_check import ImageFacts
from vtscale_jax.data.image_table import ImageTable
from vtscale_jax.data.sources.by_name import source_by_name
from vtscale_jax.data.sources.source import Source, TextRows, field, units_of
from vtscale_jax.data.units import (
    NOT_A_RECORD,
    TOO_LONG,
    TOO_SHORT,
    Kept,
    Left,
    Rejected,
    Row,
)
from vtscale_jax.records import RecordError, parse_record
from vtscale_jax.run_folder import write_whole

OWN_IDS = ("id", "image_id", "index")  # fields by which rows name themselves


class Conversion(NamedTuple):
    """What a process must know to convert parts; plain values, so that it can be sent.

    `name`, `input` and `kind` are those of `source_by_name`; `work` has the parts and
    the table of images.
    """

    name: str
    input: Path
    kind: str | None
    work: Path
    text_rows: TextRows
    min_chars: int
    max_chars: int


def part_file(work: Path, step: str, number: int) -> Path:
    """Where part `number` of a step lies: "rows" as read, or "converted"."""
    return work / step / f"{number:06d}.jsonl"


def write_rows(file: Path, rows: list[Row]) -> None:
    """Writes a part of the input's rows, whole or not at all."""
    write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows).encode())


def convert_part(of: Conversion, number: int) -> int:
    """Converts a part, unless that is done; how many rows it has."""
    rows = part_file(of.work, "rows", number).read_bytes().splitlines()
    file = part_file(of.work, "converted", number)
    if file.exists():
        return len(rows)
    source = source_by_name(of.name, of.input, of.kind)
    with ImageTable(of.work / "images.sqlite") as table:
        lines = [_converted(Row(*json.loads(row)), source, table, of) for row in rows]
    write_whole(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return len(rows)


def _converted(
    row: Row, source: Source, table: ImageTable, of: Conversion
) -> dict[str, Any]:
    units = [
        _unit(unit, facts, row, source, of)
        for unit, facts in units_of(row, source, table.get, of.text_rows)
    ]
    own = next((field(row.raw, name) for name in OWN_IDS if field(row.raw, name)), "")
    readable = row.fault is None
    return {
        "row": row.number,
        "id": _printable(str(own)),
        "origin": _printable(source.origin(row.raw)) if readable else "(not read)",
        "messages": source.messages(row.raw) if readable else 0,
        "units": units,
    }


def _unit(
    unit: Kept | Left,
    facts: ImageFacts | None,
    row: Row,
    source: Source,
    of: Conversion,
) -> dict[str, Any]:
    if isinstance(unit, Left):
        return {"left": list(unit)}
    part = f".{unit.part}" if unit.part else ""
    record: dict[str, Any] = {"id": unit.id or f"{source.label}/{row.number}{part}"}
    record["image"] = facts.path if facts else None
    record |= {"system": unit.system} if unit.system is not None else {}
    record["messages"] = unit.messages
    size = sum(len(message["content"]) for message in unit.messages)
    try:
        _check(record, size, of)
    except Rejected as error:
        # Messages that were cut are lost with the record.
        lost = len(unit.messages) + unit.cut
        return {"left": [error.reason, error.detail, "record", lost]}
    pixels = facts.sha256 if facts else None
    said = json.dumps([pixels, unit.system, unit.messages], sort_keys=True)
    return {
        "record": record,
        "key": hashlib.sha256(said.encode()).hexdigest()[:32],
        "sizes": [len(unit.messages), size],
        "cut": unit.cut,
        "boxes": unit.boxes,
        "notes": _notes(unit),
    }


def _check(record: dict[str, Any], size: int, of: Conversion) -> None:
    if size < of.min_chars:
        detail = f"{size}, expected at least {of.min_chars} in all messages"
        raise Rejected(TOO_SHORT, detail)
    if size > of.max_chars:
        raise Rejected(TOO_LONG, f"{size:,}, expected at most {of.max_chars:,}")
    try:
        parse_record(record, record_id=record["id"])
    except RecordError as error:
        raise Rejected(NOT_A_RECORD, str(error)) from error


def _notes(unit: Kept) -> list[str]:
    marked = any("<image>" in message["content"] for message in unit.messages)
    return [*unit.notes, *(["records with <image> in a text"] if marked else [])]


def _printable(text: str) -> str:
    """At most 60 characters that can be encoded."""
    return text[:60].encode(errors="backslashreplace").decode()


def converted_rows(work: Path, parts: int) -> Iterator[dict[str, Any]]:
    """What was written of every row, in the order of the rows."""
    for number in range(parts):
        with part_file(work, "converted", number).open("rb") as lines:
            yield from map(json.loads, lines)
