"""What every command that makes a prepared folder writes, and in which form.

    OUT/records.jsonl   one record a line (`records.parse_record`), "id" set and unique
    OUT/manifest.json   where the records come from, their number and their hash
    OUT/report.json     what was kept and what was not, with reasons and examples

Each file is written whole or not at all, the manifest last: a folder that has one is
finished.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtscale_jax.run_folder import code_version, versions, write_whole

RECORDS, MANIFEST, REPORT = "records.jsonl", "manifest.json", "report.json"
EXAMPLES = 5  # kept of every reason


class PreparedFolderError(ValueError):
    """A folder that is not what a prepared folder should be."""


class Reasons:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def add(self, reason: str, example: Mapping[str, Any]) -> None:
        """One more of `reason`; `example` says which one (fields for report.json)."""
        entry = self._found.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(dict(example))

    def total(self) -> int:
        """How many were counted, over all reasons."""
        return sum(entry["count"] for entry in self._found.values())

    def counts(self) -> dict[str, int]:
        """Counts by reason, the largest first."""
        order = sorted(self._found.items(), key=lambda item: -item[1]["count"])
        return {reason: entry["count"] for reason, entry in order}

    def report(self) -> dict[str, Any]:
        """{reason: {"count", "examples"}}, the largest first."""
        return {reason: self._found[reason] for reason in self.counts()}


def file_facts(path: Path) -> dict[str, Any]:
    """{"path", "bytes", "sha256"} of an input file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest}


def records_file(path: Path) -> tuple[Path, str | None]:
    """The JSONL file that `path` names, and its image root where one is known.

    `path` is a prepared folder or a JSONL file of records. Raises PreparedFolderError
    for what is neither.
    """
    if path.is_dir():
        file = path / RECORDS
        if not file.is_file():
            raise PreparedFolderError(
                f"{path} holds no {RECORDS}: expected a folder that `python -m "
                "vtscale_jax.data prepare` wrote, or a JSONL file of records."
            )
        return file, read_manifest(path).get("images")
    if not path.is_file():
        raise PreparedFolderError(
            f"{path}: no such file or folder; expected a prepared folder or a JSONL "
            "file of records."
        )
    return path, None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder; PreparedFolderError where there is none."""
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreparedFolderError(
            f"{file} cannot be read ({error}): the folder was not finished, or is no "
            "prepared folder. Run the command that made it again."
        ) from error
    if not isinstance(found, dict):
        raise PreparedFolderError(
            f"{file} holds {type(found).__name__}, expected an object: make the folder "
            "again."
        )
    return found


def check_empty(out: Path) -> None:
    """PreparedFolderError for a folder with files in it that would be written over or
    lie among what is written. Hidden ones, which a kill leaves, do not count."""
    others = [path.name for path in out.glob("*") if not path.name.startswith(".")]
    if others:
        raise PreparedFolderError(
            f"--out {out} is not empty (it has {min(others)}) and was not prepared: "
            "choose a new or empty folder; nothing was written over."
        )


def write_prepared(
    out: Path,
    records: Iterable[Mapping[str, Any]],
    *,
    source: str,
    inputs: Mapping[str, Any],
    images: str | None,
    options: Mapping[str, Any],
    report: Callable[[], Mapping[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes records, report and manifest; returns the manifest.

    `inputs` are the facts of the input file (`file_facts`), `images` the image root as
    given, `more` fields of the manifest that only this source has. `report` is called
    after the last record was taken. Raises PreparedFolderError when two records have
    one id, and writes no manifest then.
    """
    out.mkdir(parents=True, exist_ok=True)
    digest, number = hashlib.sha256(), 0
    partial = out / f".{RECORDS}.partial"
    with partial.open("wb") as file:
        for line in _lines(records):
            file.write(line)
            digest.update(line)
            number += 1
    # A manifest of before would vouch for records that are being replaced.
    (out / MANIFEST).unlink(missing_ok=True)
    partial.replace(out / RECORDS)
    _write_json(out / REPORT, report())
    manifest = {
        "source": source,
        "input": dict(inputs),
        "images": images,
        "records": number,
        "sha256": digest.hexdigest(),
        "options": dict(options),
        **(more or {}),
        "versions": code_version() | versions(),
    }
    _write_json(out / MANIFEST, manifest)
    return manifest


def _lines(records: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    seen: set[str] = set()
    for record in records:
        if record["id"] in seen:
            raise PreparedFolderError(
                f"two records have the id {record['id']!r}, expected each once: give "
                "the records of the input ids of their own."
            )
        seen.add(record["id"])
        yield f"{json.dumps(record)}\n".encode("ascii")


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(file, text.encode())
