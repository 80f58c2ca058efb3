"""A benchmark's table (TSV) as VLMEvalKit reads it, with its images left in the file.

The columns but the images are in memory, typed by pandas' own rules: `None`, `NA` and
their like are missing, a column of numbers is numeric. Of each image only the place in
the file is kept, so that a table of gigabytes takes megabytes.
"""

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vtscale_jax.eval.benchmarks.image_cells import (
    LONGEST_REFERENCE,
    ImageError,
    check_is_image,
    decoded,
    encoded_images,
)
from vtscale_jax.eval.benchmarks.table_checks import check_columns, check_rows
from vtscale_jax.eval.benchmarks.tasks import Task, Version
from vtscale_jax.eval.benchmarks.tsv import TableError, records, unquoted
from vtscale_jax.eval.scoring.cells import literal_list

CAPTION_QUESTION = (
    "Please describe this image in general. Directly provide the description, do not "
    'include prefix like "This image depicts". '
)
_IMAGE = "image"
# Stands for an image where pandas reads the other columns: a text that is not missing.
_KEPT_IN_FILE = b"(in the file)"


class _Cell(NamedTuple):
    """Where an image cell lies in the file, and how many images it holds."""

    start: int
    length: int
    images: int


@dataclass(frozen=True)
class Table:
    """The rows of a benchmark that have images.

    `rows` are the columns without the images, `index` as VLMEvalKit types it (whole
    numbers, else text). `lines` is the line of the file on which each row begins.
    `dropped` counts rows without an image, which VLMEvalKit leaves out. `md5` is the
    file's checksum. `notes` says in sentences what a reader should know: rows left out,
    a checksum that is not the official one.
    """

    task: Task
    path: Path
    rows: pd.DataFrame
    lines: tuple[int, ...]
    dropped: int
    md5: str
    notes: tuple[str, ...]
    _sources: tuple[_Cell | tuple[Path, ...], ...] = field(repr=False)
    _stamp: tuple[int, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, i: int) -> dict[str, Any]:
        """Row i (from 0) by column, numbers as Python's; missing cells are NaN."""
        return {name: cells[i] for name, cells in self._cells.items()}

    @functools.cached_property
    def _cells(self) -> dict[str, list[Any]]:
        """The columns as lists: pandas takes a quarter of a millisecond for a row."""
        return {str(name): self.rows[name].tolist() for name in self.rows}

    def where(self, i: int) -> str:
        """Names row i (from 0) in a message."""
        index = self.rows["index"].iloc[i]
        return f"{self.path}, line {self.lines[i]} (index {index})"

    def num_images(self, i: int) -> int:
        """How many images row i (from 0) has."""
        source = self._sources[i]
        return source.images if isinstance(source, _Cell) else len(source)

    def same_images(self, i: int, j: int) -> bool:
        """Whether rows i and j (from 0) have the very same image cells or files: one
        names the other's, or both a third's."""
        return self._sources[i] == self._sources[j]

    def images(self, i: int) -> tuple[bytes, ...]:
        """The image files of row i (from 0), in order, read now. TableError when the
        table was changed since it was read or an image file is not there."""
        source = self._sources[i]
        if not isinstance(source, _Cell):
            return tuple(_image_file(path, self.where(i)) for path in source)
        if _stamp(self.path) != self._stamp:
            raise TableError(
                f"{self.path} was changed since it was read; start this command again"
            )
        with self.path.open("rb") as file:
            file.seek(source.start)
            cell = file.read(source.length)
        return tuple(map(decoded, encoded_images(unquoted(cell).decode())))


def read_table(
    path: str | Path,
    task: Task,
    version: Version = "paper",
    *,
    need_files: bool = True,
) -> Table:
    """The table of a benchmark from a TSV file.

    Images are checked one by one as the file is read (base64, and the beginning of an
    image file), never all held. Without an `image` column there must be `image_path`:
    files by absolute path, or below images/<root>/ beside the table, as in the
    localized table <name>_local.tsv. They must be there unless `need_files` is False,
    as for scores, which need no image.

    TableError names the file and, where there is one, the line and index of: a file
    that is no table, missing columns, cells that are not as `table_checks` expects, an
    index that is missing or there twice, an image that cannot be read, a reference to
    no image. A checksum that is not the official table's is a sentence of `notes`.
    """
    path = Path(path)
    stamp = _stamp(path)
    text, lines, cells, has_image = _without_images(path, task)
    frame = _parsed(path, text, lines)
    md5 = _md5(path)
    notes = _checksum_notes(path, md5, task, version)
    if has_image:
        here = frame[_IMAGE].notna().to_numpy()
        references = [str(one) for one in frame.pop(_IMAGE)[here]]
        frame = frame[here].reset_index(drop=True)
        lines = [one for one, kept in zip(lines, here, strict=True) if kept]
        cells = [one for one, kept in zip(cells, here, strict=True) if kept]
    dropped = len(here) - len(frame) if has_image else 0
    if dropped:
        notes.append(
            f"{path}: {dropped} of {dropped + len(frame)} rows have no image and are "
            "left out, as VLMEvalKit does"
        )
    if frame.empty:
        raise TableError(f"{path}: no row with an image; expected at least one")
    frame["index"] = _typed_index(path, frame["index"], lines)
    if task.kind == "caption" and "question" not in frame:
        frame["question"] = CAPTION_QUESTION
    check_rows(path, task, frame, lines)
    if has_image:
        sources = _resolved(path, frame["index"], lines, cells, references)
    else:
        sources = _files(path, task, frame, lines, need_files)
    return Table(
        task=task,
        path=path,
        rows=frame,
        lines=tuple(lines),
        dropped=dropped,
        md5=md5,
        notes=tuple(notes),
        _sources=tuple(sources),
        _stamp=stamp,
    )


def _without_images(
    path: Path, task: Task
) -> tuple[bytes, list[int], list[_Cell | None], bool]:
    """The file with its images left out, the line of each row, and their places (None:
    a short cell, which is left in); whether there is an image column."""
    kept = io.BytesIO()
    lines: list[int] = []
    cells: list[_Cell | None] = []
    with path.open("rb") as file:
        found = records(file, str(path))
        header = next(found, None)
        if header is None:
            raise TableError(f"{path}: is empty; fetch the table again")
        names = [_text(path, header.line, cell) for cell in header.cells]
        check_columns(path, task, names)
        column = names.index(_IMAGE) if _IMAGE in names else None
        kept.write(b"\t".join(header.cells) + b"\n")
        for line, raw, starts in found:
            if len(raw) != len(names):
                raise TableError(
                    f"{path}, line {line}: {len(raw)} cells, expected {len(names)} as "
                    "in the header; a cell with a tab or line end needs quotes, or the "
                    "file is cut off"
                )
            place = None
            if column is not None:
                place = _image_cell(f"{path}, line {line}", raw[column], starts[column])
                if place is not None:
                    raw[column] = _KEPT_IN_FILE
            for cell in raw:
                _text(path, line, cell)
            kept.write(b"\t".join(raw) + b"\n")
            lines.append(line)
            cells.append(place)
    if not lines:
        raise TableError(f"{path}: has a header and no rows; fetch the table again")
    return kept.getvalue(), lines, cells, column is not None


def _image_cell(where: str, raw: bytes, start: int) -> _Cell | None:
    """The place of an image cell whose images are all right; None for a short one."""
    try:
        text = unquoted(raw).decode()
    except UnicodeDecodeError as error:
        raise TableError(f"{where}: the image is not base64 ({error})") from error
    if len(text) <= LONGEST_REFERENCE:
        return None
    try:
        images = encoded_images(text)
        for image in images:
            check_is_image(decoded(image))
    except ImageError as error:
        raise TableError(f"{where}: {error}") from error
    return _Cell(start, len(raw), len(images))


def _text(path: Path, line: int, raw: bytes) -> str:
    try:
        return unquoted(raw).decode()
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path}, line {line}: a cell is not UTF-8 ({error}); expected a table of "
            "text as VLMEvalKit offers it"
        ) from error


def _parsed(path: Path, text: bytes, lines: Sequence[int]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(io.BytesIO(text), sep="\t", low_memory=False)
    except (pd.errors.ParserError, ValueError) as error:
        raise TableError(f"{path}: pandas cannot read it ({error})") from error
    # Otherwise the records counted here would not be the rows that pandas sees.
    assert len(frame) == len(lines), f"{path}: {len(frame)} rows of {len(lines)}"
    return frame


def _typed_index(
    path: Path, column: pd.Series, lines: Sequence[int]
) -> list[int] | list[str]:
    """Whole numbers when all are, else text, as VLMEvalKit does."""
    missing = column.isna().to_numpy()
    if missing.any():
        line = lines[int(missing.argmax())]
        raise TableError(f"{path}, line {line}: index is missing; every row needs one")
    index = [str(one) for one in column]
    first: dict[str, int] = {}
    for one, line in zip(index, lines, strict=True):
        if one in first:
            raise TableError(
                f"{path}, line {line}: index {one} is there already on line "
                f"{first[one]}; expected each index once"
            )
        first[one] = line
    return [int(one) for one in index] if all(map(_is_whole, index)) else index


def _is_whole(text: str) -> bool:
    # A leading zero is gone here: pandas has read the column as numbers.
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal()


def _resolved(
    path: Path,
    index: pd.Series,
    lines: Sequence[int],
    cells: Sequence[_Cell | None],
    references: Sequence[str],
) -> list[_Cell]:
    """The image cell of every row: its own, or that of the row it names."""
    position = {str(one): i for i, one in enumerate(index)}
    sources = []
    for i, line in enumerate(lines):
        seen: list[int] = []
        at = i
        while (cell := cells[at]) is None:
            seen.append(at)
            name = references[at]
            where = f"{path}, line {line} (index {index.iloc[i]})"
            if name not in position:
                raise TableError(
                    f"{where}: the image {name!r} is neither an image (those have more "
                    f"than {LONGEST_REFERENCE} characters) nor the index of a row with "
                    "an image"
                )
            at = position[name]
            if at in seen:
                circle = " → ".join(str(index.iloc[one]) for one in (*seen, at))
                raise TableError(
                    f"{where}: rows name each other's image in a circle ({circle}); "
                    "expected an image at the end"
                )
        sources.append(cell)
    return sources


def _files(
    path: Path, task: Task, frame: pd.DataFrame, lines: Sequence[int], need: bool
) -> list[tuple[Path, ...]]:
    folder = path.parent / "images" / task.image_root
    sources = []
    for line, cell in zip(lines, frame["image_path"], strict=True):
        names = _listed(str(cell))
        if pd.isna(cell) or not names:
            raise TableError(
                f"{path}, line {line}: image_path is {cell!r}, expected the path of an "
                "image or a list of paths"
            )
        files = tuple(folder / name for name in names)  # an absolute path stays
        for file in files:
            if need and not file.is_file():
                raise TableError(
                    f"{path}, line {line}: the image {file} is not there; expected the "
                    f"files of image_path below {folder}, or by absolute path"
                )
        sources.append(files)
    return sources


def _listed(cell: str) -> list[str]:
    """A path, or those of a Python list of paths; nothing when it is no such list."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    listed = literal_list(cell) or []
    return listed if all(isinstance(one, str) for one in listed) else []


def _image_file(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{where}: {path} cannot be read ({error})") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise TableError(
            f"{path}: {error.strerror}; expected the TSV file of a benchmark"
        ) from error
    return stat.st_size, stat.st_mtime_ns


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()


def _checksum_notes(path: Path, found: str, task: Task, version: Version) -> list[str]:
    """A sentence when the file is not the official one; none for a localized table,
    which VLMEvalKit makes anew on each machine."""
    expected = task.md5
    if path.stem.endswith("_local") or found == expected[version]:
        return []
    others = [name for name, md5 in expected.items() if md5 == found]
    of = f"the table of the version {others[0]}" if others else "not the official table"
    return [
        f"{path}: MD5 {found}, expected {expected[version]}: {of}, so scores may not "
        "compare with published ones"
    ]
