"""Which records of a file are descriptions that questions are written from.

A record is one when it has an image, a single turn, and an answer of at least
`min_chars` characters: SVIT's detail_description has such rows, and so has any file of
long captions. `source` keeps those whose id begins so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.data.prepared_folder import Reasons
from vtscale_jax.records import RecordError, parse_record, read_jsonl


class DescriptionError(ValueError):
    """A file of records in which there is no description."""


class Description(NamedTuple):
    """A record's id, its image as the record has it, and its answer."""

    record_id: str
    image: str
    text: str


def read_descriptions(
    file: Path, left_out: Reasons, *, min_chars: int, source: str = ""
) -> Iterator[Description]:
    """The descriptions of a JSONL file of records, in order; `left_out` counts the
    other records by reason. A record without id is named <file name>:<line>.

    Raises RecordError for a line that is no record and DescriptionError for an id that
    is there twice.
    """
    seen: set[str] = set()
    for number, raw in read_jsonl(file):
        record = parse_record(raw, record_id=f"{file.name}:{number}")
        if record.id in seen:
            raise DescriptionError(
                f"{file}:{number}: the id {record.id!r} is there twice, expected each "
                "once: give the records ids of their own, or none."
            )
        seen.add(record.id)
        about: dict[str, Any] = {"id": record.id}
        if not record.id.startswith(source):
            left_out.add(f"id does not begin with {source!r}", about)
        elif record.image is None:
            left_out.add("no image", about)
        elif len(record.turns) != 1:
            left_out.add("more than one turn", about)
        elif len(record.turns[0].answer.strip()) < min_chars:
            left_out.add(f"answer of fewer than {min_chars} characters", about)
        else:
            yield Description(record.id, raw["image"], record.turns[0].answer)


def checked_image(image: str, record_id: str) -> str:
    """The path again; RecordError unless it stays below whatever root it gets."""
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    try:
        parse_record(
            {"image": image, "messages": turn}, record_id=record_id, image_root="."
        )
    except RecordError as error:
        raise RecordError(
            f"{error} Prepared records hold paths below the image root: run `python -m "
            "vtscale_jax.data prepare jsonl` over the file first."
        ) from error
    return image
