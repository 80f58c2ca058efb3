"""The fifteen benchmarks: names, limits and files of the paper and VLMEvalKit."""

import json
import re

import pytest
from benchmark_tables import GOLDENS, NAMES

from vtscale_jax.eval.benchmarks.tasks import TASKS, UnknownTaskError, get_task
from vtscale_jax.eval.scoring.verdicts import COMMITS

# By hand from the paper's wrapper: 32 for choices, yes/no and captions.
LIMITS = {
    **dict.fromkeys(NAMES, 32),
    **{"OCRVQA_TESTCORE": 100, "ChartQA_TEST": 100, "TextVQA_VAL": 10, "OCRBench": 512},
}
TYPES = {
    **dict.fromkeys(("MME", "HallusionBench", "POPE"), ("yes_no", "Y/N", 100)),
    "MME": ("yes_no", "Y/N", None),
    "OCRBench": ("ocr", "VQA", None),
    "COCO_VAL": ("caption", "Caption", 100),
    **dict.fromkeys(
        ("OCRVQA_TESTCORE", "ChartQA_TEST", "TextVQA_VAL"), ("open", "VQA", 100)
    ),
}


def test_the_fifteen_are_there():
    assert len(TASKS) == 15
    assert set(NAMES) == {folder.name for folder in GOLDENS.glob("[A-Z]*")}
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_how_it_is_asked_and_reported(name):
    task = TASKS[name]
    kind, type_, scale = TYPES.get(name, ("multiple_choice", "MCQ", 1))
    assert (task.kind, task.vlmevalkit_type, task.scale) == (kind, type_, scale)
    assert task.max_new_tokens == LIMITS[name]
    roots = {"COCO_VAL": "COCO", "OCRVQA_TESTCORE": "OCRVQA"}
    assert task.image_root == roots.get(name, name)
    assert set(task.md5) == set(COMMITS)
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in task.md5.values())


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_numbers_are_vlmevalkits(name):
    task = TASKS[name]
    files = {file.name for file in (GOLDENS / name / "outputs").iterdir()}
    assert f"fake_public_{name}{task.score_suffix}" in files
    scores = json.loads((GOLDENS / name / "scores.json").read_text())
    row = scores if isinstance(scores, dict) else scores[0]
    assert set(task.reported) <= set(row)
    assert task.reported


def test_checksums_differ_between_benchmarks():
    sums = [task.md5["current"] for task in TASKS.values()]
    assert len(set(sums)) == 15
    # One table was corrected between the two commits.
    changed = [n for n, t in TASKS.items() if t.md5["paper"] != t.md5["current"]]
    assert changed == ["RealWorldQA"]


@pytest.mark.parametrize(
    "wrong, near", [("pope", "POPE"), ("ChartQA", "ChartQA_TEST"), ("MMstar", "MMStar")]
)
def test_a_wrong_name_is_met_with_the_right_one(wrong, near):
    with pytest.raises(UnknownTaskError, match=rf"Did you mean .*\b{near}\b") as raised:
        get_task(wrong)
    assert all(name in str(raised.value) for name in NAMES)


def test_a_name_like_no_other_is_met_with_the_list():
    with pytest.raises(UnknownTaskError, match="There are MME, HallusionBench"):
        get_task("zzzz")
    assert get_task("MME") is TASKS["MME"]
