"""Records in this package's own form: a file of lines, checked and otherwise kept as
they are (`vtscale_jax.records`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtscale_jax.data.image_roots import check_path
from vtscale_jax.data.json_rows import line_rows
from vtscale_jax.data.sources.source import Source, field, folder_of
from vtscale_jax.data.units import (
    ASSISTANT,
    MALFORMED,
    NOT_A_RECORD,
    SEVERAL_IMAGES,
    USER,
    Image,
    Kept,
    Left,
    Rejected,
    check_messages,
    count,
    messages_of,
    shown,
)
from vtscale_jax.records import RecordError, parse_record

ROLES = {"user": USER, "assistant": ASSISTANT}


def _rows(path: Path, _: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from line_rows(file)


def _candidates(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, dict):
        raise Rejected(MALFORMED, f"got {shown(raw)}, expected an object")
    image = raw.get("image")
    if isinstance(image, list):
        raise Rejected(SEVERAL_IMAGES, f"image is a list of {len(image)}")
    if image is None or (isinstance(image, str) and image.lower() == "none"):
        return ()
    return (check_path(image),)


def _convert(raw: Any, _: Image | None) -> Iterator[Kept | Left]:
    # First what has a reason of its own, then whatever else a record must be.
    check_messages(messages_of(raw.get("messages"), "messages", roles=ROLES))
    try:
        parse_record(raw, record_id="row")
    except RecordError as error:
        raise Rejected(NOT_A_RECORD, str(error)) from error
    yield Kept(raw["messages"], id=raw.get("id"), system=raw.get("system"))


JSONL = Source(
    label="jsonl",
    rows=_rows,
    candidates=_candidates,
    origin=lambda raw: folder_of(field(raw, "image")),
    messages=lambda raw: count(field(raw, "messages")),
    convert=_convert,
    text_rows="keep",
)
