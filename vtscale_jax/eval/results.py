"""The files of an evaluation, in the folder of one model.

OUT/MODEL/
  evaluation.json   which model, which scorer, which tasks are finished
  POPE/
    ledger.jsonl    what was answered, item by item (`ledger`)
    items.jsonl     the ledger with each item's verdict
    scores.json     scores with 95 % intervals, counts of failures and tokens
  MODEL_POPE.xlsx …  predictions and scores as VLMEvalKit writes them
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtscale_jax.eval.ledger import (
    EMPTY,
    EXCEPTION,
    IMAGES_LEFT_OUT,
    TRUNCATED,
    Entry,
)
from vtscale_jax.eval.scoring.score import Scored
from vtscale_jax.eval.scoring.verdicts import Scores
from vtscale_jax.run_folder import RunFolder

EVALUATION, ITEMS, SCORES = "evaluation.json", "items.jsonl", "scores.json"
FLAGS = (EXCEPTION, EMPTY, TRUNCATED, IMAGES_LEFT_OUT)


def write_task(
    folder: RunFolder,
    about: Mapping[str, Any],
    entries: Sequence[Entry],
    scored: Scored,
) -> None:
    """Writes items.jsonl and scores.json of a task; `about` names it, its scorer and
    its data, `entries` and the scored items are in the same order."""
    rows = [
        {**entry._asdict(), "extracted": item.extracted, "score": item.score}
        | {"detail": item.detail}
        for entry, item in zip(entries, scored.items, strict=True)
    ]
    folder.write_lines(ITEMS, rows)
    folder.write(
        SCORES,
        {
            **about,
            "items": len(entries),
            "failures": failures(entries) | {"unreadable": scored.failures},
            "tokens": token_counts(entries),
            "scores": without_nan(scored.scores),
            "intervals": without_nan(scored.intervals),
        },
    )


def failures(entries: Sequence[Entry]) -> dict[str, int]:
    """How many items have each flag."""
    return {flag: sum(flag in entry.flags for entry in entries) for flag in FLAGS}


def token_counts(entries: Sequence[Entry]) -> dict[str, dict[str, int | float]]:
    """What the LLM read for an item that was answered: least, mean and most tokens of
    the prompt, and of those the ones that stand for images."""
    answered = [entry for entry in entries if entry.error is None]
    return {
        name: {
            "least": int(np.min(counts)),
            "mean": float(np.mean(counts)),
            "most": int(np.max(counts)),
        }
        for name, counts in (
            ("prompt", [entry.prompt_tokens for entry in answered]),
            ("vision", [entry.vision_tokens for entry in answered]),
        )
        if counts
    }


def summary(task_folder: Path) -> list[str]:
    """A task's scores as lines."""
    found = json.loads((task_folder / SCORES).read_text(encoding="utf-8"))
    counted = [f"{n} {name}" for name, n in found["failures"].items() if n]
    tokens = found["tokens"].get("vision")
    seen = f", {tokens['mean']:g} vision tokens" if tokens else ""
    head = f"{found['task']}: {found['items']:,} items, scorer {found['scorer']}{seen}"
    head += f"; {', '.join(counted)}" if counted else ""
    return [head, *score_lines(found["scores"], found["intervals"])]


def score_lines(scores: Scores, intervals: Scores) -> list[str]:
    """A line for each number, with its 95 % interval."""
    lines = []
    for row, span in zip(_rows(scores), _rows(intervals), strict=True):
        split = row.get("split", "none")
        for name, value in row.items():
            if name != "split":
                label = name if split == "none" else f"{split} {name}"
                lines += _lines(label, value, span[name])
    return lines


def without_nan(tree: Any) -> Any:
    """Scores as JSON can hold them: null for one that is not there, as of a category
    that a split lacks."""
    if isinstance(tree, dict):
        return {name: without_nan(one) for name, one in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(one) for one in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def _rows(table: Scores) -> list[dict[str, Any]]:
    return [table] if isinstance(table, dict) else table


def _lines(label: str, value: Any, span: Any) -> list[str]:
    if isinstance(value, list):  # Bleu
        numbered = enumerate(zip(value, span, strict=True), 1)
        return [ln for n, one in numbered for ln in _lines(f"{label}-{n}", *one)]
    if value is None or math.isnan(value):
        return [f"  {label:<48} {'none':>8}"]
    there = span is not None and None not in span
    between = f"  ({span[0]:.4g} to {span[1]:.4g})" if there else ""
    return [f"  {label:<48} {value:>8.4g}{between}"]
