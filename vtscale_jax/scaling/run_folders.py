"""Scores of our own runs: finished run folders, and evaluations of them.

    runs/m8-vqq/   config.json manifest.json        a run
                   evaluation.json samples.jsonl
    runs/m8-vq/    evaluated.json                   a run evaluated once more, by
                   evaluation.json samples.jsonl    python -m vtscale_jax.eval heldout

A metric is a family of questions, its score the per cent of them that were answered
right. What the run was trained with and evaluated with make the kind of inputs:

    trained with  evaluated with   inputs
    vqq           vqq              vqq
    vqq           vq               vq      the same checkpoint without the question
    vq            vq               vq_ft   adapted without the question
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.scaling.scores import Score, ScoresError
from vtscale_jax.scaling.tables import Rows

CONFIG, MANIFEST = "config.json", "manifest.json"
EVALUATED, EVALUATION = "evaluated.json", "evaluation.json"
SAMPLES = "samples.jsonl"
INPUTS = ("vqq", "vq")  # of config.inputs
# By what the run was trained with and what it was evaluated with.
KINDS = {("vqq", "vqq"): "vqq", ("vqq", "vq"): "vq", ("vq", "vq"): "vq_ft"}
ORDER = ("vqq", "vq_ft", "vq")  # the paper's
PER_CENT = 100.0
_MOST = 2**53  # floats hold no whole numbers beyond it
# What a sweep keeps beside its runs.
SWEEP = "sweep.json"
SWEEP_FOLDERS = ("cache", "divergence", "figures", "logs")


class _Setting(NamedTuple):
    """What a folder of scores is of; `preset` is None where it does not say."""

    num_queries: int
    inputs: str
    preset: str | None


def holds_runs(path: Path) -> bool:
    """Whether the folder is a run, an evaluation of one, or holds such folders."""
    return _is_run(path) or any(_is_run(folder) for folder in _subfolders(path))


def read_runs(path: Path) -> Rows:
    """The scores of a run folder, or of all run folders in a folder.

    Runs that are not finished, and subfolders that are no runs, are named in `notes`.
    ScoresError names file and field (or line) of what is malformed or does not agree,
    runs that can have no scores, and both folders when two are of the same M and
    inputs.
    """
    folders = [path] if _is_run(path) else _subfolders(path)
    scores: list[Score] = []
    notes: list[str] = []
    first: dict[tuple[int, str], Path] = {}
    presets: dict[str, Path] = {}
    own = SWEEP_FOLDERS if (path / SWEEP).is_file() else ()
    others = [f.name for f in folders if not _is_run(f) and f.name not in own]
    if others:
        notes.append(f"{path}: not read, as they are no runs: {', '.join(others)}")
    for folder in folders:
        if not _is_run(folder):
            continue
        if not _is_finished(folder):
            notes.append(f"{folder}: not read, as the run is not finished")
            continue
        setting = _setting(folder)
        key = (setting.num_queries, setting.inputs)
        if key in first:
            raise ScoresError(
                f"{folder} and {first[key]} are both of M = {key[0]}, inputs {key[1]}; "
                "expected one folder for each: move one of them away"
            )
        first[key] = folder
        if setting.preset is not None:
            presets.setdefault(setting.preset, folder)
        scores += _scores(folder, setting)
        notes += _truncation(folder, setting.num_queries)
    if len(presets) > 1:
        named = ", ".join(f"{preset} ({of})" for preset, of in presets.items())
        notes.append(f"{path}: the runs are of different presets: {named}")
    scores.sort(key=lambda one: ORDER.index(one.inputs))
    return Rows(tuple(scores), notes=tuple(notes))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, EVALUATED))


def _subfolders(path: Path) -> list[Path]:
    return sorted(
        one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")
    )


def _is_finished(folder: Path) -> bool:
    if (folder / EVALUATED).is_file():
        # Its last file is `evaluation.json`, unless it says more itself.
        there = (folder / EVALUATION).is_file()
        return _table(folder / EVALUATED).get("finished", there) is True
    manifest = folder / MANIFEST
    return manifest.is_file() and _table(manifest).get("finished") is True


def _setting(folder: Path) -> _Setting:
    if (folder / EVALUATED).is_file():
        file = folder / EVALUATED
        about = _table(file)
        trained = _field(file, about, "trained_inputs")
        preset = None
    else:
        file = folder / CONFIG
        about = _table(file)
        trained = _field(file, about, "inputs")
        preset = _field(file, about, "preset")
        _check_answers(folder, about)
    num_queries = _count(file, about, "num_queries", least=1)
    evaluated = _field(file, about, "inputs")
    for name in (trained, evaluated):
        if name not in INPUTS:
            raise ScoresError(
                f"{file}: inputs are {name!r}, expected one of {', '.join(INPUTS)}"
            )
    if (trained, evaluated) not in KINDS:
        raise ScoresError(
            f"{file}: trained with {trained} and evaluated with {evaluated}, which is "
            "none of the paper's settings; expected vqq and vqq, vqq and vq, or vq and "
            "vq. Evaluate it with --inputs vq"
        )
    return _Setting(num_queries, KINDS[trained, evaluated], preset)


def _check_answers(folder: Path, config: Mapping[str, Any]) -> None:
    """ScoresError, saying why, when a finished run has no evaluation."""
    if (folder / EVALUATION).is_file():
        return
    data = config.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    if config.get("stage") == "align":
        why = "stage align trains no language model that could answer"
    elif name != "digit_pages":
        why = f"its data are {name}, and only digit_pages have questions with scores"
    else:
        why = "it was trained with eval.questions 0, or the file was removed"
    raise ScoresError(f"{folder} has no {EVALUATION}: {why}; leave this run out")


def _truncation(folder: Path, m: int) -> list[str]:
    """A note when a run was evaluated with fewer queries than it has learnt, as far as
    the run is still where it was."""
    if not (folder / EVALUATED).is_file():
        return []
    run = Path(_field(folder / EVALUATED, _table(folder / EVALUATED), "run"))
    if not (run / CONFIG).is_file():
        return []
    learnt = _count(run / CONFIG, _table(run / CONFIG), "num_queries", least=1)
    if learnt == m:
        return []
    return [
        f"{folder}: M = {m} are the first of the {learnt} queries of {run}, which was "
        f"not trained for M = {m}"
    ]


def _scores(folder: Path, setting: _Setting) -> Iterator[Score]:
    file = folder / EVALUATION
    content = _table(file)
    m = _count(file, content, "num_queries", least=1)
    if m != setting.num_queries:
        raise ScoresError(
            f"{file}: num_queries is {m}, expected {setting.num_queries} as the folder "
            "says; evaluate the run anew"
        )
    families = _field(file, content, "families", dict)
    if not families:
        raise ScoresError(f"{file}: families is empty, expected at least one")
    right = _right_by_id(folder / SAMPLES)
    unknown = sorted(set(right) - set(families))
    if unknown:
        raise ScoresError(
            f"{folder / SAMPLES}: has questions of family {unknown[0]!r}, which {file} "
            "lacks; evaluate the run anew"
        )
    for family in families:
        row = _field(file, families, family, dict, prefix="families.")
        prefix = f"families.{family}."
        n = _count(file, row, "n", least=1, prefix=prefix)
        correct = _count(file, row, "correct", least=0, prefix=prefix)
        items = right.get(family, {})
        if (n, correct) != (len(items), sum(items.values())):
            raise ScoresError(
                f"{file}: {family} has {correct} right of {n}, but "
                f"{sum(items.values())} of {len(items)} in {SAMPLES}; expected the "
                "same, so evaluate the run anew"
            )
        yield Score(
            setting.inputs,
            family,
            setting.num_queries,
            PER_CENT * correct / n,
            f"{file}, families.{family}",
            upper=PER_CENT,
            n_items=n,
            items={name: float(ok) for name, ok in items.items()},
        )


def _right_by_id(file: Path) -> dict[str, dict[str, bool]]:
    """Whether each question was answered right, by family and id."""
    found: dict[str, dict[str, bool]] = {}
    # Not splitlines, which would also part lines at characters inside of texts.
    for line, text in enumerate(_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{file}, line {line}"
        row = _parsed(text, where)
        family, name = _field(where, row, "family"), _field(where, row, "id")
        correct = _field(where, row, "correct", bool)
        if name in found.setdefault(family, {}):
            raise ScoresError(f"{where}: id {name!r} again, expected it once")
        found[family][name] = correct
    return found


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoresError(
            f"{file} cannot be read ({error}), expected a file that the evaluation "
            "wrote; restore it, or evaluate the run anew"
        ) from error


def _table(file: Path) -> dict[str, Any]:
    return _parsed(_text(file), str(file))


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScoresError(
            f"{where}: not JSON ({error}); restore it, or evaluate the run anew"
        ) from error
    if not isinstance(content, dict):
        raise ScoresError(f"{where}: expected a table of fields, {{…}}")
    return content


def _field(
    where: Path | str,
    content: Mapping[str, Any],
    name: str,
    kind: type = str,
    *,
    prefix: str = "",
) -> Any:
    if name not in content:
        raise ScoresError(f"{where}: lacks the field {prefix}{name}")
    value = content[name]
    if type(value) is not kind:
        words = {str: "text", bool: "true or false", dict: "a table of fields"}
        raise ScoresError(
            f"{where}: {prefix}{name} is {_shown(value)}, expected {words[kind]}"
        )
    return value


def _count(
    where: Path, content: Mapping[str, Any], name: str, *, least: int, prefix: str = ""
) -> int:
    if name not in content:
        raise ScoresError(f"{where}: lacks the field {prefix}{name}")
    value = content[name]
    if type(value) is not int or not least <= value < _MOST:
        raise ScoresError(
            f"{where}: {prefix}{name} is {_shown(value)}, expected a whole number, "
            f"{least} or more"
        )
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
