"""Predictions and scores as VLMEvalKit writes them, so that its own tools read them.

    <model>_<task>.xlsx                          the table without images, prediction
    <model>_<task>_auxmatch.xlsx                 yes/no: with extracted, score
    <model>_<task>_exact_matching_result.xlsx    multiple choice: with hit, log
    <model>_<task>_score.csv, _acc.csv or _score.json     the scores

VLMEvalKit's scorer can be run again on the first file. It takes `_auxmatch.xlsx`, and
the `_result.pkl` that it writes itself, for its own earlier work and does not extract
answers again: delete both, or score in a folder that has the first file alone. Its
pickle is never written here. File names are those of the paper's commit in both
versions; newer ones write the first file as it is here, below a folder T<time>.
"""

import csv
import io
import json
import string
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vtscale_jax.eval.benchmarks.predictions import PredictionsError
from vtscale_jax.eval.benchmarks.rereading import reread, workbook
from vtscale_jax.eval.benchmarks.tasks import Task, Version
from vtscale_jax.eval.scoring.multiple_choice import infer
from vtscale_jax.eval.scoring.verdicts import Scored
from vtscale_jax.run_folder import write_whole

_NO_MATCH = (
    "Failed in Prefetch, no GPT-based answer matching under `exact_matching` policy."
)


def write_results(
    folder: str | Path,
    model_name: str,
    task: Task,
    rows: pd.DataFrame,
    predictions: Sequence[str],
    scored: Scored,
    version: Version,
) -> list[Path]:
    """Writes the files of one model and task into `folder` and returns their paths,
    that of the predictions first.

    `rows` are the table's (its columns without images), `predictions` what the model
    said about each, word for word, and `scored` their scores in the same order.
    Existing files of these names are replaced, each as a whole. PredictionsError when
    the three differ in length or `model_name` is no part of a file name.
    """
    if not len(rows) == len(predictions) == len(scored.items):
        raise PredictionsError(
            f"{task.name}: {len(rows)} rows, {len(predictions)} predictions and "
            f"{len(scored.items)} scored items, expected as many of each"
        )
    if not model_name or set(model_name) & set("/\\\0"):
        raise PredictionsError(
            f"model name {model_name!r} cannot be part of a file name; expected one "
            "without slashes"
        )
    said = rows.assign(prediction=list(predictions))
    files = {".xlsx": workbook(said, version)}
    # What follows is made of what comes back from that workbook.
    again = reread(said, version)
    again["prediction"] = [str(one) for one in again["prediction"]]
    if task.kind == "yes_no":
        files["_auxmatch.xlsx"] = workbook(_extracted(again, scored), version)
    elif task.kind == "multiple_choice":
        made = workbook(_matched(again, scored, version), version)
        files["_exact_matching_result.xlsx"] = made
    files[task.score_suffix] = _scores(task, scored)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, content in files.items():
        paths.append(folder / f"{model_name}_{task.name}{ending}")
        write_whole(paths[-1], content)
    return paths


def _extracted(rows: pd.DataFrame, scored: Scored) -> pd.DataFrame:
    return rows.assign(
        extracted=[item.extracted for item in scored.items],
        score=[bool(item.score) for item in scored.items],
    )


def _matched(rows: pd.DataFrame, scored: Scored, version: Version) -> pd.DataFrame:
    """The rows by index, with small letters in all names but those of options."""
    letters = [name for name in rows if name in set(string.ascii_uppercase)]
    logs = []
    for _, row in rows.iterrows():
        options = {name: row[name] for name in letters if not pd.isna(row[name])}
        said = row["prediction"]
        read = infer(said, options, version) is not None
        logs.append(f"Match Log: {said if read else _NO_MATCH}. ")
    rows = rows.assign(hit=[int(item.score) for item in scored.items], log=logs)
    names = {name: name if name in letters else str(name).lower() for name in rows}
    return rows.rename(columns=names).sort_values("index")


def _scores(task: Task, scored: Scored) -> bytes:
    if task.score_suffix == "_score.json":
        return json.dumps(scored.scores, indent=4, ensure_ascii=False).encode()
    table = scored.scores if isinstance(scored.scores, list) else [scored.scores]
    file = io.StringIO()
    pd.DataFrame(table).to_csv(file, index=False, quoting=csv.QUOTE_ALL)
    return file.getvalue().encode()
