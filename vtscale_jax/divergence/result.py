"""One measurement as one JSON file: curves with their uncertainty, fits, manifest.

    result = read_result(Path("runs/divergence/smollm2-135m.json"))
    result.curve("D").mean, result.counts

Every figure and table is made from such files only.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtscale_jax.run_folder import write_whole

FORMAT = 1

# Fewer pairs than this say little of their mean: its standard error is itself known to
# a quarter at best. Fits and tests leave such n out, and figures draw them lighter.
LEAST_COUNT = 10
# Of every interval and test: what is usual, and what 1,000 replicates tell well, since
# 25 of them lie beyond either end.
CONFIDENCE = 0.95

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
    write_whole(path, text.encode())


def read_result(path: Path) -> Result:
    """Reads a result file.

    Raises ResultError, naming file and field, when it is missing, malformed or of
    another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    _check_fields(path, content)
    values["counts"] = _whole(path, "counts", content["counts"])
    values["edges"] = _edges(path, content["edges"])
    histograms = _named(path, "histograms", content["histograms"], HISTOGRAMS)
    values["histograms"] = {
        name: _whole(path, f"histograms.{name}", counts)
        for name, counts in histograms.items()
    }
    bins = len(values["edges"]) - 1
    for name, counts in values["histograms"].items():
        if len(counts) != bins:
            raise ResultError(
                f"{path}: histograms.{name} has {len(counts)} bins, expected {bins}, "
                "one between two edges; measure anew"
            )
    size = len(values["counts"])
    curves = _named(path, "curves", content["curves"], CURVES)
    values["curves"] = {
        name: _band(path, name, band, size) for name, band in curves.items()
    }
    return Result(**values)


def _check_fields(path: Path, content: dict[str, Any]) -> None:
    """The fields that are taken as they are."""
    for names, kinds, words in (
        (("name", "kind", "reduction", "layer"), str, "text"),
        (("fits", "pairs", "manifest"), dict, "a table of fields"),
        (("null",), dict | None, "a table of fields or null"),
    ):
        for name in names:
            if not isinstance(content[name], kinds):
                raise _wrong(path, name, content[name], words)
    norm = content["largest_norm"]
    if type(norm) not in (int, float) or not 0 <= norm < math.inf:
        raise _wrong(path, "largest_norm", norm, "a number, 0 or more")


def _wrong(path: Path, field: str, found: Any, expected: str) -> ResultError:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return ResultError(f"{path}: {field} is {shown}, expected {expected}; measure anew")


def _named(
    path: Path, field: str, content: Any, names: Sequence[str]
) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _wrong(path, field, content, f"a table of {', '.join(names)}")
    lacking = [name for name in names if name not in content]
    if lacking:
        raise ResultError(f"{path}: {field} lacks {', '.join(lacking)}; measure anew")
    return content


def _whole(path: Path, field: str, content: Any) -> Int[np.ndarray, " K"]:
    """Numbers of things: a list of whole numbers, none below 0."""
    if not isinstance(content, list):
        raise _wrong(path, field, content, "a list of whole numbers")
    for place, value in enumerate(content):
        if type(value) is not int or not 0 <= value < 2**63:
            raise _wrong(path, f"{field}[{place}]", value, "a whole number, 0 or more")
    return np.array(content, np.int64)


def _floats(path: Path, field: str, content: Any) -> Float[np.ndarray, " K"]:
    """A list of numbers, with null where there is none."""
    if not isinstance(content, list):
        raise _wrong(path, field, content, "a list of numbers")
    for place, value in enumerate(content):
        # Whole numbers have no end in JSON, floats have.
        sized = type(value) is float or (type(value) is int and abs(value) < 2**63)
        if value is not None and not sized:
            raise _wrong(path, f"{field}[{place}]", value, "a number or null")
    return np.array(content, np.float64)


def _edges(path: Path, content: Any) -> Float[np.ndarray, " edges"]:
    edges = _floats(path, "edges", content)
    # NaN is not above anything.
    if len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise _wrong(path, "edges", content, "two or more numbers that rise")
    return edges


def _band(path: Path, name: str, content: Any, size: int) -> Band:
    if not isinstance(content, dict) or set(content) != set(Band._fields):
        raise ResultError(
            f"{path}: curves.{name} is not made of {', '.join(Band._fields)}; measure "
            "anew"
        )
    arrays = {
        field: _floats(path, f"curves.{name}.{field}", content[field])
        for field in Band._fields
    }
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
