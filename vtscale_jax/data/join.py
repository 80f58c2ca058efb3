"""The converted parts -> records.jsonl, in the order of the rows, no duplicates."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from vtscale_jax.data.tally import Example, Tally
from vtscale_jax.data.units import DUPLICATE

Duplicates = Literal["drop", "keep"]


def join(
    rows: Iterable[dict[str, Any]],
    file: Path,
    duplicates: Duplicates,
    done: Callable[[], object],
) -> tuple[Tally, str]:
    """Writes the records of the converted `rows`, whole or not at all; the counts, and
    the SHA-256 of the file. `done` is called after each row.

    A duplicate has the same pixels (the file's bytes), system prompt and messages as an
    earlier record. An id that is there already gets "#2", "#3", ...
    """
    tally, digest = Tally(), hashlib.sha256()
    first_with: dict[str, str] = {}
    ids: Counter[str] = Counter()
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as out:
        for row in rows:
            origin = tally.read(row["origin"], row["messages"])
            for unit in row["units"]:
                if "left" in unit:
                    reason, detail, kind, lost = unit["left"]
                    example = Example(row["row"], row["id"], detail)
                    tally.leave(origin, reason, kind, lost, example)
                    continue
                record, key = unit["record"], unit["key"]
                if duplicates == "drop":
                    first = first_with.setdefault(key, record["id"])
                    if first is not record["id"]:
                        example = Example(row["row"], row["id"], f"the same as {first}")
                        lost = unit["sizes"][0] + unit["cut"]
                        tally.leave(origin, DUPLICATE, "record", lost, example)
                        continue
                record["id"] = _own(record["id"], ids, unit["notes"])
                line = f"{json.dumps(record)}\n".encode()
                digest.update(line)
                out.write(line)
                tally.keep(
                    origin,
                    tuple(unit["sizes"]),
                    unit["cut"],
                    unit["boxes"],
                    unit["notes"],
                )
            done()
    tally.check()
    partial.replace(file)
    return tally, digest.hexdigest()


def _own(name: str, ids: Counter[str], notes: list[str]) -> str:
    """The id, changed if another record has it."""
    unique = name
    while unique in ids:
        ids[name] += 1
        unique = f"{name}#{ids[name]}"
    ids[unique] = 1
    if unique != name:
        notes.append("records whose id was there already")
    return unique
