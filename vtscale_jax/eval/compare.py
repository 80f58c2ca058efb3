"""Paired comparison of two evaluations: the same items, answered by two models.

For each task, the mean difference of the items' scores with a 95 % interval from a
bootstrap over items, and a two-sided p-value: McNemar's exact test where items are
right or wrong, a sign-flip permutation test where they are graded. The p-values are
those of Holm's procedure over all tasks beside the plain ones.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

DRAWS = 10_000
ITEMS, SCORES = "items.jsonl", "scores.json"
# What must be the same of a task for a paired comparison to mean anything.
SAME = ("scorer", "data_sha256")


class CompareError(ValueError):
    """Evaluations that cannot be compared."""


class Compared(NamedTuple):
    """One task. `first` and `second` are mean item scores (shares from 0 to 1),
    `difference` is second − first with its 95 % interval `low` to `high`; `better` and
    `worse` count the items of which the second's score is higher or lower. `p_holm` is
    `p` corrected for the number of tasks."""

    task: str
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    test: str
    p: float
    p_holm: float = 1.0


def compare_folders(first: Path, second: Path, seed: int = 0) -> list[Compared]:
    """The tasks that both folders of `eval run` hold, in the first's order.

    CompareError when they have none in common, or when a task's items, data or scorer
    differ: an unpaired difference would be no comparison of models.
    """
    ours, theirs = tasks_of(first), tasks_of(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise CompareError(
            f"{first} has scores of {', '.join(ours) or 'no task'}, {second} of "
            f"{', '.join(theirs) or 'no task'}: expected one that both have"
        )
    rows = []
    for name in shared:
        about = [_read(folder / name / SCORES) for folder in (first, second)]
        for field in SAME:
            if about[0].get(field) != about[1].get(field):
                raise CompareError(
                    f"{name}: {field} is {about[0].get(field)!r} in {first} and "
                    f"{about[1].get(field)!r} in {second}: evaluate both alike"
                )
        scores = [item_scores(folder / name / ITEMS) for folder in (first, second)]
        if scores[0].keys() != scores[1].keys():
            odd = sorted(scores[0].keys() ^ scores[1].keys())
            raise CompareError(
                f"{name}: {len(odd)} items are in one of {first} and {second} only "
                f"({', '.join(odd[:5])}…): evaluate both on the same items (--limit)"
            )
        pairs = np.array([(scores[0][index], scores[1][index]) for index in scores[0]])
        rows.append(compare(name, pairs[:, 0], pairs[:, 1], seed))
    return holm(rows)


def compare(
    task: str,
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    seed: int,
) -> Compared:
    """One task's items in the same order."""
    differences = second - first
    n = len(differences)
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for start in range(0, DRAWS, 500):  # 500 × n indices at a time
        chosen = rng.integers(0, n, (500, n))
        drawn[start : start + 500] = differences[chosen].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    if binary:
        test = "McNemar, exact"
        changed = better + worse
        p = float(binomtest(better, changed).pvalue) if changed else 1.0
    else:
        test = "sign-flip permutation"
        p = _sign_flip(differences, rng)
    mean = float(differences.mean())
    return Compared(
        *(task, n, float(first.mean()), float(second.mean()), mean),
        *(float(low), float(high), better, worse, test, p),
    )


def _sign_flip(differences: Float[np.ndarray, " n"], rng: np.random.Generator) -> float:
    """Two-sided p of no difference: how often random signs give as large a sum."""
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    seen = abs(changed.sum())
    hits = 0
    for _ in range(DRAWS // 500):
        signs = rng.choice((-1.0, 1.0), (500, len(changed)))
        hits += int((np.abs(signs @ changed) >= seen - 1e-12).sum())
    return (1 + hits) / (1 + DRAWS)  # the seen signs are one of those possible


def holm(rows: Sequence[Compared]) -> list[Compared]:
    """The rows with `p_holm` set, by Holm's step-down procedure."""
    corrected = {}
    largest = 0.0
    for place, i in enumerate(sorted(range(len(rows)), key=lambda i: rows[i].p)):
        largest = max(largest, min(1.0, rows[i].p * (len(rows) - place)))
        corrected[i] = largest
    return [row._replace(p_holm=corrected[i]) for i, row in enumerate(rows)]


def lines(rows: Sequence[Compared]) -> list[str]:
    """A table as text, scores in per cent."""
    width = max(len("task"), *(len(row.task) for row in rows))
    made = [
        f"{'task':<{width}} {'items':>6} {'first':>7} {'second':>7} "
        f"{'second − first':>26} {'better':>7} {'worse':>6} {'p':>9} {'p (Holm)':>9}"
    ]
    for row in rows:
        change = f"{100 * row.difference:+.1f} ({100 * row.low:+.1f} to "
        change += f"{100 * row.high:+.1f})"
        made.append(
            f"{row.task:<{width}} {row.n:>6} {100 * row.first:>7.1f} "
            f"{100 * row.second:>7.1f} {change:>26} {row.better:>7} {row.worse:>6} "
            f"{row.p:>9.2g} {row.p_holm:>9.2g}"
        )
    return made


def tasks_of(folder: Path) -> list[str]:
    """The tasks with scores in a folder of `eval run`."""
    if not folder.is_dir():
        raise CompareError(
            f"{folder} is no folder, expected one that eval run wrote (OUT/MODEL)"
        )
    return sorted(file.parent.name for file in folder.glob(f"*/{SCORES}"))


def item_scores(file: Path) -> dict[str, float]:
    """The score of each item of a task."""
    scores: dict[str, float] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            scores[row["index"]] = float(row["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise CompareError(
                f"{file}:{number} is no scored item ({error!r}): score it again with "
                "the command that made it"
            ) from error
    return scores


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompareError(f"{file} cannot be read ({error})") from error
