"""Every verdict and score that VLMEvalKit itself gave, at both commits.

`tests/golden/eval/<task>` has a made-up table, the workbook of predictions and what the
unmodified package made of them; `tests/golden/eval_units` single functions' results.
"""

import copy
import json
import math

import pandas as pd
import pytest

from vtscale_jax.eval.scoring.captions import score_captions
from vtscale_jax.eval.scoring.multiple_choice import infer, named_letter, named_text
from vtscale_jax.eval.scoring.open_answers import normal
from vtscale_jax.eval.scoring.open_scores import (
    score_chartqa,
    score_ocrvqa,
    score_textvqa,
)
from vtscale_jax.eval.scoring.punctuation import without_punctuation
from vtscale_jax.eval.scoring.score import SCORERS, score
from vtscale_jax.eval.scoring.yes_no import yes_or_no

VERSIONS = ("paper", "current")
UNITS = {  # file: how many vectors, how many of which differ at the newest commit
    "mcq": (61, 3),
    "yorn": (38, 1),
    "process_answer": (37, 3),
    "chartqa_relaxed": (36, 3),
    "textvqa_vqa_score": (27, 0),
    "ocrvqa_accuracy": (8, 0),
    "caption": (3, 0),
}


def close(found, expected):
    """Whether two trees have the same names in the same order and equal numbers."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(
            close(found[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, str | None):
        return found == expected
    return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-12)


def table(golden_dir, task):
    """The benchmark's rows that were asked, and the predictions as they were read."""
    folder = golden_dir / "eval" / task
    book = pd.read_excel(folder / f"fake_public_{task}.xlsx")
    file = folder / f"{task}.tsv"
    rows = pd.read_csv(file, sep="\t", usecols=lambda name: name != "image")
    said = {i: str(p) for i, p in zip(book["index"], book["prediction"], strict=True)}
    rows = rows[rows["index"].isin(list(said))]
    return rows, [said[index] for index in rows["index"]], book


def scores_at(golden_dir, task, version):
    folder = golden_dir / "eval" / task
    if version == "paper":
        return json.loads((folder / "scores.json").read_text())
    return json.loads((folder / "README.json").read_text())["scores_at_newest_commit"][
        "scores"
    ]


def units(golden_dir, name, version):
    """Inputs and results of one file's vectors at a commit."""
    vectors = json.loads((golden_dir / "eval_units" / f"{name}.json").read_text())
    newest = [vector.get("newest", vector) for vector in vectors]
    assert (len(vectors), sum("newest" in v for v in vectors)) == UNITS[name]
    return newest if version == "current" else vectors


def test_every_benchmark_has_a_golden(golden_dir):
    folders = {path.name for path in (golden_dir / "eval").iterdir()}
    assert len(SCORERS) == 15 and set(SCORERS) <= folders


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("task", SCORERS)
def test_scores(golden_dir, task, version):
    rows, predictions, book = table(golden_dir, task)
    expected = scores_at(golden_dir, task, version)
    scored = score(task, rows, predictions, version)
    assert close(scored.scores, expected), (scored.scores, expected)
    # The workbook's own table, which VLMEvalKit scores, gives the same.
    again = score(task, book, list(map(str, book["prediction"])), version)
    assert close(again.scores, expected)
    assert (
        scored.version
        == {
            "paper": "paper: VLMEvalKit 0ff0c3e",
            "current": "current: VLMEvalKit e8e78f05",
        }[version]
    )
    json.dumps([scored.scores, scored.intervals, scored.items, scored.failures])


@pytest.mark.parametrize(
    "task", [t for t, s in SCORERS.items() if s.__name__ == "score_multiple_choice"]
)
def test_versions_differ_where_vlmevalkit_does(golden_dir, task):
    rows, predictions, _ = table(golden_dir, task)
    for one, other in (("paper", "current"), ("current", "paper")):
        found = score(task, rows, predictions, one).scores
        assert not close(found, scores_at(golden_dir, task, other))


@pytest.mark.parametrize("task", SCORERS)
def test_scores_see_every_prediction_changed(golden_dir, task):
    """Negative control: other answers, other scores."""
    rows, predictions, _ = table(golden_dir, task)
    found = score(task, rows, predictions[1:] + predictions[:1], "paper").scores
    assert not close(found, scores_at(golden_dir, task, "paper"))


@pytest.mark.parametrize("task", SCORERS)
def test_rows(golden_dir, task):
    rows, predictions, _ = table(golden_dir, task)
    scored = score(task, rows, predictions, "paper")
    expected = json.loads((golden_dir / "eval" / task / "per_row.json").read_text())
    assert [str(item.index) for item in scored.items] == list(expected)
    assert [item.index for item in scored.items] == rows["index"].tolist()
    failures = 0
    for item, row in zip(scored.items, expected.values(), strict=True):
        read = row.get("extracted", row.get("option", row.get("pred")))
        assert item.extracted == read
        failures += "match" not in row and read in ("Unknown", "Z")
        assert close(
            item.score, float(row.get("hit", row.get("score", row.get("CIDEr"))))
        )
        assert set(item.detail) == set(row) - {
            *("extracted", "score", "option", "hit", "CIDEr")
        }
        assert close(
            [item.detail[name] for name in item.detail],
            [row[name] for name in item.detail],
        )
    assert scored.failures == failures


@pytest.mark.parametrize("version", VERSIONS)
class TestUnits:
    def test_multiple_choice(self, golden_dir, version):
        for unit in units(golden_dir, "mcq", version):
            said, choices, result = unit["answer"], unit["choices"], unit["result"]
            before = copy.deepcopy(choices)
            found = {
                "option": named_letter(said, choices, version) or False,
                "text": named_text(said, choices, version) or False,
                "infer": infer(said, choices, version) or False,
            }
            assert found == result, said
            assert choices == before

    def test_yes_no(self, golden_dir, version):
        for unit in units(golden_dir, "yorn", version):
            punct = without_punctuation(unit["output"].lower(), version)
            assert (punct, yes_or_no(unit["output"], version)) == (
                unit["punct"],
                unit["result"],
            )

    def test_normalisation(self, golden_dir, version):
        for unit in units(golden_dir, "process_answer", version):
            assert normal(unit["input"], version) == unit["result"], unit["input"]

    @pytest.mark.parametrize(
        "name, scorer",
        [
            ("chartqa_relaxed", score_chartqa),
            ("textvqa_vqa_score", score_textvqa),
            ("ocrvqa_accuracy", score_ocrvqa),
        ],
    )
    def test_open_answers(self, golden_dir, version, name, scorer):
        for unit in units(golden_dir, name, version):
            rows = pd.DataFrame({"index": [7], "answer": [unit["answer"]]})
            (item,) = scorer(name, rows, [unit["prediction"]], version).items
            expected = {key: unit[key] for key in ("gt", "pred", "match")}
            assert close({**item.detail}, dict(sorted(expected.items(), key=_order)))
            assert close(item.score, unit["hit"])

    def test_captions(self, golden_dir, version):
        for unit in units(golden_dir, "caption", version):
            references, predictions = zip(*unit["refs_and_pred"], strict=True)
            rows = pd.DataFrame(
                {"index": range(len(references)), "answer": list(map(repr, references))}
            )
            scored = score_captions("COCO_VAL", rows, predictions, version)
            assert close(
                scored.scores, {k: unit[k] for k in ("Bleu", "ROUGE_L", "CIDEr")}
            )
            images = unit["per_image"]
            for n, values in enumerate(images["Bleu"]):
                assert close([item.detail["Bleu"][n] for item in scored.items], values)
            rouges = [item.detail["ROUGE_L"] for item in scored.items]
            assert close(rouges, images["ROUGE_L"])
            assert close([item.score for item in scored.items], images["CIDEr"])


def _order(field):
    return ("gt", "pred", "match").index(field[0])
