"""OCRBench: is one of the answers part of what was said."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vtscale_jax.eval.scoring.cells import (
    literal_list,
    place,
    plain,
    require,
    text_list,
)
from vtscale_jax.eval.scoring.intervals import share_interval
from vtscale_jax.eval.scoring.verdicts import (
    Item,
    Scored,
    ScoringError,
    Version,
    commit_name,
)

FORMULAS = "Handwritten Mathematical Expression Recognition"
# Score by the categories that it sums.
SUMS = {
    "Text Recognition": (
        *("Regular Text Recognition", "Irregular Text Recognition"),
        *("Artistic Text Recognition", "Handwriting Recognition"),
        *("Digit String Recognition", "Non-Semantic Text Recognition"),
    ),
    "Scene Text-centric VQA": ("Scene Text-centric VQA",),
    "Doc-oriented VQA": ("Doc-oriented VQA",),
    "Key Information Extraction": ("Key Information Extraction",),
    FORMULAS: (FORMULAS,),
}


def contains(prediction: str, answers: Sequence[str], category: str) -> bool:
    """Whether a normalised answer is a substring of the normalised prediction.

    Formulas lose all spaces and keep their case; other texts are lower-cased. Both are
    stripped and have spaces for newlines.
    """

    def normal(text: str) -> str:
        if category == FORMULAS:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.lower().strip().replace("\n", " ")

    said = normal(prediction)
    return any(normal(answer) in said for answer in answers)


def score_ocrbench(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """Counts of hits: by group of categories, `Final Score` (all), and `Final Score
    Norm`, a tenth of it however many rows there are.

    ScoringError where an answer is no list of texts, and where a row of another
    category is hit, which VLMEvalKit has no count for.

    Intervals: Wilson's of the share of hits, times the rows of the group.
    """
    require(task, rows, ("index", "answer", "category"))
    items = []
    for position, (index, answer, category, prediction) in enumerate(
        zip(rows["index"], rows["answer"], rows["category"], predictions, strict=True)
    ):
        where = place(task, rows, position)
        hit = contains(
            prediction, text_list(where, literal_list(str(answer))), category
        )
        if hit and not any(category in names for names in SUMS.values()):
            known = ", ".join(name for names in SUMS.values() for name in names)
            raise ScoringError(
                f"{where}: category is {category!r}, expected one of {known}"
            )
        items.append(Item(plain(index), None, float(hit), {"category": category}))
    hits = np.array([item.score == 1 for item in items])
    groups = {
        name: rows["category"].isin(names).to_numpy() for name, names in SUMS.items()
    }
    groups["Final Score"] = np.any(list(groups.values()), axis=0)
    scores: dict[str, int | float] = {}
    ends: dict[str, tuple[float, float]] = {}
    for name, own in groups.items():
        right, of = int(hits[own].sum()), int(own.sum())
        scores[name] = right
        ends[name] = share_interval(right, of, float(of)) if of else (0.0, 0.0)
    scores["Final Score Norm"] = scores["Final Score"] / 10
    low, high = ends["Final Score"]
    ends["Final Score Norm"] = (low / 10, high / 10)
    return Scored(scores, ends, items, 0, commit_name(version))
