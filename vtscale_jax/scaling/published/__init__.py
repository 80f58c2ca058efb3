"""The paper's own numbers: its scores, those of other models, its Tables 1, 5 and 6.

    published_scores().of("POPE/Overall", "vqq").score

`provenance.json` says where each file comes from, its units and what was changed from
the printed form.
"""

import csv
import io
import json
from importlib import resources
from typing import Any, NamedTuple

from vtscale_jax.scaling.reading import together
from vtscale_jax.scaling.scores import Scores
from vtscale_jax.scaling.tables import parse_table


class PublishedFit(NamedTuple):
    """A row of Table 1: S = c / N_l^α for one metric, inputs vqq."""

    metric: str
    c: float
    alpha: float


class MethodScore(NamedTuple):
    """A score of Table 5; `method` is VisPruner, VisionZip or Proposed, the paper's."""

    n_l: int
    method: str
    metric: str
    score: float


class FirstToken(NamedTuple):
    """A row of Table 6: seconds to the first token, per cent of the GPU, GiB."""

    n_l: int
    ttft_s: float
    gpu_util_pct: float
    gpu_peak_gib: float
    gpu_average_gib: float


def published_scores() -> Scores:
    """Appendix D: 3 kinds of inputs × 10 M × 26 metrics, read as anyone's table is."""
    name = "scores.csv"
    return together(
        [parse_table(_text(name), name)], f"the paper's Appendix D ({name})"
    )


def other_models() -> dict[str, dict[str, float]]:
    """Appendix D: score by model and metric; blanks of the paper are not there."""
    found: dict[str, dict[str, float]] = {}
    for row in _rows("models.csv"):
        found.setdefault(row["model"], {})[row["metric"]] = float(row["score"])
    return found


def table_1() -> tuple[PublishedFit, ...]:
    """The paper's fits of its scores with inputs vqq, as printed."""
    return tuple(
        PublishedFit(row["metric"], float(row["c"]), float(row["alpha"]))
        for row in _rows("table1.csv")
    )


def token_reduction() -> tuple[MethodScore, ...]:
    """Table 5: methods that drop vision tokens of LLaVA-1.5, beside the paper's."""
    return tuple(
        MethodScore(int(row["n_l"]), row["method"], row["metric"], float(row["score"]))
        for row in _rows("token_reduction.csv")
    )


def time_to_first_token() -> tuple[FirstToken, ...]:
    """Table 6, by falling M; the paper has no row for M = 384."""
    return tuple(
        FirstToken(int(row.pop("n_l")), **{k: float(v) for k, v in row.items()})
        for row in _rows("ttft.csv")
    )


def provenance() -> dict[str, Any]:
    """Source, units, rounding, changes and SHA-256 of every file."""
    return json.loads(_text("provenance.json"))


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(name), newline=""), strict=True))


def _text(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
