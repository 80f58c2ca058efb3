"""Verdicts of the yes/no benchmarks: MME, HallusionBench, POPE."""

from collections.abc import Sequence

import pandas as pd

from vtscale_jax.eval.scoring.cells import plain
from vtscale_jax.eval.scoring.punctuation import without_punctuation
from vtscale_jax.eval.scoring.verdicts import Item, Version

UNKNOWN = "Unknown"


def yes_or_no(prediction: str, version: Version) -> str:
    """Yes or No when exactly one of the two words occurs, else Unknown.

    Words are what white space separates once punctuation is gone; only whole words
    count, so that "Yes:" and "'Yes'", whose marks stay, are Unknown.
    """
    words = without_punctuation(prediction.lower(), version).split()
    yes, no = "yes" in words, "no" in words
    if yes == no:
        return UNKNOWN
    return "Yes" if yes else "No"


def yes_no_items(
    rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> list[Item]:
    """The verdict on each row: 1 where the answer cell is exactly what was read.

    Unknown is wrong whatever the answer is. VLMEvalKit takes the answer from the
    workbook of predictions, so a table with that column is what it would score.
    """
    items = []
    for index, answer, prediction in zip(
        rows["index"], rows["answer"], predictions, strict=True
    ):
        extracted = yes_or_no(prediction, version)
        score = float(answer == extracted)
        items.append(Item(plain(index), extracted, score, {"answer": plain(answer)}))
    return items


def unread(items: Sequence[Item]) -> int:
    """How many answers are Unknown."""
    return sum(item.extracted == UNKNOWN for item in items)
