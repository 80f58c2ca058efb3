"""One measurement as one JSON file: curves with their uncertainty, fits, manifest.

    result = read_result(Path("runs/divergence/smollm2-135m.json"))
    result.curve("D").mean, result.counts

Every figure and table is made from such files only.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

FORMAT = 1

# Curves over n = 1…N of one measurement. The first six are those of every pair
# (`curves.Curves`); the others are made from them pair by pair.
PAIR_CURVES = (
    *("D", "psi_equal", "psi_cross_aa", "psi_cross_bb", "psi_cross_ab"),
    "psi_delta",
)
CURVES = (*PAIR_CURVES, "psi_cross_symmetric", "psi_excess")
HISTOGRAMS = ("equal", "cross_aa", "cross_bb", "cross_ab")


class ResultError(ValueError):
    """A result file that cannot be read, or holds something else."""


class Band(NamedTuple):
    """A curve over n = 1…N: mean over pairs, their standard deviation, the 95 %
    bootstrap interval of the mean, and the least and largest value of any pair.

    NaN where it is not defined: cross measures at n = 1, n that no pair reaches.
    """

    mean: Float[np.ndarray, " N"]
    sd: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " N"]
    high: Float[np.ndarray, " N"]
    least: Float[np.ndarray, " N"]
    largest: Float[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Result:
    """A measurement.

    name:         of the model, as figures show it
    kind:         "text" (two answers to a question) or "vision" (two images)
    reduction:    "mean", "max" or "signed"
    layer:        "final" (after the last norm) or the number of a block, from 1
    counts:       pairs that are at least n long, for n = 1…N
    curves:       by the names of `CURVES`
    edges, histograms: bin edges of cosines in [−1, 1], and counts by `HISTOGRAMS`
    largest_norm: h of eq. 14, over all states
    fits:         what `theory` and `fits` made of it (see `summary.summarize`)
    null:         the same difference with A and B swapped at random positions, or None
    pairs:        where they came from, how many were used, what was left out
    manifest:     versions, hashes, dtypes, device
    """

    name: str
    kind: str
    reduction: str
    layer: str
    counts: Int[np.ndarray, " N"]
    curves: dict[str, Band]
    edges: Float[np.ndarray, " edges"]
    histograms: dict[str, Int[np.ndarray, " bins"]]
    largest_norm: float
    fits: dict[str, Any]
    null: dict[str, Any] | None
    pairs: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def num_positions(self) -> int:
        """N."""
        return len(self.counts)

    def curve(self, name: str) -> Band:
        """A curve by its name; KeyError lists those there are."""
        if name not in self.curves:
            raise KeyError(f"{name!r}: expected one of {sorted(self.curves)}")
        return self.curves[name]


def write_result(path: Path, result: Result) -> None:
    """Writes the file whole or not at all; equal results give equal bytes."""
    content = {
        "format": FORMAT,
        **{
            field.name: getattr(result, field.name)
            for field in dataclasses.fields(result)
        },
    }
    content["curves"] = {name: band._asdict() for name, band in result.curves.items()}
    text = _dump(content) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_result(path: Path) -> Result:
    """Reads a result file.

    Raises ResultError, naming file and field, when it is missing, malformed or of
    another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(
            f"{path} cannot be read ({error}); give the file that measure wrote"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ResultError(
            f"{path}: format is {found!r}, expected {FORMAT}: not a result of "
            "python -m vtscale_jax.divergence measure, or of another version of it"
        )
    fields = [field.name for field in dataclasses.fields(Result)]
    missing = [name for name in fields if name not in content]
    if missing:
        raise ResultError(f"{path}: lacks {', '.join(missing)}; measure anew")
    values = {name: content[name] for name in fields}
    values["counts"] = np.asarray(content["counts"], np.int64)
    size = len(values["counts"])
    values["edges"] = np.asarray(content["edges"], np.float64)
    values["histograms"] = {
        name: np.asarray(counts, np.int64)
        for name, counts in content["histograms"].items()
    }
    values["curves"] = {
        name: _band(path, name, band, size) for name, band in content["curves"].items()
    }
    lacking = [name for name in CURVES if name not in values["curves"]]
    if lacking:
        raise ResultError(f"{path}: curves lacks {', '.join(lacking)}; measure anew")
    return Result(**values)


def _band(path: Path, name: str, content: Any, size: int) -> Band:
    if not isinstance(content, dict) or set(content) != set(Band._fields):
        raise ResultError(
            f"{path}: curves.{name} is not made of {', '.join(Band._fields)}; measure "
            "anew"
        )
    arrays = {field: np.array(content[field], np.float64) for field in Band._fields}
    for field, array in arrays.items():
        if array.shape != (size,):
            raise ResultError(
                f"{path}: curves.{name}.{field} has shape {array.shape}, expected "
                f"({size},) as counts; measure anew"
            )
    return Band(**arrays)


def plain(value: Any) -> Any:
    """A value for JSON: arrays as lists, floats of 9 digits, NaN and infinities as
    None (JSON has none)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def _dump(content: dict[str, Any]) -> str:
    """JSON with one line for each list of numbers: readable, and small to diff."""
    return _lines(plain(content), "")


def _lines(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    items = [
        f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_lines(item, deeper)}"
        for key, item in value.items()
    ]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
