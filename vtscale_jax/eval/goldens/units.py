"""Single functions of VLMEvalKit on prepared inputs, beside those of this package.

A file of DIR/units is a list of vectors: inputs, and what came out at the paper's
commit; where the newest commit differs, its vector stands under `newest`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vtscale_jax.eval.benchmarks.rereading import as_reread
from vtscale_jax.eval.benchmarks.tasks import Version
from vtscale_jax.eval.goldens.checks import Check, compared
from vtscale_jax.eval.scoring.multiple_choice import infer, named_letter, named_text
from vtscale_jax.eval.scoring.open_answers import normal
from vtscale_jax.eval.scoring.punctuation import without_punctuation
from vtscale_jax.eval.scoring.score import score
from vtscale_jax.eval.scoring.yes_no import yes_or_no

Vector = dict[str, Any]
_LONGEST_CELL = 32767


def _choice(vector: Vector, version: Version) -> Vector:
    said, choices = vector["answer"], vector["choices"]
    functions = {"option": named_letter, "text": named_text, "infer": infer}
    # Where nothing was read VLMEvalKit says False.
    return {
        "result": {
            name: function(said, choices, version) or False
            for name, function in functions.items()
        }
    }


def _yes_no(vector: Vector, version: Version) -> Vector:
    said = vector["output"]
    return {
        "punct": without_punctuation(said.lower(), version),
        "result": yes_or_no(said, version),
    }


def _normal(vector: Vector, version: Version) -> Vector:
    return {"result": normal(vector["input"], version)}


def _open(task: str) -> Callable[[Vector, Version], Vector]:
    def answered(vector: Vector, version: Version) -> Vector:
        rows = pd.DataFrame({"index": [0], "answer": [vector["answer"]]})
        item = score(task, rows, [vector["prediction"]], version).items[0]
        fields = {name: item.detail[name] for name in ("gt", "pred", "match")}
        return {**fields, "hit": item.score}

    return answered


def _captions(vector: Vector, version: Version) -> Vector:
    pairs = vector["refs_and_pred"]
    rows = pd.DataFrame(
        {"index": range(len(pairs)), "answer": [repr(refs) for refs, _ in pairs]}
    )
    scored = score("COCO_VAL", rows, [said for _, said in pairs], version)
    details = [item.detail for item in scored.items]
    images = {
        "Bleu": [list(n) for n in zip(*(one["Bleu"] for one in details), strict=True)],
        "ROUGE_L": [one["ROUGE_L"] for one in details],
        "CIDEr": [item.score for item in scored.items],
    }
    assert isinstance(scored.scores, dict)
    return {**scored.scores, "per_image": images}


# What is computed of a vector; only these fields of it are compared.
UNITS: Mapping[str, Callable[[Vector, Version], Vector]] = {
    "mcq": _choice,
    "yorn": _yes_no,
    "process_answer": _normal,
    "chartqa_relaxed": _open("ChartQA_TEST"),
    "textvqa_vqa_score": _open("TextVQA_VAL"),
    "ocrvqa_accuracy": _open("OCRVQA_TESTCORE"),
    "caption": _captions,
}
ROUNDTRIP = "xlsx_roundtrip"


def unit_checks(folder: Path) -> Iterator[Check]:
    """A check for each file of the folder and version; one that fails for a file of
    which nothing is known here."""
    for file in sorted(folder.glob("*.json")):
        vectors = json.loads(file.read_text(encoding="utf-8"))
        if file.stem == ROUNDTRIP:
            yield _roundtrip(vectors)
        elif file.stem not in UNITS:
            known = ", ".join((*UNITS, ROUNDTRIP))
            yield Check(f"units {file.stem}", False, f"unknown; known are {known}")
        else:
            versions: tuple[Version, ...] = ("paper", "current")
            yield from (_vectors(file.stem, vectors, one) for one in versions)


def _vectors(unit: str, vectors: list[Vector], version: Version) -> Check:
    found, expected = [], []
    for vector in vectors:
        of = vector.get("newest", vector) if version == "current" else vector
        made = UNITS[unit](vector, version)
        found.append(made)
        expected.append({field: of[field] for field in made})
    return compared(f"units {unit}, {version}", found, expected)


def _roundtrip(columns: list[list[Vector]]) -> Check:
    """Columns of predictions, each written to a workbook and read back."""
    found = [as_reread([_long(one["raw"]) for one in c], "paper") for c in columns]
    loaded = [[_long(one["loaded"]) for one in column] for column in columns]
    return compared(f"units {ROUNDTRIP}, paper", found, loaded)


def _long(text: str) -> str:
    # The cell that is as long as Excel allows is written short.
    return "x" * _LONGEST_CELL if text == f"x*{_LONGEST_CELL}" else text
