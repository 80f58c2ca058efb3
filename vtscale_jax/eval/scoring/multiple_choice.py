"""Multiple choice without a judge: which option a text names, and accuracies."""

import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vtscale_jax.eval.scoring.cells import groups_of, has_cells, plain, require
from vtscale_jax.eval.scoring.intervals import share_interval
from vtscale_jax.eval.scoring.verdicts import (
    Item,
    Scored,
    ScoringError,
    Version,
    commit_name,
)

UNREAD = "Z"
_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_APART = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# `current` only. Nothing need follow the letter: "the answer is a dog" says A.
_SPELLED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LAST_TOKENS = 4
# Names that VLMEvalKit writes for those of MMBench, in any benchmark.
_SHORT = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def named_letter(
    prediction: str, letters: Collection[str], version: Version
) -> str | None:
    """The one option letter that stands as a word of its own, in capitals.

    Z for a refusal, and where Z is such a word and no option letter is; None where no
    letter or several occur. "A dog" says A: an article looks like an option. `current`
    takes the letter only where it first occurs among the last 4 words, and else looks
    for "answer is X", X one of A to D in either case.
    """
    if _NO_ANSWER in prediction:
        return None
    if any(refusal in prediction for refusal in _REFUSALS):
        return UNREAD
    words = prediction.translate(_APART).split()
    found = [letter for letter in letters if letter in words]
    if not found and UNREAD in words:
        return UNREAD
    if version == "paper":
        return found[0] if len(found) == 1 else None
    if len(found) == 1 and words.index(found[0]) >= len(words) - _LAST_TOKENS:
        return found[0]
    spelled = _SPELLED.search(prediction)
    letter = spelled[1].upper() if spelled else None
    return letter if letter in letters else None


def named_text(
    prediction: str, choices: Mapping[str, Any], version: Version
) -> str | None:
    """The letter of the one option whose text occurs in the prediction, in any case.

    None where several do: an option that is part of another ("cat", "cat and dog")
    hides it. `current` refuses predictions more than twice as long as all option texts
    together.
    """
    said = prediction.lower()
    texts = {letter: str(text) for letter, text in choices.items()}
    if version == "current" and len(said) > 2 * sum(map(len, texts.values())):
        return None
    found = [letter for letter, text in texts.items() if text.lower() in said]
    return found[0] if len(found) == 1 else None


def infer(prediction: str, choices: Mapping[str, Any], version: Version) -> str | None:
    """The letter that a prediction names by letter or else by text; Z for a refusal;
    None where none can be read, which counts as Z."""
    return named_letter(prediction, choices, version) or named_text(
        prediction, choices, version
    )


def score_multiple_choice(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """A row per split (`none` where there is no such column): Overall, each
    l2-category, each category, sorted; all shares from 0 to 1.

    Options are the columns named by one capital letter, where the row has a text. All
    other columns are known in lower case. A category with the name of an l2-category
    takes its place; one that a split lacks has no number (NaN). A level that is missing
    in every row is left out, where VLMEvalKit writes columns without numbers.

    Intervals: Wilson's, an item being one question.
    """
    rows = _lower_cased(task, rows)
    require(task, rows, ("index", "answer"))
    letters = [name for name in rows if name in set(string.ascii_uppercase)]
    letters.sort()
    options = {letter: list(rows[letter]) for letter in letters}
    items = []
    for position, (index, answer, prediction) in enumerate(
        zip(rows["index"], rows["answer"], predictions, strict=True)
    ):
        texts = {letter: cells[position] for letter, cells in options.items()}
        choices = {letter: text for letter, text in texts.items() if not pd.isna(text)}
        letter = infer(prediction, choices, version) or UNREAD
        detail = {"answer": plain(answer), "choices": list(choices)}
        items.append(Item(plain(index), letter, float(letter == answer), detail))
    table, ends = _accuracies(task, rows, np.array([item.score == 1 for item in items]))
    failures = sum(item.extracted == UNREAD for item in items)
    return Scored(table, ends, items, failures, commit_name(version))


def _lower_cased(task: str, rows: pd.DataFrame) -> pd.DataFrame:
    names = {
        name: name if name in set(string.ascii_uppercase) else str(name).lower()
        for name in rows
    }
    twice = sorted({n for n in names.values() if [*names.values()].count(n) > 1})
    if twice:
        raise ScoringError(
            f"{task}: columns {', '.join(n for n in names if names[n] in twice)} are "
            "one but for upper and lower case, which VLMEvalKit does not tell apart; "
            "remove or rename all but one"
        )
    return rows.rename(columns=names)


def _accuracies(
    task: str, rows: pd.DataFrame, hits: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    everything = np.ones(len(rows), bool)
    splits = {"none": everything}
    if "split" in rows:
        splits = groups_of(task, rows, "split")
    columns = {"Overall": everything}
    for level in ("l2-category", "category"):
        if has_cells(rows, level):
            groups = groups_of(task, rows, level)
            columns |= {_SHORT.get(name, name): own for name, own in groups.items()}
    table, ends = [], []
    for split, inside in splits.items():
        row: dict[str, Any] = {"split": split}
        spread: dict[str, Any] = {"split": split}
        for name, own in columns.items():
            right, of = int(hits[inside & own].sum()), int((inside & own).sum())
            row[name] = right / of if of else float("nan")
            spread[name] = share_interval(right, of, 1.0)
        table.append(row)
        ends.append(spread)
    return table, ends
