"""Scores that VLMEvalKit wrote, with the names and scales of the paper's Appendix D.

    outputs/vtscale-m8-vq_ft/vtscale-m8-vq_ft_POPE_score.csv
    <work folder>/<model>/<model>_<data>_{acc.csv,score.csv,score.json}

Newer versions put the files of one launch into a folder T… below <model>. VLMEvalKit
writes multiple choice as shares, which are per cent here; MME/Overall is perception +
reasoning, HallusionBench/Overall the mean of its three.

A model's name says M as m8, nl8 or q8, and may say vqq, vq or vq_ft, each apart from
other letters and digits (vtscale-m8-vq_ft, LLaVA_nl256). Where the name in the files
does not say M, that of the model's folder may; `models` says M and inputs where neither
does.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.scaling.scores import Excluded, Score, ScoresError
from vtscale_jax.scaling.tables import NO_SCORE, Rows, number, sorted_out

CHOICES = (  # multiple choice
    *("AI2D_TEST", "RealWorldQA", "MMStar", "SEEDBench_IMG", "SEEDBench2"),
    *("SEEDBench2_Plus", "ScienceQA_TEST"),
)
WORDS = ("OCRVQA_TESTCORE", "ChartQA_TEST", "TextVQA_VAL")  # short free answers
# The file that has the scores of each data set, in the order of Appendix D.
FILES = {
    "POPE": "score.csv",
    "MME": "score.csv",
    "HallusionBench": "score.csv",
    "COCO_VAL": "score.json",
    "OCRBench": "score.json",
    **dict.fromkeys((*CHOICES, *WORDS), "acc.csv"),
}
# The paper's 26, in the order of its Appendix D.
METRICS = (
    *("POPE/Overall", "POPE/acc", "POPE/precision", "POPE/recall"),
    *("MME/Overall", "MME/Perception", "MME/Cognition"),
    *("HallusionBench/aAcc", "HallusionBench/fAcc", "HallusionBench/qAcc"),
    *("HallusionBench/Overall", "COCO_VAL/BLEU-1", "COCO_VAL/BLEU-4"),
    *("COCO_VAL/ROUGE-L", "COCO_VAL/CIDEr", "OCRBench/Final Score"),
    *(f"{name}/Overall" for name in (*CHOICES, *WORDS)),
)
_ENDS = "|".join({re.escape(end) for end in FILES.values()})
_SCORES = re.compile(rf"(?P<stem>.+)_(?P<end>{_ENDS})")
_TOKENS = re.compile(r"(?<![a-z0-9])(?:m|nl|q)(\d+)(?![a-z0-9])", re.IGNORECASE)
_INPUTS = re.compile(r"(?<![a-z0-9])(vqq|vq[-_]?ft|vq)(?![a-z0-9])", re.IGNORECASE)


class _Found(NamedTuple):
    """A file of scores: of which model and data set."""

    model: str
    data: str
    file: Path


def model_names(path: Path) -> set[str]:
    """The models of which VLMEvalKit's scores lie in a work folder or that of a model;
    empty when it is neither."""
    return {found.model for found in _files(path)[0]}


def read_results(
    path: Path, models: Mapping[str, tuple[int, str]] | None = None
) -> Rows:
    """The scores in VLMEvalKit's work folder, or in that of one model.

    `models` says (M, inputs) by name and goes before what the name says. Scores of
    other data sets than the paper's are named in `notes`. ScoresError names a model
    whose M is not known, both files when two have the same scores, and file and field
    of what is not as VLMEvalKit writes it.
    """
    found, others = _files(path)
    notes = []
    if others:
        names = ", ".join(str(file.relative_to(path)) for file in others)
        notes.append(
            f"{path}: not read, as they are of none of the paper's benchmarks: {names}"
        )
    first: dict[tuple[str, str], Path] = {}
    for one in found:
        key = (one.model, one.data)
        if key in first:
            raise ScoresError(
                f"{one.file} and {first[key]} both have the scores of {one.model} on "
                f"{one.data}, expected one file; move the other away"
            )
        first[key] = one.file
    settings: dict[tuple[int, str], str] = {}
    rows: list[Score | Excluded] = []
    for model in dict.fromkeys(one.model for one in found):
        setting = _setting(model, path, models or {})
        if setting in settings:
            raise ScoresError(
                f"{path}: models {settings[setting]} and {model} are both of M = "
                f"{setting[0]}, inputs {setting[1] or 'not said'}; expected one model "
                f"for each: {_option(model)}, or move one away"
            )
        settings[setting] = model
        for data in FILES:
            if (model, data) in first:
                rows += _rows(first[model, data], data, setting)
    return sorted_out(rows, notes)


def _files(path: Path) -> tuple[list[_Found], list[Path]]:
    """Files of scores of the paper's data sets, and those of others."""
    found: list[_Found] = []
    others: list[Path] = []
    seen: set[Path] = set()
    for folder in (path, *_subfolders(path)):
        launches = [one for one in _subfolders(folder) if _is_launch(one)]
        for place in (folder, *launches):
            for file in sorted(one for one in place.iterdir() if one.is_file()):
                match = _SCORES.fullmatch(file.name)
                # Newer versions link the files of the last launch from above.
                if match is None or file.resolve() in seen:
                    continue
                seen.add(file.resolve())
                one = _named(match["stem"], match["end"], file, folder.name)
                if one is None:
                    others.append(file)
                else:
                    found.append(one)
    return found, others


def _named(stem: str, end: str, file: Path, folder: str) -> _Found | None:
    """The file's model and data set; None when it is of no benchmark of the paper."""
    for data, expected in FILES.items():
        if not stem.endswith(f"_{data}") or expected != end:
            continue
        model = stem.removesuffix(f"_{data}")
        said, of_folder = (set(_TOKENS.findall(name)) for name in (model, folder))
        if said and of_folder and said != of_folder:
            raise ScoresError(
                f"{file}: M is {', '.join(sorted(said))} by the name of the file, and "
                f"{', '.join(sorted(of_folder))} by that of its folder {folder}; "
                "expected one M: rename the folder"
            )
        return _Found(folder if of_folder and not said else model, data, file)
    return None


def _subfolders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir())


def _is_launch(folder: Path) -> bool:
    """T20260818_G0123abc: newer versions make one at each launch."""
    return re.fullmatch(r"T\d{8}[-_].*", folder.name) is not None


def _setting(
    model: str, path: Path, models: Mapping[str, tuple[int, str]]
) -> tuple[int, str]:
    """M and inputs of a model, as said or as its name says."""
    if model in models:
        return models[model]
    tokens = set(map(int, _TOKENS.findall(model)))
    inputs = {_kind(name) for name in _INPUTS.findall(model)}
    for what, values in (("M", tokens), ("inputs", inputs)):
        if len(values) > 1:
            raise ScoresError(
                f"{path}: the name of model {model} says more than one {what} "
                f"({', '.join(map(str, sorted(values)))}); {_option(model)}"
            )
    if not tokens or 0 in tokens:
        raise ScoresError(
            f"{path}: the name of model {model} does not say its number of vision "
            "tokens, expected m8, nl8 or q8 as a word of it; "
            f"{_option(model)}"
        )
    return tokens.pop(), inputs.pop() if inputs else ""


def _kind(word: str) -> str:
    kind = word.lower()
    return "vq_ft" if kind.endswith("ft") else kind


def _option(model: str) -> str:
    return f"say it by --model {model}=M or --model {model}=M,inputs"


def _rows(
    file: Path, data: str, setting: tuple[int, str]
) -> Iterator[Score | Excluded]:
    m, inputs = setting
    for metric, value in _values(file, data).items():
        name = f"{data}/{metric}"
        where = f"{file}, {metric}"
        if isinstance(value, str):
            yield Excluded(inputs, name, m, "", value, where)
        elif not math.isfinite(value):
            reason = f"{NO_SCORE}: VLMEvalKit wrote {value}"
            yield Excluded(inputs, name, m, str(value), reason, where)
        else:
            yield Score(inputs, name, m, value, where)


def _values(file: Path, data: str) -> dict[str, float | str]:
    """Score by metric, or why there is none."""
    if data == "COCO_VAL":
        return _captions(file)
    if data == "OCRBench":
        return {"Final Score": _of_json(file, _table(file), "Final Score")}
    rows = _csv(file)
    if data == "POPE":
        row = _overall(file, rows)
        names = ("Overall", "acc", "precision", "recall")
        return {name: _cell(file, row, name) for name in names}
    if data == "HallusionBench":
        row = _overall(file, rows)
        parts = {name: _cell(file, row, name) for name in ("aAcc", "fAcc", "qAcc")}
        return {**parts, "Overall": sum(parts.values()) / len(parts)}
    if len(rows) > 1:
        splits = ", ".join(row.get("split", "?") for row in rows)
        return {
            "Overall": f"{NO_SCORE}: {len(rows)} rows ({splits}) and none for all data"
        }
    if data == "MME":
        perception = _cell(file, rows[0], "perception")
        cognition = _cell(file, rows[0], "reasoning")
        total = perception + cognition
        return {"Overall": total, "Perception": perception, "Cognition": cognition}
    overall = _cell(file, rows[0], "Overall")
    if data not in CHOICES:
        return {"Overall": overall}
    if overall > 1:
        raise ScoresError(
            f"{file}: Overall is {overall:g}, expected a share from 0 to 1 as "
            "VLMEvalKit writes for multiple choice; give per cent in a CSV of its own"
        )
    return {"Overall": 100 * overall}


def _captions(file: Path) -> dict[str, float | str]:
    content = _table(file)
    bleu = content.get("Bleu")
    if not isinstance(bleu, list) or len(bleu) != 4:
        raise ScoresError(f"{file}: Bleu is {_shown(bleu)}, expected a list of 4")
    by_order = dict(enumerate(bleu, start=1))
    return {
        "BLEU-1": _of_json(file, by_order, 1),
        "BLEU-4": _of_json(file, by_order, 4),
        "ROUGE-L": _of_json(file, content, "ROUGE_L"),
        "CIDEr": _of_json(file, content, "CIDEr"),
    }


def _of_json(file: Path, content: Mapping[Any, Any], name: str | int) -> float:
    value = content.get(name)
    # Whole numbers have no end in JSON, floats have.
    if isinstance(value, float) or (type(value) is int and abs(value) < 2**63):
        return float(value)
    field = name if isinstance(name, str) else f"Bleu[{name - 1}]"
    raise ScoresError(f"{file}: {field} is {_shown(value)}, expected a number")


def _table(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ScoresError(
            f"{file}: not JSON ({error}); evaluate this data set anew"
        ) from error
    if not isinstance(content, dict):
        raise ScoresError(f"{file}: expected a table of fields, {{…}}")
    return content


def _csv(file: Path) -> list[dict[str, str]]:
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        cells = [row for row in lines if row]
    except csv.Error as error:
        raise ScoresError(
            f"{file}, line {lines.line_num}: not CSV ({error}); evaluate this data set "
            "anew"
        ) from error
    if len(cells) < 2:
        raise ScoresError(f"{file}: has no scores; evaluate this data set anew")
    for place, row in enumerate(cells[1:], start=2):
        if len(row) != len(cells[0]):
            raise ScoresError(
                f"{file}, line {place}: has {len(row)} cells, expected "
                f"{len(cells[0])}; evaluate this data set anew"
            )
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def _overall(file: Path, rows: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    found = [row for row in rows if row.get("split") == "Overall"]
    if len(found) != 1:
        splits = ", ".join(repr(row.get("split")) for row in rows)
        raise ScoresError(
            f"{file}: has {len(found)} rows with split Overall, expected one; there "
            f"are {splits}"
        )
    return found[0]


def _cell(file: Path, row: Mapping[str, str], name: str) -> float:
    """The number of a cell; NaN for an empty one, which pandas writes for NaN."""
    if name not in row:
        columns = ", ".join(row)
        raise ScoresError(f"{file}: has columns {columns}, expected {name!r} too")
    value = number(row[name]) if row[name] else math.nan
    if value is None:
        raise ScoresError(f"{file}: {name} is {_shown(row[name])}, expected a number")
    return value


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoresError(
            f"{file} cannot be read ({error}); evaluate this data set anew"
        ) from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
