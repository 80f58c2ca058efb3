"""MME: accuracy per category, and accuracy of images whose two questions are right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vtscale_jax.eval.scoring.cells import place, present, require
from vtscale_jax.eval.scoring.intervals import Metric, interval, point, resampled
from vtscale_jax.eval.scoring.verdicts import (
    Scored,
    ScoringError,
    Version,
    commit_name,
)
from vtscale_jax.eval.scoring.yes_no import unread, yes_no_items

TOTALS = {
    "perception": (
        *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark"),
        *("position", "posters", "scene"),
    ),
    # The paper's "cognition".
    "reasoning": (
        *("code_reasoning", "commonsense_reasoning", "numerical_calculation"),
        "text_translation",
    ),
}


def score_mme(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """One row: perception and reasoning (sums of their categories, at most 2000 and
    800), then each category in order of appearance.

    A category's score is 100 acc + 100 acc+: acc the mean over its questions, acc+ the
    share of its images whose first two questions are both right; an image is an
    `image_path`. All 14 categories must be there, and each image needs two questions.

    Intervals: bootstrap over the images of each category (its two questions stay
    together), the categories independently of each other.
    """
    require(task, rows, ("index", "answer", "category", "image_path"))
    categories = present(task, rows, "category")
    present(task, rows, "image_path")
    named = {name for names in TOTALS.values() for name in names}
    if named - set(categories):
        raise ScoringError(
            f"{task}: no row has the category "
            f"{', '.join(sorted(named - set(categories)))}; the totals need all "
            f"{len(named)}: score the whole benchmark"
        )
    items = yes_no_items(rows, predictions, version)
    values, draws = {}, {}
    for stream, name in enumerate(dict.fromkeys(categories)):
        images: dict[object, list[float]] = {}
        last: dict[object, int] = {}
        for position, of in enumerate(categories):
            if of == name:
                image = rows["image_path"].iloc[position]
                images.setdefault(image, []).append(items[position].score)
                last[image] = position
        for image, scores in images.items():
            if len(scores) < 2:
                raise ScoringError(
                    f"{place(task, rows, last[image])}: the only question about "
                    f"{image!r} in {name}; expected two, whose joint score is acc+"
                )
        metric = _category(list(images.values()))
        (values[name],) = point(metric, len(images))
        draws[name] = resampled(metric, len(images), stream)[:, 0]
    row: dict[str, object] = {}
    ends: dict[str, object] = {}
    for total, names in TOTALS.items():
        row[total] = sum(values[name] for name in names)
        ends[total] = interval(np.sum([draws[name] for name in names], axis=0))
    row.update(values)
    ends.update({name: interval(draws[name]) for name in values})
    return Scored([row], [ends], items, unread(items), commit_name(version))


def _category(images: list[list[float]]) -> Metric:
    """acc + acc+ in per cent, from weights of the images; given their scores."""
    right = np.array([sum(scores) for scores in images])
    asked = np.array([len(scores) for scores in images])
    # Further questions of an image count in acc only.
    both = np.array([scores[0] * scores[1] for scores in images])

    def metric(weights: Float[np.ndarray, "R U"]) -> Float[np.ndarray, "R 1"]:
        acc = weights @ right / (weights @ asked)
        acc_plus = weights @ both / weights.sum(1)
        return (acc * 100 + acc_plus * 100)[:, None]

    return metric
