"""LLaVA v1.5 mix665k: one JSON array of conversations (spec: data, section 4).

{"id": "7", "image": "vg/VG_100K_2/7.jpg", "conversations": [
    {"from": "human", "value": "<image>\\nDescribe [0.32, 0.80, 0.59, 1.00]."},
    {"from": "gpt", "value": "White cupboards."}]}
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtscale_jax.data.boxes import convert_boxes
from vtscale_jax.data.image_roots import check_path
from vtscale_jax.data.json_rows import array_rows
from vtscale_jax.data.sources.source import Source, field, folder_of
from vtscale_jax.data.units import (
    ASSISTANT,
    MALFORMED,
    OCR_TOKENS,
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

ROLES = {"human": USER, "gpt": ASSISTANT}
MAX_MESSAGES = 48
IMAGE_MARK = re.compile(r"\n*<image>\n*")
OCR_PROMPT = "Reference OCR token"  # of TextCaps: they tell the answer


def _rows(path: Path, _: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from array_rows(file, str(path))


def _candidates(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, dict):
        raise Rejected(MALFORMED, f"got {shown(raw)}, expected an object")
    image = raw.get("image")
    if isinstance(image, list):
        raise Rejected(SEVERAL_IMAGES, f"image is a list of {len(image)}")
    return () if image is None else (check_path(image),)


def _without_mark(text: str) -> str:
    return IMAGE_MARK.sub("", text).strip()


def _convert(raw: Any, image: Image | None) -> Iterator[Kept | Left]:
    conversations = raw.get("conversations")
    messages = messages_of(
        conversations,
        "conversations",
        keys=("from", "value"),
        roles=ROLES,
        edit=_without_mark,
    )
    if messages and OCR_PROMPT in messages[0]["content"]:
        raise Rejected(OCR_TOKENS, shown(messages[0]["content"]))
    boxes = 0
    if image is not None:
        for message in messages:
            message["content"], found = convert_boxes(
                message["content"], image.width, image.height, padded=True
            )
            boxes += found
    kept = messages[:MAX_MESSAGES]
    check_messages(kept)
    yield Kept(kept, boxes=boxes, cut=len(messages) - len(kept))


LLAVA = Source(
    label="llava",
    rows=_rows,
    candidates=_candidates,
    origin=lambda raw: folder_of(field(raw, "image")),
    messages=lambda raw: count(field(raw, "conversations")),
    convert=_convert,
)
