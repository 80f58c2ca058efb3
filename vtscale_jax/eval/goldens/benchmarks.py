"""Cases that VLMEvalKit itself prepared and scored, checked against this package.

    DIR/<TASK>/   <TASK>.tsv, prompts.json, raw_predictions.json, *_<TASK>.xlsx,
                  per_row.json, scores.json, README.json (scores of the newest commit)
    DIR/units/    single functions: what goes in, what must come out

Any part of it may be there, one task's folder too; each file is a case or several.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtscale_jax.eval.benchmarks.predictions import (
    Predictions,
    raw_predictions,
    read_predictions,
)
from vtscale_jax.eval.benchmarks.prompts import message
from vtscale_jax.eval.benchmarks.table import Table, read_table
from vtscale_jax.eval.benchmarks.tasks import TASKS, Version, get_task
from vtscale_jax.eval.goldens.checks import Check, compared
from vtscale_jax.eval.goldens.units import unit_checks
from vtscale_jax.eval.scoring.score import Scored, score


class GoldensError(ValueError):
    """A folder without any case of this form."""


def check(folder: str | Path) -> list[Check]:
    """Every case of a folder, or of one task's folder. GoldensError when there is
    none."""
    folder = Path(folder)
    checks: list[Check] = []
    for place in (folder, *sorted(one for one in folder.glob("*") if one.is_dir())):
        if (place / f"{place.name}.tsv").is_file() and place.name in TASKS:
            checks += _counted(place)
    units = folder if folder.name == "units" else folder / "units"
    if units.is_dir():
        checks += unit_checks(units)
    if not checks:
        raise GoldensError(
            f"{folder}: no cases; expected folders named as tasks "
            f"({', '.join(TASKS)}), each with its <task>.tsv, or a folder units"
        )
    return checks


def _counted(folder: Path) -> Iterator[Check]:
    """The checks of a task; a file that cannot be used is one that fails."""
    try:
        yield from _task_checks(folder)
    except (ValueError, KeyError) as error:
        yield Check(folder.name, False, f"{type(error).__name__}: {error}")


def _task_checks(folder: Path) -> Iterator[Check]:
    name = folder.name
    table = read_table(folder / f"{name}.tsv", get_task(name), need_files=False)
    if (folder / "prompts.json").is_file():
        yield _prompts(folder / "prompts.json", table)
    made: dict[Version, Scored] = {}
    workbooks = sorted(folder.glob(f"*_{name}.xlsx"))
    for book in workbooks:
        versions: tuple[Version, ...] = ("paper", "current")
        made |= {
            v: _scored(read_predictions(book, table, v), table, v) for v in versions
        }
    if made and (folder / "per_row.json").is_file():
        yield _verdicts(folder / "per_row.json", made["paper"])
    if made and (folder / "scores.json").is_file():
        expected = _read(folder / "scores.json")
        yield compared(f"{name} scores, paper", made["paper"].scores, expected)
    if made and (folder / "README.json").is_file():
        expected = _read(folder / "README.json")["scores_at_newest_commit"]["scores"]
        yield compared(f"{name} scores, current", made["current"].scores, expected)
    if (folder / "raw_predictions.json").is_file():
        said = _read(folder / "raw_predictions.json")
        known = {str(index): i for i, index in enumerate(table.rows["index"])}
        at = [known[index] for index in said]
        again = raw_predictions(table, list(said.values()), "paper", at)
        if workbooks:
            read = read_predictions(workbooks[0], table, "paper")
            yield compared(
                f"{name} predictions read back", list(again.texts), list(read.texts)
            )
        if (folder / "scores.json").is_file():
            yield compared(
                f"{name} scores of raw predictions, paper",
                _scored(again, table, "paper").scores,
                _read(folder / "scores.json"),
            )


def _scored(predictions: Predictions, table: Table, version: Version) -> Scored:
    return score(table.task.name, predictions.rows, predictions.texts, version)


def _prompts(file: Path, table: Table) -> Check:
    found = {
        str(index): message(table.task, table.row(i), table.num_images(i))
        for i, index in enumerate(table.rows["index"])
    }
    return compared(f"{table.task.name} prompts", found, _read(file))


def _verdicts(file: Path, scored: Scored) -> Check:
    """The fields that VLMEvalKit's verdict has, of each row."""
    expected = _read(file)
    found = {}
    for item in scored.items:
        own = {
            "CIDEr": item.score,
            **item.detail,
            **dict.fromkeys(("extracted", "option"), item.extracted),
            **dict.fromkeys(("score", "hit"), item.score),
        }
        fields = expected.get(str(item.index), {})
        found[str(item.index)] = {field: own.get(field) for field in fields}
    return compared(f"{file.parent.name} verdicts", found, expected)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
