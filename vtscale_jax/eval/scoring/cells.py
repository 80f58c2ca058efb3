"""Cells of a benchmark's table: as a workbook gives them back, lists, and where.

VLMEvalKit scores what it reads back from the workbook of predictions, in which the
table's other columns lie too. What that trip does to text is the concern of those who
read and write workbooks; what it does to columns of numbers is done here, since a
table's numbers become text in prompts before it and in scores after it.
"""

import ast
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from vtscale_jax.eval.scoring.verdicts import ScoringError


def require(task: str, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """ScoringError unless the table has rows and all these columns."""
    missing = [name for name in columns if name not in rows]
    if missing:
        raise ScoringError(
            f"{task}: the table lacks the column {', '.join(missing)}; it has "
            f"{', '.join(map(str, rows.columns))}. Is it the file of this benchmark?"
        )
    if not len(rows):
        raise ScoringError(f"{task}: the table has no rows; a score needs at least one")


def place(task: str, rows: pd.DataFrame, position: int) -> str:
    """`POPE, row 3 (index 12)`: rows counted from 1, without the header."""
    return f"{task}, row {position + 1} (index {rows['index'].iloc[position]})"


def present(task: str, rows: pd.DataFrame, column: str) -> list[Any]:
    """The cells of a column by which scores are grouped. ScoringError for a missing
    one: VLMEvalKit stops there, or writes a score that is not a number."""
    missing = np.flatnonzero(rows[column].isna())
    if len(missing):
        raise ScoringError(
            f"{place(task, rows, int(missing[0]))}: {column} is missing (so in "
            f"{len(missing)} of {len(rows)} rows), and scores are grouped by it. Fill "
            "it in, or remove the column"
        )
    return list(rows[column])


def has_cells(rows: pd.DataFrame, column: str) -> bool:
    """Whether the table has this column, with something in it."""
    return column in rows and bool(rows[column].notna().any())


def groups_of(
    task: str, rows: pd.DataFrame, column: str
) -> dict[str, Bool[np.ndarray, " I"]]:
    """Which rows have each value of a column; values sorted. ScoringError where one is
    missing."""
    cells = present(task, rows, column)
    return {
        str(value): np.array([cell == value for cell in cells])
        for value in sorted(set(cells))
    }


def numbers_as_reread(rows: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns of numbers as a workbook gives them back.

    Excel has one kind of number, written with 16 digits, and no 3.0: a column of floats
    that are all there and all whole comes back as integers, so that 3.0 reads "3".
    With a missing cell or a fraction among them it stays a column of floats. A table
    that comes from a workbook is returned as it is.
    """
    changed = {
        name: _reread(rows[name])
        for name in rows
        if pd.api.types.is_float_dtype(rows[name])
    }
    return rows.assign(**changed) if changed else rows


def _reread(column: pd.Series) -> pd.Series:
    written = column.map(lambda x: float(f"{x:.16G}"), na_action="ignore")
    fits = written.abs() < 2**63  # False for missing cells too
    if fits.all() and (written == written.round()).all():
        return written.astype(np.int64)
    return written


def literal_list(cell: str) -> list[Any] | None:
    """The list that a cell spells, None when it spells none.

    VLMEvalKit runs the cell as Python and takes it for a list when one comes out; a
    cell is never run here, so that a list must be spelled by literals:

        "[2015, 2016]" -> [2015, 2016]     "[Japan, Sweden]" -> None     "14" -> None
    """
    try:
        with warnings.catch_warnings():
            # Python warns of "\\d" in a cell as it does of code.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(cell)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def text_list(where: str, values: Sequence[Any] | None) -> list[str]:
    """An answer's list as texts: at least one. ScoringError says where it is not."""
    if not values or not all(isinstance(value, str) for value in values):
        got = "not a list" if values is None else shown(values)
        raise ScoringError(
            f"{where}: answer is {got}, expected a list of texts, each in quotes, "
            "such as ['14', 'fourteen']"
        )
    return list(values)


def shown(value: Any) -> str:
    """A value as an error shows it, cut after 60 characters."""
    text = repr(plain(value))
    return text if len(text) <= 60 else f"{text[:60]}…"


def plain(value: Any) -> Any:
    """A cell as JSON can hold it: numpy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value
