"""The one way in: a benchmark's table and predictions to its scores."""

import difflib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from vtscale_jax.eval.scoring.captions import score_captions
from vtscale_jax.eval.scoring.cells import numbers_as_reread, place, require, shown
from vtscale_jax.eval.scoring.hallusion import score_hallusion
from vtscale_jax.eval.scoring.mme import score_mme
from vtscale_jax.eval.scoring.multiple_choice import score_multiple_choice
from vtscale_jax.eval.scoring.ocrbench import score_ocrbench
from vtscale_jax.eval.scoring.open_scores import (
    score_chartqa,
    score_ocrvqa,
    score_textvqa,
)
from vtscale_jax.eval.scoring.pope import score_pope
from vtscale_jax.eval.scoring.verdicts import Item as Item
from vtscale_jax.eval.scoring.verdicts import Scored, ScoringError, Version, commit_name

Scorer = Callable[[str, pd.DataFrame, Sequence[str], Version], Scored]
SCORERS: dict[str, Scorer] = {
    "MME": score_mme,
    "HallusionBench": score_hallusion,
    "POPE": score_pope,
    "OCRBench": score_ocrbench,
    "COCO_VAL": score_captions,
    "RealWorldQA": score_multiple_choice,
    "MMStar": score_multiple_choice,
    "SEEDBench_IMG": score_multiple_choice,
    "SEEDBench2": score_multiple_choice,
    "SEEDBench2_Plus": score_multiple_choice,
    "ScienceQA_TEST": score_multiple_choice,
    "AI2D_TEST": score_multiple_choice,
    "OCRVQA_TESTCORE": score_ocrvqa,
    "ChartQA_TEST": score_chartqa,
    "TextVQA_VAL": score_textvqa,
}


def score(
    task_name: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """The scores of a benchmark without a judge, as VLMEvalKit computes them.

    `rows` is the benchmark's table as pandas reads it, NaN for missing cells, without
    the images; or, exactly as VLMEvalKit does it, the table of the workbook of
    predictions (the answers of multiple choice then from the benchmark's own file).
    `predictions` are the texts as they are read back from the workbook, one per row and
    in its order: "nan" where nothing was said. `version` says whose rules hold: `paper`
    (VLMEvalKit 0ff0c3e) or `current` (e8e78f05).

    Raises ScoringError, which says where: an unknown task or version, missing columns,
    an index that occurs twice, another number of predictions than rows, a prediction
    that is no text, an answer or category that the benchmark's rules cannot use.
    """
    commit_name(version)
    if task_name not in SCORERS:
        near = difflib.get_close_matches(task_name, SCORERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ScoringError(
            f"no scorer for {task_name!r}, expected one of {', '.join(SCORERS)}{hint}"
        )
    require(task_name, rows, ("index", "answer"))
    if len(rows) != len(predictions):
        raise ScoringError(
            f"{task_name}: {len(predictions)} predictions for {len(rows)} rows, "
            "expected one each; to score a subset, give its rows alone"
        )
    for row, prediction in enumerate(predictions, start=1):
        if not isinstance(prediction, str):
            raise ScoringError(
                f"{task_name}, row {row}: the prediction is {shown(prediction)}, "
                "expected a text; an empty one is read back as 'nan'"
            )
    twice = np.flatnonzero(rows["index"].duplicated())
    if len(twice):
        raise ScoringError(
            f"{place(task_name, rows, int(twice[0]))}: this index occurs above too, "
            "and verdicts are kept by index; remove one of the two"
        )
    return SCORERS[task_name](task_name, numbers_as_reread(rows), predictions, version)
