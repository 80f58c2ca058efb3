"""Scores of OCRVQA, ChartQA and TextVQA from the verdicts on their answers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from vtscale_jax.eval.scoring.cells import (
    groups_of,
    has_cells,
    literal_list,
    place,
    plain,
    require,
)
from vtscale_jax.eval.scoring.intervals import (
    Interval,
    intervals,
    share_interval,
)
from vtscale_jax.eval.scoring.open_answers import agreement, normal, relaxed, same_text
from vtscale_jax.eval.scoring.verdicts import (
    Item,
    Scored,
    ScoringError,
    Version,
    commit_name,
)


class _Verdict(NamedTuple):
    """What was compared, in VLMEvalKit's names, and the score of the answer."""

    pred: str
    gt: list[str]
    match: list[float]
    score: float


def score_ocrvqa(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Per cent of answers equal to one of the references; see `same_text`."""
    verdicts = []
    for references, prediction in _answered(task, rows, predictions):
        match = [same_text(prediction, text) for text in references]
        verdicts.append(_Verdict(prediction.strip(), references, match, max(match)))
    return _scored(task, rows, verdicts, version)


def score_chartqa(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Per cent of answers within the tolerance of one of the references; see
    `relaxed`."""
    verdicts = []
    for references, prediction in _answered(task, rows, predictions):
        match = [relaxed(prediction, text, version) for text in references]
        verdicts.append(_Verdict(prediction.strip(), references, match, max(match)))
    return _scored(task, rows, verdicts, version)


def score_textvqa(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Mean agreement with the references, in per cent; see `agreement`."""
    verdicts = []
    for references, prediction in _answered(task, rows, predictions):
        texts = [normal(text, version) for text in references]
        said = normal(prediction, version)
        match = agreement(said, texts)
        verdicts.append(_Verdict(said, texts, match, float(np.mean(match))))
    return _scored(task, rows, verdicts, version)


def _answered(
    task: str, rows: pd.DataFrame, predictions: Sequence[str]
) -> Iterator[tuple[list[str], str]]:
    """The references of each row and its prediction.

    References are the items of the list that the answer cell spells, numbers as Python
    writes them, or else the cell as one text. ScoringError for an empty list.
    """
    require(task, rows, ("index", "answer"))
    for position, (cell, prediction) in enumerate(
        zip(rows["answer"], predictions, strict=True)
    ):
        spelled = literal_list(str(cell))
        if spelled == []:
            raise ScoringError(
                f"{place(task, rows, position)}: answer is an empty list, expected at "
                "least one reference"
            )
        yield [str(one) for one in spelled or [cell]], prediction


def _scored(
    task: str, rows: pd.DataFrame, verdicts: Sequence[_Verdict], version: Version
) -> Scored:
    """One row: each split and Overall (the mean of all rows); without splits, Overall
    and each category where there are some; sorted by name.

    Intervals: Wilson's where all items are right or wrong, else bootstrap over items.
    """
    items = [
        Item(
            *(plain(index), own.pred, own.score),
            {"gt": own.gt, "pred": own.pred, "match": own.match},
        )
        for index, own in zip(rows["index"], verdicts, strict=True)
    ]
    values = np.array([item.score for item in items])
    everything = np.ones(len(items), bool)
    if "split" in rows:
        groups = {**groups_of(task, rows, "split"), "Overall": everything}
    elif has_cells(rows, "category"):
        groups = {"Overall": everything, **groups_of(task, rows, "category")}
    else:
        groups = {"Overall": everything}
    row = {name: float(np.mean(values[own])) * 100 for name, own in groups.items()}
    ends = {name: _mean_interval(values[own]) for name, own in groups.items()}
    return Scored([row], [ends], items, 0, commit_name(version))


def _mean_interval(values: Float[np.ndarray, " I"]) -> Interval:
    if np.isin(values, (0, 1)).all():
        return share_interval(int(values.sum()), len(values), 100.0)

    def mean(weights: Float[np.ndarray, "R U"]) -> Float[np.ndarray, "R 1"]:
        return (weights @ values / weights.sum(1))[:, None] * 100

    return intervals(mean, len(values))[0]
