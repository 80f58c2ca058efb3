"""The result files of a run, read and checked.

A run folder holds `config.json`, `manifest.json`, `metrics.jsonl`, `evaluation.json`,
`samples.jsonl` and `samples/*.png`. Each may be missing (the run was stopped before
it was written); one that is there must hold what it should, or reading it raises
`MalformedFile` naming file and line.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from vtscale_jax.metrics import MalformedFile, read_jsonl

# What the page says in place of a section whose file is missing.
WRITTEN_WHEN = {
    "config.json": "it is written when a run starts",
    "manifest.json": "it is written when a run starts and completed when it ends",
    "metrics.jsonl": "it is written from the first log interval on",
    "evaluation.json": "it is written by the evaluation after the last step",
    "samples.jsonl": "it is written by the evaluation after the last step",
}
UNANSWERED_BY_ALIGN = {
    "evaluation.json": "Stage align has no language model to answer with: its score "
    "is the held-out loss.",
    "samples.jsonl": "Stage align answers no questions.",
}


class Score(NamedTuple):
    """`correct` of `n` questions, as a share within its interval [low, high]."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float


class Family(NamedTuple):
    """Scores of one family of questions: with the page, and with a blank page."""

    name: str
    score: Score
    blank: Score | None


class Evaluation(NamedTuple):
    """What `evaluation.json` holds; a note "FAMILY: text" belongs to that family."""

    step: int
    num_queries: int
    families: tuple[Family, ...]
    notes: tuple[str, ...]


class Sample(NamedTuple):
    """One row of `samples.jsonl`; `image` is a path inside the run folder."""

    id: str
    family: str
    question: str
    answer: str
    prediction: str
    correct: bool
    blank_prediction: str | None
    flags: tuple[str, ...]
    image: str | None


class Run(NamedTuple):
    """A run folder's contents; None for what `missing` lists."""

    folder: Path
    config: dict[str, Any] | None
    manifest: dict[str, Any] | None
    metrics: list[dict[str, Any]] | None
    evaluation: Evaluation | None
    samples: tuple[Sample, ...] | None

    @property
    def missing(self) -> dict[str, str]:
        """Missing files, each with a sentence saying why it may be."""
        held = (
            self.config,
            self.manifest,
            self.metrics,
            self.evaluation,
            self.samples,
        )
        absent = {
            name: f"{name} is missing: {when}, so the run was stopped before that, or "
            "the folder was copied without it."
            for (name, when), value in zip(WRITTEN_WHEN.items(), held, strict=True)
            if value is None
        }
        if (self.config or {}).get("stage") == "align":
            for name in absent.keys() & UNANSWERED_BY_ALIGN.keys():
                absent[name] = UNANSWERED_BY_ALIGN[name]
        return absent


def read_run(run_dir: str | Path) -> Run:
    """Reads a run folder.

    Raises ValueError when it is no run folder (not a folder, or none of the files in
    it), and `MalformedFile` when a file is there but does not hold what it should.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(
            f"run_dir is {str(run_dir)!r}, expected an existing folder: pass the "
            "folder a training run wrote."
        )
    if not any((folder / name).exists() for name in WRITTEN_WHEN):
        raise ValueError(
            f"run_dir is {str(run_dir)!r}, which holds none of "
            f"{', '.join(WRITTEN_WHEN)}: pass the folder a training run wrote."
        )

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        path = folder / name
        return reader(path) if path.exists() else None

    return Run(
        folder=folder,
        config=read("config.json", _read_json),
        manifest=read("manifest.json", _read_json),
        metrics=read("metrics.jsonl", _read_metrics),
        evaluation=read("evaluation.json", _read_evaluation),
        samples=read("samples.jsonl", _read_samples),
    )


def _read_json(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedFile(
            f"{path}, line {error.lineno}: expected JSON, got something else "
            f"({error.msg}, column {error.colno}); write the file again, or mend it."
        ) from error
    if not isinstance(value, dict):
        raise MalformedFile(
            f"{path}, line 1: expected a JSON object {{...}}, got "
            f"{type(value).__name__}; write the file again, or mend it."
        )
    return value


class _Fields:
    """Typed access to the fields of one JSON object; errors say where it stands."""

    def __init__(self, where: str, row: dict[str, Any]) -> None:
        self.where, self.row = where, row

    def fail(self, name: str, expected: str) -> MalformedFile:
        got = repr(self.row[name])[:60] if name in self.row else "no such field"
        return MalformedFile(
            f"{self.where}: field {name!r}: expected {expected}, got {got}; write the "
            "file again, or mend the field."
        )

    def text(self, name: str) -> str:
        if not isinstance(self.row.get(name), str):
            raise self.fail(name, "a string")
        return self.row[name]

    def text_or_none(self, name: str) -> str | None:
        return None if self.row.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.fail(name, "a list of strings")
        return tuple(value)

    def truth(self, name: str) -> bool:
        if not isinstance(self.row.get(name), bool):
            raise self.fail(name, "true or false")
        return self.row[name]

    def count(self, name: str) -> int:
        value = self.row.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.fail(name, "an integer that is not negative")
        return value

    def share(self, name: str) -> float:
        value = self.row.get(name)
        if not _is_number(value) or not 0 <= value <= 1:
            raise self.fail(name, "a number from 0 to 1")
        return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        fields = _Fields(f"{path}, line {number}", row)
        fields.count("step")
        fields.text("split")
        for name, value in row.items():
            # null stands for a value that was not finite.
            if name not in ("step", "split", "loss") and value is None:
                continue
            if name != "split" and not _is_number(value):
                raise fields.fail(name, "a finite number")
    return rows


def _read_evaluation(path: Path) -> Evaluation:
    fields = _Fields(str(path), _read_json(path))
    families = fields.row.get("families")
    if not isinstance(families, dict):
        raise fields.fail("families", "an object of families")
    return Evaluation(
        step=fields.count("step"),
        num_queries=fields.count("num_queries"),
        families=tuple(_family(path, name, row) for name, row in families.items()),
        notes=fields.texts("notes"),
    )


def _family(path: Path, name: str, row: object) -> Family:
    where = f"{path}, family {name!r}"
    if not isinstance(row, dict):
        raise MalformedFile(
            f"{where}: expected an object with n, correct, accuracy, low and high, "
            f"got {row!r:.60}; write the file again, or mend it."
        )
    fields = _Fields(where, row)
    blank = row.get("blank_n") is not None
    return Family(
        name=name,
        score=_score(fields, ""),
        blank=_score(fields, "blank_") if blank else None,
    )


def _score(fields: _Fields, prefix: str) -> Score:
    score = Score(
        n=fields.count(f"{prefix}n"),
        correct=fields.count(f"{prefix}correct"),
        accuracy=fields.share(f"{prefix}accuracy"),
        low=fields.share(f"{prefix}low"),
        high=fields.share(f"{prefix}high"),
    )
    if not 0 <= score.correct <= score.n or score.n == 0:
        raise fields.fail(f"{prefix}correct", f"0 to {prefix}n = {score.n}, n over 0")
    # The numbers say the same thing three times; a page must not repeat a lie.
    slack = 1e-3
    if abs(score.accuracy - score.correct / score.n) > slack:
        raise fields.fail(
            f"{prefix}accuracy",
            f"{prefix}correct / {prefix}n = {score.correct / score.n:.4f}",
        )
    if not score.low - slack <= score.accuracy <= score.high + slack:
        raise fields.fail(
            f"{prefix}accuracy",
            f"a number within {prefix}low = {score.low} and "
            f"{prefix}high = {score.high}",
        )
    return score


def _read_samples(path: Path) -> tuple[Sample, ...]:
    samples = []
    for number, row in enumerate(read_jsonl(path), start=1):
        fields = _Fields(f"{path}, line {number}", row)
        sample = Sample(
            id=fields.text("id"),
            family=fields.text("family"),
            question=fields.text("question"),
            answer=fields.text("answer"),
            prediction=fields.text("prediction"),
            correct=fields.truth("correct"),
            blank_prediction=fields.text_or_none("blank_prediction"),
            flags=fields.texts("flags"),
            image=fields.text_or_none("image"),
        )
        if sample.image is not None:
            inside = (path.parent / sample.image).resolve()
            if not inside.is_relative_to(path.parent.resolve()):
                raise fields.fail("image", "a path inside the run folder, or null")
        samples.append(sample)
    return tuple(samples)
