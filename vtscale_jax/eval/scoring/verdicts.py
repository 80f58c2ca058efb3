"""What a scorer returns, and the two versions of VLMEvalKit it can follow."""

from typing import Any, Literal, NamedTuple

# `paper` is the commit that the paper names; `current` the newest one described.
Version = Literal["paper", "current"]
COMMITS: dict[str, str] = {"paper": "0ff0c3e", "current": "e8e78f05"}

# A table in VLMEvalKit's form: its rows, or one object where it writes JSON.
Scores = list[dict[str, Any]] | dict[str, Any]


class ScoringError(ValueError):
    """A table or predictions that cannot be scored; says where and how to mend it."""


class Item(NamedTuple):
    """The verdict on one row of a benchmark.

    `extracted` is the answer as it was read: Yes, No or Unknown; a letter, Z where none
    could be read; the normalised text of an open answer; None where nothing is
    extracted (OCRBench, captions). `score` is what enters the mean: 0 or 1, a share for
    TextVQA, the image's CIDEr from 0 to 10 for captions. `detail` has what else the
    family knows, in VLMEvalKit's names.
    """

    index: int | str
    extracted: str | None
    score: float
    detail: dict[str, Any]


class Scored(NamedTuple):
    """A benchmark's scores.

    `scores` has VLMEvalKit's names, scales and order of columns; tables with splits are
    sorted by them. `intervals` has the same form, with the 95 % interval (low, high) in
    place of each number and the split's name as it is. `items` are in the order of the
    rows. `failures` counts the answers whose format could not be read (Unknown, Z);
    `version` names the commit whose rules were followed.
    """

    scores: Scores
    intervals: Scores
    items: list[Item]
    failures: int
    version: str


def commit_name(version: str) -> str:
    """`paper: VLMEvalKit 0ff0c3e`, as results say it. ScoringError for others."""
    if version not in COMMITS:
        raise ScoringError(
            f"scorer version is {version!r}, expected one of {', '.join(COMMITS)}"
        )
    return f"{version}: VLMEvalKit {COMMITS[version]}"
