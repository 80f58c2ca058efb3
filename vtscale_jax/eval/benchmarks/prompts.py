"""What a model is asked: VLMEvalKit's generic prompts, to the character.

They are the same in both versions. The answer's format is not asked for in multiple
choice, and the questions of yes/no benchmarks and OCRBench stand as the table has them.
"""

import string
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vtscale_jax.eval.benchmarks.tasks import Task

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
SELECT = "Please select the correct answer from the options above. \n"


def prompt(task: Task, row: Mapping[str, Any]) -> str:
    """The text of a row, which stands after its images.

    `row` is a row of the table by column, as pandas typed it: a missing option is left
    out, also one whose text was `None`; an option of a column of numbers reads as the
    number does (`36.0`).

        Hint: It is a map.
        Question: Which ocean is this?
        Options:
        A. Atlantic
        B. Pacific
        Please select the correct answer from the options above. ↵
    """
    question = row["question"]
    if task.kind == "open":
        return f"{question}{SHORT_ANSWER}"
    if task.kind != "multiple_choice":
        return str(question)
    hint = f"Hint: {row['hint']}\n" if _has(row, "hint") else ""
    options = [
        f"{letter}. {row[letter]}\n"
        for letter in string.ascii_uppercase
        if _has(row, letter)
    ]
    choices = f"Options:\n{''.join(options)}{SELECT}" if options else ""
    return f"{hint}Question: {question}\n{choices}"


def message(
    task: Task, row: Mapping[str, Any], num_images: int
) -> list[dict[str, str]]:
    """The whole of what is asked in VLMEvalKit's form: the images by file name, then
    the text."""
    images = image_names(task, row["index"], num_images)
    parts = [{"type": "image", "value": name} for name in images]
    return [*parts, {"type": "text", "value": prompt(task, row)}]


def image_names(task: Task, index: int | str, num_images: int) -> list[str]:
    """The image files of a row below VLMEvalKit's data folder: images/COCO/7.jpg, or
    images/SEEDBench2/7_0.jpg, 7_1.jpg, … when there are several."""
    names = [str(index)] if num_images == 1 else _numbered(index, num_images)
    return [f"images/{task.image_root}/{name}.jpg" for name in names]


def _numbered(index: int | str, number: int) -> list[str]:
    return [f"{index}_{place}" for place in range(number)]


def _has(row: Mapping[str, Any], column: str) -> bool:
    return column in row and not pd.isna(row[column])
