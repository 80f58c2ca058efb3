"""Pairs of images under one question: from a file, or from records that follow."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtscale_jax.divergence.pairs.schemas import BadRow, PairsError
from vtscale_jax.images import ImageLike, load_image
from vtscale_jax.types import Record

FIELDS = ("image_a", "image_b", "question")


class ImagePair(NamedTuple):
    """Two images and the question that is asked of both; `line` counts from 1."""

    line: int
    image_a: ImageLike
    image_b: ImageLike
    question: str


def read_image_pairs(path: Path) -> Iterator[ImagePair | BadRow]:
    """The rows of a JSONL file {"image_a": …, "image_b": …, "question": …}; images are
    files, relative to the folder of the JSONL file. Blank lines are no rows.

    PairsError when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PairsError(
            f"{path} cannot be read ({error}); give a JSONL file of pairs of images"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _image_pair(path, number, line)


def _image_pair(path: Path, number: int, line: str) -> ImagePair | BadRow:
    try:
        row = json.loads(line)
    except ValueError as error:
        return BadRow(number, "not JSON", str(error))
    if not isinstance(row, dict):
        return BadRow(number, "wrong type", f"got {type(row).__name__}, not an object")
    for field in FIELDS:
        if field not in row:
            return BadRow(number, "missing field", field)
        if not isinstance(row[field], str) or not row[field]:
            return BadRow(number, "wrong type", f"{field} is no text: {row[field]!r}")
    files = [path.parent / row[field] for field in FIELDS[:2]]
    if files[0] == files[1]:
        return BadRow(number, "same branches", f"both images are {row['image_a']}")
    return ImagePair(number, files[0], files[1], row["question"])


def by_twos(records: Sequence[Record]) -> list[ImagePair]:
    """Records 0 and 1, 2 and 3, …: the question of the first, asked of both images.

    No image is in two pairs: the bootstrap over pairs takes them for independent.
    """
    return [
        ImagePair(number, one.image, other.image, one.turns[0].question)
        for number, (one, other) in enumerate(
            zip(records[::2], records[1::2], strict=False), start=1
        )
        if one.image is not None and other.image is not None
    ]


def readable(row: ImagePair | BadRow) -> ImagePair | BadRow:
    """The pair, unless one of its images cannot be read."""
    if isinstance(row, BadRow):
        return row
    for image in (row.image_a, row.image_b):
        try:
            load_image(image)
        except ValueError as error:
            return BadRow(row.line, "unreadable image", str(error))
    return row


def images_sha256(rows: Sequence[ImagePair | BadRow]) -> str:
    """A hash of all rows: questions, and images as they are looked at (of one that
    cannot be read, what is said of it)."""
    digest = hashlib.sha256()
    for row in map(readable, rows):
        if isinstance(row, BadRow):
            digest.update(repr(row).encode())
            continue
        digest.update(f"{row.line} {row.question}\n".encode())
        for image in (row.image_a, row.image_b):
            digest.update(np.asarray(load_image(image)).tobytes())
    return digest.hexdigest()
