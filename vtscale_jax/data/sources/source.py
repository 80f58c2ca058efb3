"""What a source is, and how one of its rows is taken through it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vtscale_jax.data.image_check import ImageFacts, ImageFault
from vtscale_jax.data.units import (
    NO_IMAGE,
    NOT_JSON,
    Image,
    Kept,
    Left,
    Rejected,
    Row,
)

TextRows = Literal["keep", "drop"]


class Source(NamedTuple):
    """How the rows of a set are read.

    `label` begins the ids of its records. `rows(input, images)` gives the rows in
    order; `images` is a folder for images that come inside the input. Of one row:
    `candidates` are the paths below the image root at which its image may lie (none: a
    text-only row), `origin` is what it is counted under, `messages` how many it has,
    and `convert` its records; they raise Rejected for a row that is not as it should
    be. `text_rows` is what is done with text-only rows unless asked otherwise.
    """

    label: str
    rows: Callable[[Path, Path], Iterator[Row]]
    candidates: Callable[[Any], tuple[str, ...]]
    origin: Callable[[Any], str]
    messages: Callable[[Any], int]
    convert: Callable[[Any, Image | None], Iterator[Kept | Left]]
    text_rows: TextRows = "drop"
    images_inside: bool = False


def units_of(
    row: Row,
    source: Source,
    look_up: Callable[[tuple[str, ...]], ImageFacts | ImageFault],
    text_rows: TextRows,
) -> Iterator[tuple[Kept | Left, ImageFacts | None]]:
    """What becomes of a row: its records with their image, and what is left out."""
    if row.fault is not None:
        yield Left(NOT_JSON, row.fault, "row", 0), None
        return
    facts = None
    try:
        candidates = source.candidates(row.raw)
        if candidates:
            found = look_up(candidates)
            if isinstance(found, ImageFault):
                raise Rejected(found.reason, found.detail)
            facts = found
        elif text_rows == "drop":
            raise Rejected(NO_IMAGE, "to keep such rows: --text_rows keep")
        image = Image(facts.path, facts.width, facts.height) if facts else None
        for unit in source.convert(row.raw, image):
            yield unit, facts
    except Rejected as error:
        left = Left(error.reason, error.detail, "row", source.messages(row.raw))
        yield left, None


def field(raw: Any, name: str) -> Any:
    """A field of a row that may be anything; None where there is none."""
    return raw.get(name) if isinstance(raw, dict) else None


def folder_of(path: Any) -> str:
    """What comes first in a path; "text" where there is no path."""
    if not isinstance(path, str) or not path:
        return "text"
    first, _, rest = path.removeprefix("./").partition("/")
    return first if rest else "(root)"
