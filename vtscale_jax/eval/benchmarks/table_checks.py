"""What a benchmark's table must hold, checked before a model is asked anything.

A wrong cell here would not stop VLMEvalKit's scorer, or only at its end: it would make
another column, leave a question out of a total or ask for `nan`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from vtscale_jax.eval.benchmarks.tasks import Task
from vtscale_jax.eval.benchmarks.tsv import TableError
from vtscale_jax.eval.scoring.cells import literal_list

_SHOWN = 5


def check_columns(path: Path, task: Task, names: Sequence[str]) -> None:
    """TableError when these column names are not those of the benchmark's table."""
    if len(names) == 1:
        raise TableError(
            f"{path}: the first line has no tab ({names[0][:60]!r}); expected a table "
            f"of tab-separated columns {', '.join(task.columns)}, image"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise TableError(f"{path}: column {twice[0]!r} is there twice, expected once")
    missing = [name for name in task.columns if name not in names]
    if missing or not {"image", "image_path"} & set(names):
        wanted = ", ".join(missing or ["image (or image_path)"])
        raise TableError(
            f"{path}: has no column {wanted}, which {task.name} needs; there are "
            f"{', '.join(names)}: is it the table of {task.name}?"
        )


def check_rows(
    path: Path, task: Task, frame: pd.DataFrame, lines: Sequence[int]
) -> None:
    """TableError with lines and indices of rows that are not as the benchmark's."""

    def refuse(column: str, bad: Callable[[object], bool], expected: str) -> None:
        rows = [i for i, cell in enumerate(frame[column]) if bad(cell)]
        if rows:
            raise TableError(
                f"{path}: {column} is not as expected in {len(rows)} of {len(frame)} "
                f"rows, {shown_rows(frame, lines, rows, column)}; expected {expected}"
            )

    if task.kind != "multiple_choice":  # there `nan` is asked, as VLMEvalKit does
        refuse("question", _is_missing, "a text (None, NA and their like are missing)")
    if task.kind in ("ocr", "caption"):
        refuse("answer", _is_no_list, "a list of texts, as ['one', 'other']")
    if task.name == "HallusionBench":
        form = "category_subcategory_visual_set_figure_question, as VD_map_1_0_0_1"
        refuse("index", lambda one: not _has_parts(one, 6), form)
    for column, values in task.values.items():
        refuse(
            column,
            lambda cell, values=values: not _names(cell) <= set(values),
            ("comma-joined " if task.name == "POPE" else "one of ") + ", ".join(values),
        )
    for column in task.complete:
        present = set().union(*map(_names, frame[column]))
        lacking = [value for value in task.values[column] if value not in present]
        if lacking:
            raise TableError(
                f"{path}: no row with {column} {', '.join(lacking)}; {task.name} is "
                "scored only with all of them: use the whole table"
            )


def shown_rows(
    frame: pd.DataFrame, lines: Sequence[int], rows: Sequence[int], column: str
) -> str:
    """The first rows of many, by line and index, with what they hold."""
    shown = [
        f"line {lines[i]} (index {frame['index'].iloc[i]}): "
        f"{str(frame[column].iloc[i])[:60]!r}"
        for i in rows[:_SHOWN]
    ]
    return "; ".join(shown) + ("; …" if len(rows) > _SHOWN else "")


def _is_missing(cell: object) -> bool:
    return bool(pd.isna(cell))


def _is_no_list(cell: object) -> bool:
    listed = literal_list(str(cell))
    return not listed or not all(isinstance(one, str) for one in listed)


def _has_parts(cell: object, number: int) -> bool:
    parts = str(cell).split("_")
    return len(parts) == number and all(parts)


def _names(cell: object) -> set[str]:
    return set(str(cell).split(","))
