"""HallusionBench: accuracy of questions, of figures and of question groups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from vtscale_jax.eval.scoring.cells import place, present, require
from vtscale_jax.eval.scoring.intervals import Metric, intervals, point
from vtscale_jax.eval.scoring.verdicts import (
    Scored,
    ScoringError,
    Version,
    commit_name,
)
from vtscale_jax.eval.scoring.yes_no import unread, yes_no_items

NUMBERS = ("aAcc", "fAcc", "qAcc")


class _Question(NamedTuple):
    """Where a row belongs: figures and questions of a set cross."""

    kind: str  # l2-category
    in_set: str
    figure: str
    question: str


def score_hallusion(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Rows Overall, each category and each l2-category, with aAcc, fAcc, qAcc in %.

    The index is cat_subcat_visual_set_figure_question. aAcc is the mean over rows; fAcc
    the share of figures (l2-category, set, figure) with all rows right; qAcc that of
    questions (l2-category, set, question). Only rows of the table count: those without
    an image are in no group.

    Intervals: bootstrap over sets (l2-category, set). Nothing smaller keeps whole both
    the rows of a figure and those of a question.
    """
    require(task, rows, ("index", "answer", "l2-category"))
    kinds = present(task, rows, "l2-category")
    places = [_placed(task, rows, i, kinds[i]) for i in range(len(rows))]
    items = yes_no_items(rows, predictions, version)
    right = np.array([item.score for item in items])
    subsets = [("Overall", np.ones(len(rows), bool))]
    for column in ("category", "l2-category"):
        if column in rows:
            cells = present(task, rows, column)
            subsets += [
                (str(name), np.array([cell == name for cell in cells]))
                for name in dict.fromkeys(cells)
            ]
    table, ends = [], []
    for name, chosen in sorted(subsets, key=lambda subset: subset[0]):
        own = [places[i] for i in np.flatnonzero(chosen)]
        metric, sets = _accuracies(own, right[chosen])
        values = dict(zip(NUMBERS, point(metric, sets), strict=True))
        spread = dict(zip(NUMBERS, intervals(metric, sets), strict=True))
        table.append({"split": name, **values})
        ends.append({"split": name, **spread})
    return Scored(table, ends, items, unread(items), commit_name(version))


def _placed(task: str, rows: pd.DataFrame, position: int, kind: object) -> _Question:
    parts = str(rows["index"].iloc[position]).split("_")
    if len(parts) < 6:
        raise ScoringError(
            f"{place(task, rows, position)}: the index has {len(parts)} parts between "
            "underscores, expected category_subcategory_visual_set_figure_question"
        )
    return _Question(str(kind), *parts[3:6])


def _accuracies(
    questions: Sequence[_Question], right: Float[np.ndarray, " I"]
) -> tuple[Metric, int]:
    """aAcc, fAcc and qAcc in per cent from weights of the sets, and how many sets."""
    set_of = {
        key: place
        for place, key in enumerate(
            dict.fromkeys((q.kind, q.in_set) for q in questions)
        )
    }
    shares = []
    for groups in (
        [(q, i) for i, q in enumerate(questions)],
        [q._replace(question="") for q in questions],
        [q._replace(figure="") for q in questions],
    ):
        whole: dict[object, bool] = {}
        unit: dict[object, int] = {}
        for group, question, score in zip(groups, questions, right, strict=True):
            whole[group] = whole.get(group, True) and bool(score)
            unit[group] = set_of[question.kind, question.in_set]
        units = np.array(list(unit.values()))
        shares.append(
            (
                np.bincount(units, list(whole.values()), len(set_of)),
                np.bincount(units, minlength=len(set_of)),
            )
        )

    def metric(weights: Float[np.ndarray, "R U"]) -> Float[np.ndarray, "R 3"]:
        made = [
            weights @ all_right / (weights @ groups) for all_right, groups in shares
        ]
        return np.stack(made, axis=1) * 100

    return metric, len(set_of)
