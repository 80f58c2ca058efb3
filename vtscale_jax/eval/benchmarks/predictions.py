"""Predictions that were made already, aligned with the rows of a benchmark's table.

VLMEvalKit scores what it reads back from a file, together with the other columns of
that file; only the right letters of multiple choice come from the table. `Predictions`
holds just that, so that a scorer gives VLMEvalKit's own numbers.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vtscale_jax.eval.benchmarks.rereading import reread
from vtscale_jax.eval.benchmarks.table import Table
from vtscale_jax.eval.benchmarks.tasks import Version

_SHOWN = 5


class PredictionsError(ValueError):
    """Predictions that cannot be read, or are not of the table's rows."""


class Predictions(NamedTuple):
    """What is scored, in the order of the file it comes from.

    `rows` are the columns beside each prediction, as a workbook gives them back;
    `texts` the predictions as read back (`nan` for an empty one); `positions` the row
    of the table (from 0) that each belongs to. `notes` says in sentences what a reader
    should know.
    """

    rows: pd.DataFrame
    texts: tuple[str, ...]
    positions: tuple[int, ...]
    notes: tuple[str, ...]


class _Found(NamedTuple):
    """The rows of a file of predictions; `place` names row i of it."""

    frame: pd.DataFrame
    place: Callable[[int], str]


def raw_predictions(
    table: Table,
    raw: Sequence[str],
    version: Version,
    positions: Sequence[int] | None = None,
) -> Predictions:
    """What is scored when a model said `raw` about the table's rows at `positions`
    (from 0; all rows when None): written to a workbook and read back."""
    at = tuple(range(len(table)) if positions is None else positions)
    if len(raw) != len(at):
        raise PredictionsError(f"{len(raw)} predictions for {len(at)} rows")
    if not at:
        raise PredictionsError(f"{table.path}: no predictions, expected at least one")
    frame = table.rows.iloc[list(at)].assign(prediction=list(raw))
    rows = reread(frame, version)
    texts = tuple(str(one) for one in rows.pop("prediction"))
    return _aligned(table, rows, texts, at, [])


def read_predictions(path: str | Path, table: Table, version: Version) -> Predictions:
    """The predictions of a file.

    `.xlsx` and `.tsv` are read as VLMEvalKit reads them back: one row for each
    prediction, with columns `index` and `prediction`; other columns go before the
    table's. `.json` holds what a model said, word for word: `{index: prediction}` or a
    list of `{"index": …, "prediction": …}`; it is written to a workbook and read back
    as VLMEvalKit would.

    Predictions for a part of the rows are allowed; `notes` says how many there are.
    PredictionsError names the file and row of: a file that cannot be read, no column
    `index` or `prediction`, an index that is missing, there twice or not in the table,
    a question that is not the table's, a prediction that is no text.
    """
    path = Path(path)
    readers = {".xlsx": _from_workbook, ".tsv": _from_tsv, ".json": _from_json}
    if path.suffix not in readers:
        raise PredictionsError(
            f"{path}: ends with {path.suffix!r}, expected {', '.join(readers)}"
        )
    if not path.is_file():
        raise PredictionsError(f"{path}: is not there; expected a file of predictions")
    found = readers[path.suffix](path)
    _check_columns(path, found)
    positions = _positions(path, found, table)
    at = list(positions)
    _check_questions(path, found, table, at, version)
    notes = []
    if len(at) < len(table):
        notes.append(
            f"{path}: predictions for {len(at):,} of {len(table):,} rows; the others "
            "are not part of the scores"
        )
    if path.suffix == ".json":
        raw = [_said(path, found, i) for i in range(len(at))]
        made = raw_predictions(table, raw, version, at)
        return made._replace(notes=(*notes, *made.notes))
    rows = found.frame.drop(columns="prediction")
    texts = tuple(str(one) for one in found.frame["prediction"])
    again = reread(table.rows.iloc[at], version)
    lacking = [str(name) for name in table.rows if name not in rows]
    rows = rows.assign(**{name: again[name] for name in lacking})
    if table.task.kind != "multiple_choice":
        notes += _answer_notes(path, rows, again)
    return _aligned(table, rows, texts, positions, notes)


def _aligned(
    table: Table,
    rows: pd.DataFrame,
    texts: tuple[str, ...],
    positions: tuple[int, ...],
    notes: list[str],
) -> Predictions:
    """Puts the table's index, and its right letters of multiple choice, in place."""
    own = table.rows.iloc[list(positions)]
    rows = rows.assign(index=own["index"].to_numpy())
    if table.task.kind == "multiple_choice":
        rows = rows.assign(answer=own["answer"].to_numpy())
    for column in table.task.complete:
        lacking = set(table.rows[column]) - set(rows[column])
        if lacking:
            raise PredictionsError(
                f"no prediction with {column} {', '.join(sorted(lacking))}; "
                f"{table.task.name} is scored only with all of them"
            )
    return Predictions(rows, texts, positions, tuple(notes))


def _answer_notes(path: Path, rows: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    """A sentence when right answers in the file are not those of the table."""
    answers = zip(rows["answer"].astype(str), again["answer"].astype(str), strict=True)
    differ = [i for i, (theirs, ours) in enumerate(answers) if theirs != ours]
    if not differ:
        return []
    return [
        f"{path}: {len(differ)} right answers are not those of the table, the first at "
        f"index {rows['index'].iloc[differ[0]]}; scored by those of the file, as "
        "VLMEvalKit does"
    ]


def _from_workbook(path: Path) -> _Found:
    try:
        frame = pd.read_excel(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise PredictionsError(
            f"{path}: not a workbook that can be read ({error}); expected VLMEvalKit's "
            "<model>_<task>.xlsx"
        ) from error
    return _Found(frame, lambda i: f"{path}, row {i + 2}")


def _from_tsv(path: Path) -> _Found:
    try:
        frame = pd.read_csv(path, sep="\t", low_memory=False)
    except (ValueError, OSError) as error:
        raise PredictionsError(
            f"{path}: not a table of tab-separated columns ({error})"
        ) from error
    return _Found(frame, lambda i: f"{path}, data row {i + 1}")


def _from_json(path: Path) -> _Found:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise PredictionsError(f"{path}: not JSON ({error})") from error
    if isinstance(content, _Pairs):
        rows = [{"index": key, "prediction": value} for key, value in content]
    elif isinstance(content, list) and all(isinstance(r, _Pairs) for r in content):
        rows = [dict(row) for row in content]
    else:
        raise PredictionsError(
            f"{path}: expected {{index: prediction}} or a list of "
            '{"index": …, "prediction": …}'
        )
    # Texts as they are: pandas must not type them.
    columns = dict.fromkeys(name for row in rows for name in row)
    frame = pd.DataFrame(
        {
            name: pd.Series([row.get(name) for row in rows], dtype=object)
            for name in columns
        }
    )
    return _Found(frame, lambda i: f"{path}, entry {i + 1}")


class _Pairs(list):
    """A JSON object as its pairs, since a key may be there twice."""


def _check_columns(path: Path, found: _Found) -> None:
    for name in ("index", "prediction"):
        if len(found.frame) and name not in found.frame:
            raise PredictionsError(
                f"{path}: has no column {name!r}; there are "
                f"{', '.join(map(str, found.frame.columns))}. Expected the file of "
                "predictions that VLMEvalKit writes before it scores"
            )
    if found.frame.empty:
        raise PredictionsError(f"{path}: has no predictions; expected at least one")


def _positions(path: Path, found: _Found, table: Table) -> tuple[int, ...]:
    known = {str(one): i for i, one in enumerate(table.rows["index"])}
    first: dict[str, int] = {}
    absent: list[str] = []
    for i, cell in enumerate(found.frame["index"]):
        if pd.isna(cell):
            raise PredictionsError(f"{found.place(i)}: index is missing")
        # A column with a missing cell in VLMEvalKit's file would be 1.0, 2.0, …
        whole = isinstance(cell, float) and cell.is_integer()
        index = str(int(cell)) if whole and str(cell) not in known else str(cell)
        if index in first:
            raise PredictionsError(
                f"{found.place(i)}: index {index} is there already at "
                f"{found.place(first[index])}; expected each index once"
            )
        first[index] = i
        if index not in known:
            absent.append(f"{found.place(i)} (index {index})")
    if absent:
        raise PredictionsError(
            f"{path}: {len(absent)} of {len(first)} predictions are for rows that "
            f"{table.path} does not have: {'; '.join(absent[:_SHOWN])}"
            f"{'; …' if len(absent) > _SHOWN else ''}. Is it the file of "
            f"{table.task.name}?"
        )
    return tuple(known[index] for index in first)


def _check_questions(
    path: Path, found: _Found, table: Table, positions: list[int], version: Version
) -> None:
    """The questions must be the table's, as they are or as a workbook returns them."""
    if "question" not in found.frame:
        return
    own = table.rows["question"].iloc[positions].astype(str).tolist()
    theirs = [str(one) for one in found.frame["question"]]
    if own == theirs:
        return
    back = reread(table.rows[["index", "question"]].iloc[positions], version)
    again = [str(one) for one in back["question"]]
    wrong = [i for i, said in enumerate(theirs) if said not in (own[i], again[i])]
    if wrong:
        i = wrong[0]
        raise PredictionsError(
            f"{path}: {len(wrong)} of {len(theirs)} questions are not those of "
            f"{table.path}: {found.place(i)} has {theirs[i][:80]!r}, expected "
            f"{own[i][:80]!r}. Are the predictions of {table.task.name}, and of this "
            "table?"
        )


def _said(path: Path, found: _Found, i: int) -> str:
    said: Any = found.frame["prediction"].iloc[i]
    if isinstance(said, str | int | float):
        return str(said)
    raise PredictionsError(
        f"{found.place(i)}: prediction is {json.dumps(said)}, expected a text"
    )
