"""The images that rows refer to, and what was found of each: a table on disk.

It is a SQLite file, so that millions of images take no memory, a kill leaves it whole,
and worker processes look up what they need.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from vtscale_jax.data.image_check import ImageFacts, ImageFault

Found = ImageFacts | ImageFault

_TABLE = """CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY,
    candidates TEXT NOT NULL UNIQUE,
    found TEXT
)"""


class ImageTable:
    """Rows (candidates, found) in the order of their first mention; `candidates` are
    the paths at which an image may lie. Close it, or use it in a `with`.

    `writes` is for one process at a time (the caller holds the folder: SQLite's own
    locks, which network disks lack, are not used); others read once it is closed.
    """

    def __init__(self, path: Path, *, writes: bool = False):
        way = "vfs=unix-none" if writes else "mode=ro&immutable=1"
        self._base = sqlite3.connect(f"{path.resolve().as_uri()}?{way}", uri=True)
        if writes:
            self._base.execute(_TABLE)

    def __enter__(self) -> "ImageTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._base.close()

    def add(self, images: Iterable[tuple[str, ...]]) -> None:
        """Images that rows refer to; one that is there stays as it is."""
        keys = [(json.dumps(one),) for one in images]
        with self._base as base:
            # Not INSERT OR IGNORE, whose key numbers would be used up by repeats.
            base.executemany(
                "INSERT INTO images (candidates) SELECT ?1 WHERE NOT EXISTS "
                "(SELECT 1 FROM images WHERE candidates = ?1)",
                keys,
            )

    def put(self, found: Iterable[tuple[tuple[str, ...], Found]]) -> None:
        """What was found of images, all of it or nothing."""
        rows = [(json.dumps(one), json.dumps(key)) for key, one in found]
        with self._base as base:
            base.executemany("UPDATE images SET found = ? WHERE candidates = ?", rows)

    def get(self, candidates: tuple[str, ...]) -> Found:
        """What was found of an image. KeyError for one that was never looked at."""
        query = "SELECT found FROM images WHERE candidates = ?"
        row = self._base.execute(query, (json.dumps(candidates),)).fetchone()
        if row is None or row[0] is None:
            raise KeyError(f"{candidates} was not looked at")
        return _found(row[0])

    def counts(self) -> tuple[int, int]:
        """How many images there are, and how many were looked at."""
        query = "SELECT COUNT(*), COUNT(found) FROM images"
        return self._base.execute(query).fetchone()

    def unseen(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        """Images that were not looked at, in order, `size` at a time. What is put
        meanwhile does not matter."""
        last = 0
        while True:
            query = (
                "SELECT number, candidates FROM images WHERE found IS NULL AND "
                "number > ? ORDER BY number LIMIT ?"
            )
            rows = self._base.execute(query, (last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [tuple(json.loads(candidates)) for _, candidates in rows]

    def all(self) -> Iterator[tuple[tuple[str, ...], Found]]:
        """Every image that was looked at, in order."""
        query = (
            "SELECT candidates, found FROM images WHERE found IS NOT NULL "
            "ORDER BY number"
        )
        for candidates, found in self._base.execute(query):
            yield tuple(json.loads(candidates)), _found(found)


def _found(text: str) -> Found:
    values = json.loads(text)
    if len(values) == len(ImageFault._fields):
        return ImageFault(*values)
    return ImageFacts._make([*values[:-1], tuple(values[-1])])
