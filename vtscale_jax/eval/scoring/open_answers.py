"""Short free answers: OCRVQA, ChartQA and TextVQA against their references."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vtscale_jax.eval.scoring.punctuation import without_punctuation
from vtscale_jax.eval.scoring.verdicts import Version

TOLERANCE = 0.05
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten".split()
    )
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = Path(__file__).with_name("contractions.json")


def same_text(prediction: str, reference: str) -> float:
    """OCRVQA: 1 where both are equal, stripped and lower-cased; a period counts."""
    return float(prediction.strip().lower() == reference.strip().lower())


def relaxed(prediction: str, reference: str, version: Version) -> float:
    """ChartQA: 1 for numbers within 5 %, or for texts equal in any case.

    `paper` has the arguments swapped, so that 5 % are of the prediction, and a
    prediction of 0 is compared as text; `current` takes them of the reference, and
    compares a reference of 0 as text. Years are numbers too.
    """
    said = prediction.strip()
    guess, truth = number(said), number(reference)
    scale = guess if version == "paper" else truth
    if guess is not None and truth is not None and scale:
        return float(abs(truth - guess) / abs(scale) <= TOLERANCE)
    return float(said.lower() == reference.lower())


def number(text: str) -> float | None:
    """The number that Python reads in a text; a hundredth of it before `%`.

    "1_000", ".5", "3e2", "inf" and "nan" are numbers; "1,234" and "$5" are not.
    """
    try:
        if text.endswith("%"):
            return float(text.rstrip("%")) / 100
        return float(text)
    except ValueError:
        return None


def normal(answer: str, version: Version) -> str:
    """The text in which TextVQA compares answers.

    Newlines and tabs become spaces, the ends are stripped, punctuation goes, letters
    are lowered; words of numbers to ten (and none) become digits, articles go,
    contractions get their apostrophe back: "The dont" -> "don't".
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = without_punctuation(text, version).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    table = contractions()
    return " ".join(table.get(word, word) for word in words if word not in _ARTICLES)


def agreement(prediction: str, references: Sequence[str]) -> list[float]:
    """TextVQA: for each reference, how far the others agree with the prediction.

    min(1, m / 3), m the other references equal to it; all are normalised already. The
    score is the mean: 0, .3, .6, .9 or 1 for ten references, and always 0 for one.
    """
    equal = [reference == prediction for reference in references]
    return [min(1.0, (sum(equal) - own) / 3) for own in equal]


@cache
def contractions() -> dict[str, str]:
    """The VQA tool's table of contractions without apostrophe, as it is published,
    with its slips (keys in capitals, which no lowered word meets)."""
    return json.loads(_CONTRACTIONS.read_text())
