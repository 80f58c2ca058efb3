"""POPE: F1, accuracy, precision and recall, pooled and per way of drawing objects."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vtscale_jax.eval.scoring.cells import place, require, shown
from vtscale_jax.eval.scoring.intervals import (
    Interval,
    Metric,
    intervals,
    point,
    share_interval,
)
from vtscale_jax.eval.scoring.verdicts import (
    Item,
    Scored,
    ScoringError,
    Version,
    commit_name,
)
from vtscale_jax.eval.scoring.yes_no import unread, yes_no_items

# VLMEvalKit's names; Overall is F1.
NUMBERS = ("Overall", "acc", "precision", "recall")


class _Counts(NamedTuple):
    """How often each unit counts, [units]: in all, right, and in the cells of the
    table of truth against prediction."""

    asked: Int[np.ndarray, " U"]
    right: Int[np.ndarray, " U"]
    true_positive: Int[np.ndarray, " U"]
    false_positive: Int[np.ndarray, " U"]
    false_negative: Int[np.ndarray, " U"]


def score_pope(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Rows Overall and each category, in %: Overall (F1), acc, precision, recall.

    A row counts once for each name of its comma-joined category, and as often in the
    pooled row Overall; without a category it counts there alone. Yes is positive;
    Unknown counts as negative in F1, precision and recall and as wrong in acc, so that
    acc is not the share of the table's diagonal. What is undefined is 0.

    Intervals: a row is one unit however often it counts. Wilson's for acc, precision
    and recall where each row counts once (0 to 100 where nothing was counted);
    bootstrap for F1, and for all where rows repeat.
    """
    require(task, rows, ("index", "answer", "category"))
    names = [_names(task, rows, position) for position in range(len(rows))]
    items = yes_no_items(rows, predictions, version)
    table, ends = [], []
    splits = [("Overall", [max(1, len(own)) for own in names])]
    for name in dict.fromkeys(name for own in names for name in own):
        splits.append((name, [own.count(name) for own in names]))
    for split, times in sorted(splits, key=lambda split: split[0]):
        counts = _counts(items, times)
        metric, units = _metric(counts), len(counts.asked)
        values = dict(zip(NUMBERS, point(metric, units), strict=True))
        table.append({"split": split, **values})
        ends.append({"split": split, **_spread(counts, metric)})
    return Scored(table, ends, items, unread(items), commit_name(version))


def _names(task: str, rows: pd.DataFrame, position: int) -> list[str]:
    cell = rows["category"].iloc[position]
    if pd.isna(cell):
        return []
    if not isinstance(cell, str):
        raise ScoringError(
            f"{place(task, rows, position)}: category is {shown(cell)}, expected names "
            "joined by commas, such as adversarial,popular"
        )
    return cell.split(",")


def _counts(items: Sequence[Item], times: Sequence[int]) -> _Counts:
    """Of the items that count at least once."""
    own = [(item, n) for item, n in zip(items, times, strict=True) if n]
    asked = np.array([n for _, n in own])
    right = np.array([item.score == 1 for item, _ in own])
    truth = np.array([item.detail["answer"] == "Yes" for item, _ in own])
    said = np.array([item.extracted == "Yes" for item, _ in own])
    return _Counts(
        asked,
        asked * right,
        asked * (truth & said),
        asked * (~truth & said),
        asked * (truth & ~said),
    )


def _metric(counts: _Counts) -> Metric:
    def metric(weights: Float[np.ndarray, "R U"]) -> Float[np.ndarray, "R 4"]:
        tp = weights @ counts.true_positive
        precision = _ratio(tp, tp + weights @ counts.false_positive)
        recall = _ratio(tp, tp + weights @ counts.false_negative)
        f1 = _ratio(2 * (precision * recall), precision + recall)
        acc = weights @ counts.right / (weights @ counts.asked)
        return np.stack([f1, acc, precision, recall], axis=1) * 100

    return metric


def _ratio(
    above: Float[np.ndarray, " R"], below: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _spread(counts: _Counts, metric: Metric) -> dict[str, Interval]:
    made = intervals(metric, len(counts.asked))
    drawn: dict[str, Interval] = dict(zip(NUMBERS, made, strict=True))
    if (counts.asked > 1).any():
        return drawn
    _, right, tp, fp, fn = (int(column.sum()) for column in counts)
    for name, part, whole in (
        ("acc", right, len(counts.asked)),
        ("precision", tp, tp + fp),
        ("recall", tp, tp + fn),
    ):
        drawn[name] = share_interval(part, whole, 100.0) if whole else (0.0, 100.0)
    return drawn
