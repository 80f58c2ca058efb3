"""BAAI-SVIT: four JSON arrays about images of Visual Genome (spec: data, section 5).

{"image_id": 42, "conversations": [{"content": [
    {"from": "user", "value": "What is beside the <st>dog<ed> [0.1, 0.2, 0.4, 0.9]?"},
    {"from": "gpt", "value": "A <st>ball<ed> [0.5, 0.7, 0.6, 0.8]."}]}]}

Dialogues and descriptions: each entry is a record. Reasoning and referring questions:
the pairs of an image are joined and cut into records again, see `chunk_size`. A bad
entry or pair is left out by itself, and the size follows from those that are good.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtscale_jax.data.boxes import convert_boxes
from vtscale_jax.data.json_rows import array_rows
from vtscale_jax.data.sources import SVIT_KINDS
from vtscale_jax.data.sources.source import Source, field
from vtscale_jax.data.units import (
    ASSISTANT,
    EMPTY,
    MALFORMED,
    SHORT_QUESTION,
    USER,
    Image,
    Kept,
    Left,
    Rejected,
    check_messages,
    count,
    listed,
    messages_of,
    shown,
)

BY_ENTRY = ("conversation", "detail_description")
BY_PAIR = ("complex_reasoning", "referring_qa")
FOLDERS = ("vg/VG_100K", "vg/VG_100K_2")  # looked in in this order
ROLES = {"user": USER, "gpt": ASSISTANT}
MIN_QUESTION = 4  # characters of a record's first message
MAX_PAIRS = 10  # of a record of joined pairs


class KindError(ValueError):
    """A file of SVIT whose kind is not known."""


def kind_of(path: Path, given: str | None = None) -> str:
    """The kind of a file: as given, or the one whose name the file's has in it."""
    if given is not None:
        return given
    found = [kind for kind in SVIT_KINDS if kind in path.name]
    if len(found) != 1:
        raise KindError(
            f"{path.name}: the name says no kind of SVIT file; give it by --kind "
            f"({', '.join(SVIT_KINDS)})."
        )
    return found[0]


def chunk_size(pairs: int) -> int:
    """How many pairs make a record: all of them, halved while they are more than ten.

    10 -> 10    11 -> 5 (5 + 5 + 1)    15 -> 7 (7 + 7 + 1)    20 -> 10 (10 + 10)
    """
    while pairs > MAX_PAIRS:
        pairs //= 2
    return pairs


def svit(kind: str) -> Source:
    """The source of one of the four kinds of file."""
    return Source(
        label=f"svit-{kind}",
        rows=_rows,
        candidates=_candidates,
        origin=lambda raw: kind,
        messages=_messages,
        convert=_by_entry if kind in BY_ENTRY else _by_pair,
    )


def _rows(path: Path, _: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from array_rows(file, str(path))


def _candidates(raw: Any) -> tuple[str, ...]:
    number = field(raw, "image_id")
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    digits = isinstance(number, str) and number.isascii() and number.isdigit()
    if not whole and not digits:
        raise Rejected(MALFORMED, f"image_id is {shown(number)}, expected a number")
    return tuple(f"{folder}/{number}.jpg" for folder in FOLDERS)


def _messages(raw: Any) -> int:
    entries = field(raw, "conversations")
    if not isinstance(entries, list):
        return 0
    return sum(count(field(entry, "content")) for entry in entries)


def _entries(raw: Any) -> list[Any]:
    entries = listed(field(raw, "conversations"), "conversations")
    if not entries:
        raise Rejected(EMPTY, "conversations is an empty list")
    return entries


def _by_entry(raw: Any, image: Image | None) -> Iterator[Kept | Left]:
    for index, entry in enumerate(_entries(raw)):
        content = field(entry, "content")
        try:
            messages, boxes = _converted(content, index, image)
            _check_question(messages)
            yield Kept(messages, str(index + 1), boxes=boxes)
        except Rejected as error:
            yield Left(error.reason, error.detail, "entry", count(content))


def _by_pair(raw: Any, image: Image | None) -> Iterator[Kept | Left]:
    pairs: list[tuple[list[dict[str, Any]], int]] = []
    for index, entry in enumerate(_entries(raw)):
        content = field(entry, "content")
        try:
            rest = listed(content, f"conversations[{index}].content")
            if not rest:
                _converted(rest, index, image)  # says what is wrong with it
        except Rejected as error:
            yield Left(error.reason, error.detail, "pair", count(content))
            continue
        for start in range(0, len(rest), 2):
            pair = rest[start : start + 2]
            try:
                pairs.append(_converted(pair, index, image))
            except Rejected as error:
                yield Left(error.reason, error.detail, "pair", len(pair))
    size = chunk_size(len(pairs))
    for start in range(0, len(pairs), max(size, 1)):
        chunk = pairs[start : start + size]
        messages = [message for pair, _ in chunk for message in pair]
        part = str(start // size + 1)
        try:
            _check_question(messages)
            yield Kept(messages, part, boxes=sum(boxes for _, boxes in chunk))
        except Rejected as error:
            yield Left(error.reason, error.detail, "record", len(messages))


def _converted(
    content: Any, index: int, image: Image | None
) -> tuple[list[dict[str, Any]], int]:
    name = f"conversations[{index}].content"
    messages = messages_of(content, name, keys=("from", "value"), roles=ROLES)
    check_messages(messages)
    boxes = 0
    for message in messages:
        if image is not None:
            # These boxes refer to the image itself, not to a padded square.
            message["content"], found = convert_boxes(
                message["content"], image.width, image.height, padded=False
            )
            boxes += found
    return messages, boxes


def _check_question(messages: list[dict[str, Any]]) -> None:
    first = messages[0]["content"]
    if len(first) < MIN_QUESTION:
        raise Rejected(SHORT_QUESTION, shown(first))
