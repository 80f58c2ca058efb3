"""Tables of VLMEvalKit (TSV): a question, options and an answer in a row.

The cells are read as pandas reads them, each as text: None, NA and their like are
missing cells. Questions are put in the words that VLMEvalKit asks them in; a
multiple-choice question is answered by its letter, and of a list of answers the most
frequent is taken, the first of several.

Images come in the table, as base64 in the column `image` (a short cell names the row
whose image is meant), and are written to files; or else as paths in `image_path`.
"""

import ast
import base64
import binascii
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vtscale_jax.data.image_roots import check_path
from vtscale_jax.data.json_rows import InputError
from vtscale_jax.data.sources.source import Source, field
from vtscale_jax.data.units import (
    ASSISTANT,
    EMPTY,
    SEVERAL_IMAGES,
    USER,
    Image,
    Kept,
    Left,
    Rejected,
    Row,
    check_messages,
    shown,
    text,
)
from vtscale_jax.run_folder import write_whole

NOT_BASE64 = "image is not base64"
NO_OPTION = "answer is none of the options"
LONGEST_REFERENCE = 64  # characters; a longer cell is an image, as for VLMEvalKit
CAPTION_QUESTION = (
    "Please describe this image in general. Directly provide the description, do not "
    'include prefix like "This image depicts". '
)
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
SHORT_ANSWERED = ("OCRVQA", "ChartQA", "TextVQA")  # how names of such tables begin
_ROWS_AT_ONCE = 256
_PANDAS_ERRORS = (
    pd.errors.ParserError,
    pd.errors.ParserWarning,
    pd.errors.EmptyDataError,
)
_ENDINGS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}


def vlmeval_tsv(path: Path) -> Source:
    """The source of the table `path`. Raises InputError when it is none, or lacks the
    columns `answer` and either `image` or `image_path`."""
    columns = _columns(path)
    needs_image = "image" not in columns and "image_path" not in columns
    missing = ["image or image_path"] if needs_image else []
    missing += ["answer"] if "answer" not in columns else []
    if missing:
        raise InputError(
            f"{path}: has the columns {', '.join(columns)}; expected also "
            f"{' and '.join(missing)}."
        )
    return Source(
        label=path.stem,
        rows=_rows,
        candidates=_candidates,
        origin=lambda raw: path.stem,
        messages=lambda raw: 2,
        convert=partial(_convert, path.stem),
        images_inside="image" in columns,
    )


def _columns(path: Path) -> list[str]:
    with _readable(path):
        return [str(one) for one in pd.read_csv(path, sep="\t", nrows=0).columns]


def _tables(path: Path) -> Iterator[pd.DataFrame]:
    """The table a few rows at a time, every cell as text."""
    with _readable(path):
        tables = pd.read_csv(
            path, sep="\t", dtype=str, index_col=False, chunksize=_ROWS_AT_ONCE
        )
    with tables:
        while True:
            with _readable(path):  # not around the yield: it changes what is warned of
                table = next(tables, None)
            if table is None:
                return
            yield table


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # A row with more cells than the head has would lose them with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except (*_PANDAS_ERRORS, UnicodeError) as error:
        raise _no_table(path, error) from error


def _no_table(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: is no table with tabs that pandas can read ({error}). If it was not "
        "fetched to its end, fetch it again."
    )


def _rows(path: Path, images: Path) -> Iterator[Row]:
    files: dict[str, list[str]] = {}  # by the index of the row that has the image
    if "image" in _columns(path):
        for table in _tables(path):
            for index, cell in zip(
                table.get("index", ()), table["image"], strict=False
            ):
                if isinstance(cell, str) and len(cell) > LONGEST_REFERENCE:
                    files.setdefault(str(index), []).extend(_written(cell, images))
    number = 0
    for table in _tables(path):
        for cells in table.to_dict("records"):
            number += 1
            raw: dict[str, Any] = {
                str(k): v if isinstance(v, str) else None for k, v in cells.items()
            }
            if "image" in raw:
                raw["image"] = _image_files(raw["image"], files, images)
            yield Row(number, raw)


def _image_files(
    cell: str | None, files: dict[str, list[str]], images: Path
) -> list[str] | None:
    if cell is None:
        return None
    if len(cell) > LONGEST_REFERENCE:
        return _written(cell, images)
    return files.get(cell, [f"!{NOT_BASE64}: {cell}: there is no such row"])


def _written(cell: str, images: Path) -> list[str]:
    """Writes the images of a cell, named by their content; their names. In place of one
    that cannot be read stands why, after a "!"."""
    encoded = [cell]
    if cell.startswith("[") and cell.endswith("]"):
        encoded = _literal_list(cell) or [cell]
    names = []
    for one in encoded:
        try:
            data = base64.b64decode("".join(one.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            names.append(f"!{NOT_BASE64}: {shown(one[:40])}: {error}")
            continue
        ending = next((e for m, e in _ENDINGS.items() if data.startswith(m)), None)
        if data[8:12] == b"WEBP":
            ending = "webp"
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{ending or 'image'}"
        if not (images / name).exists():
            images.mkdir(parents=True, exist_ok=True)
            write_whole(images / name, data)
        names.append(name)
    return names


def _literal_list(cell: str) -> list[str] | None:
    """A list of texts in Python's notation; None for anything else."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if texts and value else None


def _candidates(raw: Any) -> tuple[str, ...]:
    if "image" in raw:
        images = raw["image"]
    else:
        path = raw["image_path"]
        images = None if path is None else _literal_list(path) or [path]
    if images is None:
        return ()
    if len(images) > 1:
        raise Rejected(SEVERAL_IMAGES, f"{len(images)} in one row")
    if images[0].startswith(f"!{NOT_BASE64}: "):
        raise Rejected(NOT_BASE64, images[0].partition(": ")[2])
    return (check_path(images[0]),)


def _convert(table: str, raw: Any, _: Image | None) -> Iterator[Kept | Left]:
    options = {
        letter: text(raw[letter], letter)
        for letter in sorted(raw)
        if len(letter) == 1 and "A" <= letter <= "Z" and raw[letter] is not None
    }
    answer = raw["answer"]
    if answer is None:
        raise Rejected(EMPTY, "the cell answer; pandas reads None and NA as missing")
    notes = ()
    if options:
        answer = answer.strip()
        if answer not in options:
            known = ", ".join(options)
            raise Rejected(NO_OPTION, f"{shown(answer)}, options are {known}")
    elif (several := _literal_list(answer)) is not None:
        answer = Counter(several).most_common(1)[0][0]  # ties: the first
        notes = ("the most frequent of several answers taken",)
    messages = [
        {"role": USER, "content": _question(table, raw, options)},
        {"role": ASSISTANT, "content": text(answer, "answer")},
    ]
    check_messages(messages)
    name = field(raw, "index")
    yield Kept(messages, id=f"{table}/{name}" if name else None, notes=notes)


def _question(table: str, raw: dict[str, Any], options: dict[str, str]) -> str:
    if "question" not in raw:
        return CAPTION_QUESTION
    asked = raw["question"]
    if asked is None:
        raise Rejected(EMPTY, "the cell question; pandas reads None and NA as missing")
    if not options:
        return asked + (SHORT_ANSWER if table.startswith(SHORT_ANSWERED) else "")
    hint = f"Hint: {raw['hint']}\n" if raw.get("hint") else ""
    lines = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    end = "Please select the correct answer from the options above. \n"
    return f"{hint}Question: {asked}\nOptions:\n{lines}{end}"
