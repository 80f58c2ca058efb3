"""Scores from whatever they lie in, joined into one series by metric and inputs.

    read_scores([Path("scores.csv")])
    read_scores([Path("runs/sweep"), Path("outputs")], models={"mine": (8, "vqq")})

A path is a CSV (`tables`), a run folder or a folder of them (`run_folders`), or what
VLMEvalKit wrote (`vlmevalkit`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtscale_jax.scaling import run_folders, vlmevalkit
from vtscale_jax.scaling.scores import (
    UPPER,
    Excluded,
    Score,
    Scores,
    ScoresError,
    Series,
)
from vtscale_jax.scaling.tables import Rows, check_duplicates, read_table

ASKED_FOR = "asked for"
# Sums of shares may end a last bit above their scale.
_SLACK = 1e-9
_SHOWN = 5  # of many equal complaints


class _Scale(NamedTuple):
    """The largest score of a metric (None: not known), and what to know of it."""

    upper: float | None
    notes: tuple[str, ...] = ()


def read_scores(
    paths: Sequence[Path], *, models: Mapping[str, tuple[int, str]] | None = None
) -> Scores:
    """All scores under these paths.

    `models` says M and inputs of models of VLMEvalKit whose names do not. What is not
    fitted is among `excluded`, and what was left out or guessed is in `notes`.
    ScoresError names file, line and field of what cannot be read, both places of a
    duplicate or a contradiction, and the sources when nothing in them can be used.
    """
    if not paths:
        raise ScoresError("no path given, expected at least one CSV or folder")
    models = models or {}
    found, seen = [], set()
    for path in paths:
        if path.is_dir() and not run_folders.holds_runs(path):
            seen |= vlmevalkit.model_names(path)
        found.append(_read(path, models))
    unknown = sorted(set(models) - seen)
    if unknown:
        there = ", ".join(sorted(seen)) or "none"
        raise ScoresError(
            f"--model {unknown[0]}: no such model in {_named(paths)}, expected one of "
            f"those that VLMEvalKit evaluated there: {there}"
        )
    return together(found, _named(paths))


def together(sources: Sequence[Rows], name: str) -> Scores:
    """The series of all sources; `name` is what the whole is called."""
    scores = [score for source in sources for score in source.scores]
    excluded = [one for source in sources for one in source.excluded]
    notes = [note for source in sources for note in source.notes]
    check_duplicates([*scores, *excluded])
    if not scores:
        reasons = [f"{one.where}: {one.reason}" for one in excluded] + notes
        more = f"; and {len(reasons) - _SHOWN} more" * (len(reasons) > _SHOWN)
        raise ScoresError(
            f"{name} holds no score that can be used: "
            f"{'; '.join(reasons[:_SHOWN])}{more}"
        )
    by_metric: dict[str, list[Score]] = {}
    by_inputs: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
        by_inputs.setdefault(score.inputs, {}).setdefault(score.metric, []).append(
            score
        )
    scales = {metric: _scale(metric, rows) for metric, rows in by_metric.items()}
    notes += [note for scale in scales.values() for note in scale.notes]
    series = []
    for inputs, of_inputs in by_inputs.items():
        for metric in by_metric:
            if metric in of_inputs:
                one, said = _series(of_inputs[metric], scales[metric].upper)
                series.append(one)
                notes += said
        notes += _missing(inputs, of_inputs, excluded)
    return Scores(name, tuple(series), tuple(excluded), tuple(notes))


def without(scores: Scores, metric: str, m_values: Sequence[int]) -> Scores:
    """The scores less those of a metric at some M (as Fig. 11 leaves out 384 and 512
    of RealWorldQA), which become `excluded` with the reason "asked for".

    Every kind of inputs loses them. ScoresError when there is no such metric, or no
    score of it at such an M.
    """
    of_metric = [one for one in scores.series if one.metric == metric]
    if not of_metric:
        raise ScoresError(
            f"{scores.source} has no metric {metric!r}, expected one of "
            f"{', '.join(scores.metrics())}"
        )
    there = sorted({int(m) for one in of_metric for m in one.m})
    unknown = [m for m in m_values if m not in there]
    if unknown:
        raise ScoresError(
            f"{scores.source}: {metric} has no score at M = {unknown[0]} to leave out, "
            f"expected M of {', '.join(map(str, there))}"
        )
    series, excluded = [], list(scores.excluded)
    for one in scores.series:
        out = np.isin(one.m, m_values) & (one.metric == metric)
        excluded += [
            Excluded(one.inputs, metric, int(m), f"{s:.10g}", ASKED_FOR, scores.source)
            for m, s in zip(one.m[out], one.score[out], strict=True)
        ]
        if not out.all():
            series.append(_at(one, ~out))
    return scores._replace(series=tuple(series), excluded=tuple(excluded))


def _read(path: Path, models: Mapping[str, tuple[int, str]]) -> Rows:
    if not path.exists():
        raise ScoresError(f"{path} is not there, expected a CSV or a folder of results")
    if not path.is_dir():
        return read_table(path)
    if run_folders.holds_runs(path):
        return run_folders.read_runs(path)
    if vlmevalkit.model_names(path):
        return vlmevalkit.read_results(path, models)
    raise ScoresError(
        f"{path} holds no scores, expected a run folder (config.json), a folder of "
        "them, or the work folder of VLMEvalKit (<model>/<model>_<data>_acc.csv, "
        "_score.csv or _score.json)"
    )


def _scale(metric: str, rows: Sequence[Score]) -> _Scale:
    """The largest score there is: as said, as known, or as the scores look."""
    said = [row for row in rows if row.upper is not None]
    for row in said[1:]:
        if row.upper != said[0].upper:
            raise ScoresError(
                f"{row.where}: upper of {metric} is {row.upper:g}, but "
                f"{said[0].upper:g} at {said[0].where}; expected one scale for all "
                "scores of a metric"
            )
    if said:
        _check_range(metric, rows, said[0].upper, f"upper of {said[0].where}")
        return _Scale(said[0].upper)
    known = UPPER.get(metric, 100.0 if metric in vlmevalkit.METRICS else None)
    if known is not None:
        _check_range(metric, rows, known, "VLMEvalKit's scale")
        if 0 < max(row.score for row in rows) <= 1:
            return _Scale(
                known,
                (
                    f"{metric}: no score is above 1, while VLMEvalKit's scale goes to "
                    f"{known:g}; if these are shares, say 1 in a column upper",
                ),
            )
        return _Scale(known)
    values = [row.score for row in rows]
    counted = any(row.n_items is not None or row.items is not None for row in rows)
    if not counted or min(values) < 0 or max(values) > 100:
        return _Scale(None)
    upper = 1.0 if max(values) <= 1 else 100.0
    note = (
        f"{metric}: the largest score possible is taken to be {upper:g}, as no score "
        f"is above {max(values):g}; a column upper says it for certain"
    )
    return _Scale(upper, (note,))


def _check_range(
    metric: str, rows: Sequence[Score], upper: float | None, of: str
) -> None:
    assert upper is not None
    for row in rows:
        if not 0 <= row.score <= upper * (1 + _SLACK):
            raise ScoresError(
                f"{row.where}: score of {metric} is {row.score:g}, expected 0 to "
                f"{upper:g} ({of}); correct the score, or say the largest one possible "
                "in a column upper"
            )


def _series(
    rows: Sequence[Score], upper: float | None
) -> tuple[Series, tuple[str, ...]]:
    """One metric and kind of inputs by rising M, and what it lost."""
    rows = sorted(rows, key=lambda row: row.n_l)
    bare = Series(
        rows[0].inputs,
        rows[0].metric,
        np.array([row.n_l for row in rows], np.int64),
        np.array([row.score for row in rows], np.float64),
        upper,
    )
    notes = []
    for field in ("n_items", "stderr", "items"):
        lacking = [str(row.n_l) for row in rows if getattr(row, field) is None]
        if 0 < len(lacking) < len(rows):
            notes.append(
                f"{bare.name}: {field} is not used, as it is missing at M = "
                f"{', '.join(lacking)}"
            )
    exact = [str(row.n_l) for row in rows if row.stderr == 0]
    if exact:
        notes.append(
            f"{bare.name}: stderr is not used, as it is 0 at M = {', '.join(exact)}: "
            "no score is without error"
        )
        rows = [row._replace(stderr=None) for row in rows]
    n_items = [row.n_items for row in rows if row.n_items is not None]
    stderr = [row.stderr for row in rows if row.stderr is not None]
    items = [row.items for row in rows if row.items is not None]
    if len(items) == len(rows) and any(one.keys() != items[0].keys() for one in items):
        notes.append(
            f"{bare.name}: the scores of single questions are not used, as not all M "
            "were asked the same ones"
        )
        items = []
    complete = len(rows)
    return bare._replace(
        n_items=np.array(n_items, np.int64) if len(n_items) == complete else None,
        stderr=np.array(stderr, np.float64) if len(stderr) == complete else None,
        items=(
            np.array([[one[name] for name in items[0]] for one in items], np.float64)
            if len(items) == complete
            else None
        ),
        item_ids=tuple(items[0]) if len(items) == complete else None,
    ), tuple(notes)


def _missing(
    inputs: str, of_inputs: Mapping[str, Sequence[Score]], excluded: Sequence[Excluded]
) -> list[str]:
    """Notes of the M that a metric lacks and others of the same inputs have."""
    reported = {(one.metric, one.n_l) for one in excluded if one.inputs == inputs}
    every = {row.n_l for rows in of_inputs.values() for row in rows}
    lacking: dict[tuple[int, ...], list[str]] = {}
    for metric, rows in of_inputs.items():
        # An excluded score is said to be missing already.
        gone = every - {row.n_l for row in rows}
        gone = {m for m in gone if (metric, m) not in reported}
        if gone:
            lacking.setdefault(tuple(sorted(gone)), []).append(metric)
    kind = f" (inputs {inputs})" if inputs else ""
    return [
        f"{', '.join(metrics)}{kind}: no score at M = {', '.join(map(str, gone))}, "
        "where other metrics have one"
        for gone, metrics in lacking.items()
    ]


def _at(series: Series, keep: np.ndarray) -> Series:
    """The series at some of its M."""
    arrays = ("m", "score", "n_items", "stderr", "items")
    found = {name: getattr(series, name) for name in arrays}
    return series._replace(
        **{name: a[keep] for name, a in found.items() if a is not None}
    )


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
