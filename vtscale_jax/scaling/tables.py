"""Tables of scores in CSV files.

    inputs,n_l,metric,score          tidy: a row for each score; inputs is optional, and
    vqq,8,POPE/Overall,79.1          so are n_items, stderr and upper

    inputs,n_l,POPE/Overall,POPE/acc wide: a row for each M, a column for each metric
    vqq,8,79.1,80.2

Which of the two a file is, its columns say. Lines are counted from 1, blank ones too.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.scaling.scores import Excluded, Score, ScoresError

TIDY = ("n_l", "metric", "score")
OPTIONAL = ("n_items", "stderr", "upper")
EXPECTED = (
    "expected n_l, metric and score (and inputs, n_items, stderr, upper where they are "
    "known), or n_l (and inputs) and a column for each metric"
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_POINT = "write decimals with a point"
NO_SCORE = "no score"
_MOST_TOKENS = 2**53  # beyond it floats skip whole numbers


class Rows(NamedTuple):
    """What one source holds: scores, what is left out of them, and what to know."""

    scores: tuple[Score, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Rows:
    """The scores of a CSV file, in UTF-8 with or without a byte order mark.

    Cells without a number (empty, NaN, infinite) are among `excluded`. ScoresError
    names the file, line and field of anything else that is no score, and both lines of
    a duplicate.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ScoresError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ScoresError(
            f"{path} is not text in UTF-8 ({error}), expected a CSV file; save the "
            "table as CSV, UTF-8"
        ) from error
    return parse_table(text, str(path))


def parse_table(text: str, name: str) -> Rows:
    """The scores of a CSV text; errors call it `name`. As `read_table` otherwise."""
    rows = _rows(text, name)
    header = next(rows, None)
    if header is None:
        raise ScoresError(f"{name} is empty; {EXPECTED}")
    line, columns = header
    tidy = _is_tidy(columns, f"{name}, line {line}")
    found: list[Score | Excluded] = []
    for line, cells in rows:
        where = f"{name}, line {line}"
        if len(cells) != len(columns):
            raise ScoresError(
                f"{where}: has {len(cells)} cells, expected {len(columns)} as columns: "
                f"{', '.join(columns)}; put a value that holds a comma in quotes, and "
                f"{_POINT}"
            )
        row = dict(zip(columns, cells, strict=True))
        found += (_tidy_row if tidy else _wide_row)(row, where)
    if not found:
        raise ScoresError(f"{name} has a line of columns only, expected scores below")
    check_duplicates(found)
    return sorted_out(found, _ignored(columns, name) if tidy else ())


def sorted_out(found: Sequence[Score | Excluded], notes: Sequence[str] = ()) -> Rows:
    """Scores apart from what is left out of them."""
    return Rows(
        tuple(one for one in found if isinstance(one, Score)),
        tuple(one for one in found if isinstance(one, Excluded)),
        tuple(notes),
    )


def check_duplicates(rows: Sequence[Score | Excluded]) -> None:
    """ScoresError, naming both places, when two rows are of the same metric, inputs
    and M."""
    first: dict[tuple[str, str, int], str] = {}
    for row in rows:
        key = (row.inputs, row.metric, row.n_l)
        if key in first:
            of = f"{row.metric} ({row.inputs})" if row.inputs else row.metric
            raise ScoresError(
                f"{row.where}: a second score of {of} at n_l = {row.n_l}, expected "
                f"one; the first is at {first[key]}. Take one of them out"
            )
        first[key] = row.where


def number(text: str) -> float | None:
    """The number that a cell says, which may be NaN or infinite; None if it says none.

    Stricter than `float`, which takes "1_000" for a number.
    """
    if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(text)
    return None


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that holds anything."""
    # Strict, or an open quote would swallow the lines after it.
    reader = csv.reader(
        io.StringIO(text, newline=""), strict=True, skipinitialspace=True
    )
    line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ScoresError(
                f"{name}, line {line}: not CSV ({error}); a quoted cell ends with a "
                "quote and then a comma or the end of the line"
            ) from error
        if row is None:
            return
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _is_tidy(columns: Sequence[str], where: str) -> bool:
    """Whether the table is tidy (or wide); ScoresError when it is neither."""
    for place, column in enumerate(columns):
        if column and column in columns[:place]:
            raise ScoresError(
                f"{where}: columns {columns.index(column) + 1} and {place + 1} are "
                f"both {column!r}, expected different names"
            )
    if set(TIDY) <= set(columns):
        return True
    listed = f"{where}: has columns {', '.join(map(repr, columns))}; {EXPECTED}"
    only_tidy = [name for name in (*TIDY[1:], *OPTIONAL) if name in columns]
    if "n_l" in columns and only_tidy:
        raise ScoresError(
            f"{listed}. {only_tidy[0]!r} is of the first form, which needs all of "
            f"{', '.join(TIDY)}"
        )
    if "n_l" not in columns or not set(columns) - {"n_l", "inputs"}:
        apart = len(columns) == 1 and re.search("[;\t]", columns[0])
        raise ScoresError(listed + ". Part the columns by commas" * bool(apart))
    if "" in columns:
        raise ScoresError(
            f"{where}: column {columns.index('') + 1} has no name, expected that of a "
            "metric; name it or take the column out"
        )
    return False


def _ignored(columns: Sequence[str], name: str) -> tuple[str, ...]:
    """A note for each column of a tidy table that nothing reads."""
    known = {*TIDY, *OPTIONAL, "inputs"}
    return tuple(
        f"{name}: column {column!r} is ignored; known are inputs, "
        f"{', '.join((*TIDY, *OPTIONAL))}"
        for column in columns
        if column not in known
    )


def _tidy_row(row: Mapping[str, str], where: str) -> Iterator[Score | Excluded]:
    if not row["metric"]:
        raise _wrong(where, "metric", "", "the name of a metric")
    known = {name: _optional(row, name, where) for name in OPTIONAL}
    n_items = known.pop("n_items")
    yield _score(
        (row.get("inputs", ""), row["metric"], _tokens(row, where)),
        ("score", row["score"]),
        where,
        n_items=None if n_items is None else int(n_items),
        **known,
    )


def _wide_row(row: Mapping[str, str], where: str) -> Iterator[Score | Excluded]:
    n_l = _tokens(row, where)
    for metric, text in row.items():
        if metric not in ("inputs", "n_l"):
            key = (row.get("inputs", ""), metric, n_l)
            yield _score(key, (metric, text), where)


def _score(
    key: tuple[str, str, int], cell: tuple[str, str], where: str, **known: Any
) -> Score | Excluded:
    """The score that a cell (column, text) holds, or why it holds none."""
    column, text = cell
    value = number(text) if text else math.nan
    if value is None:
        cure = f"a number, or nothing where there is none; {_POINT}"
        raise _wrong(where, column, text, cure)
    if math.isfinite(value):
        return Score(*key, value, where, **known)
    reason = f"{NO_SCORE}: the cell {f'says {text}' if text else 'is empty'}"
    return Excluded(*key, text, reason, where)


def _tokens(row: Mapping[str, str], where: str) -> int:
    value = number(row["n_l"])
    # NaN is in no range.
    if value is None or not 1 <= value < _MOST_TOKENS or not value.is_integer():
        expected = "a whole number of vision tokens, 1 or more"
        raise _wrong(where, "n_l", row["n_l"], expected)
    return int(value)


_ALLOWED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "n_items": (
        "a whole number of questions, 1 or more",
        lambda value: value >= 1 and value.is_integer(),
    ),
    "stderr": ("a number, 0 or more", lambda value: value >= 0),
    "upper": ("the largest score possible, above 0", lambda value: value > 0),
}


def _optional(row: Mapping[str, str], column: str, where: str) -> float | None:
    """What an optional column says; None where it says nothing."""
    text = row.get(column, "")
    if not text:
        return None
    expected, allowed = _ALLOWED[column]
    value = number(text)
    if value is None or not math.isfinite(value) or not allowed(value):
        raise _wrong(where, column, text, f"{expected}, or nothing")
    return value


def _wrong(where: str, field: str, found: str, expected: str) -> ScoresError:
    shown = repr(found) if len(found) <= 60 else f"{found[:60]!r}…"
    return ScoresError(f"{where}: field {field} is {shown}, expected {expected}")
