"""mPLUG DocDownstream 1.0 and its like: a file of lines (spec: data, section 6).

{"image": ["./imgs/DUE_Benchmark/DocVQA/pngs/a_1.png"], "messages": [
    {"role": "user", "content": "<|image|>What year?"},
    {"role": "assistant", "content": "1993"}], "task_name": "qa_sft",
    "dataset_name": "DocVQA"}

An image is looked for at mPLUG_imgs/…, where the authors put it, and at imgs/…, as it
is downloaded; the record has the path at which it is. Boxes have their final form.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtscale_jax.data.image_roots import check_path
from vtscale_jax.data.json_rows import line_rows
from vtscale_jax.data.sources.source import Source, field
from vtscale_jax.data.units import (
    ASSISTANT,
    MALFORMED,
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

ROLES = {"user": USER, "assistant": ASSISTANT}
IMAGE_MARK = re.compile(r"\n*<\|image\|>\n*")
DOWNLOADED, PUT = "imgs/", "mPLUG_imgs/"


def _rows(path: Path, _: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from line_rows(file)


def _candidates(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, dict):
        raise Rejected(MALFORMED, f"got {shown(raw)}, expected an object")
    images = raw.get("image")
    if not isinstance(images, list):
        raise Rejected(MALFORMED, f"image is {shown(images)}, expected a list of paths")
    if len(images) > 1:
        raise Rejected(SEVERAL_IMAGES, f"image is a list of {len(images)}")
    if not images:
        return ()
    path = check_path(images[0])
    if not path.startswith(f"./{DOWNLOADED}"):
        return (path,)
    rest = path.removeprefix(f"./{DOWNLOADED}")
    return (f"{PUT}{rest}", f"{DOWNLOADED}{rest}")


def _convert(raw: Any, _: Image | None) -> Iterator[Kept | Left]:
    messages = messages_of(
        raw.get("messages"),
        "messages",
        roles=ROLES,
        edit=lambda text: IMAGE_MARK.sub("", text),  # not stripped, as the authors do
    )
    check_messages(messages)
    yield Kept(messages)


def _origin(raw: Any) -> str:
    name = field(raw, "dataset_name")
    return name if isinstance(name, str) and name else "(no dataset_name)"


DOCDOWNSTREAM = Source(
    label="docdownstream",
    rows=_rows,
    candidates=_candidates,
    origin=_origin,
    messages=lambda raw: count(field(raw, "messages")),
    convert=_convert,
)
