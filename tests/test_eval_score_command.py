"""The command `score`, and the check of whole folders of goldens."""

import json
import shutil

import pandas as pd
import pytest
from benchmark_tables import GOLDENS, NAMES

from vtscale_jax.eval.__main__ import main
from vtscale_jax.eval.goldens.benchmarks import GoldensError, check
from vtscale_jax.eval.goldens.checks import differences
from vtscale_jax.eval.goldens.units import UNITS
from vtscale_jax.eval.results import score_lines, without_nan


def run(capsys, tsv, task, predictions, *more, status=0):
    said = ["--tsv", tsv, "--task", task, "--predictions", predictions, *more]
    assert main(["score", *map(str, said)]) == status
    return capsys.readouterr()


def command(capsys, task, predictions, *more, status=0):
    tsv = GOLDENS / task / f"{task}.tsv"
    return run(capsys, tsv, task, predictions, *more, status=status)


def workbook(task):
    return GOLDENS / task / f"fake_public_{task}.xlsx"


def close(found, expected):
    return not list(differences(found, expected))


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("scorer", ["paper", "current"])
def test_scores_are_vlmevalkits(capsys, task, scorer):
    out = command(capsys, task, workbook(task), "--scorer", scorer, "--json").out
    (line,) = out.splitlines()
    found = json.loads(line)
    if scorer == "paper":
        expected = json.loads((GOLDENS / task / "scores.json").read_text())
    else:
        readme = json.loads((GOLDENS / task / "README.json").read_text())
        expected = readme["scores_at_newest_commit"]["scores"]
    assert {**found, "scores": 0} == {"task": task, "scorer": scorer, "scores": 0}
    assert close(found["scores"], expected)
    rows = found["scores"]
    if isinstance(rows, list) and "split" in rows[0]:
        assert [row["split"] for row in rows] == sorted(row["split"] for row in rows)


def test_versions_differ_where_the_goldens_say_so(capsys):
    def scores(scorer):
        out = command(capsys, "ChartQA_TEST", workbook("ChartQA_TEST"), *scorer).out
        return json.loads(out)["scores"]

    paper = scores(["--json"])
    assert not close(paper, scores(["--json", "--scorer", "current"]))


@pytest.mark.parametrize("task", ["MME", "MMStar", "COCO_VAL", "OCRVQA_TESTCORE"])
def test_raw_predictions_score_alike(capsys, task):
    raw = GOLDENS / task / "raw_predictions.json"
    said, read = (
        json.loads(command(capsys, task, file, "--json").out)
        for file in (raw, workbook(task))
    )
    assert said == read


def test_a_table_of_scores_has_intervals_rows_and_failures(capsys):
    captured = command(capsys, "POPE", workbook("POPE"))
    head, *lines = captured.out.splitlines()
    assert head.startswith("POPE: 48 of 48 rows, scorer paper: VLMEvalKit 0ff0c3e; 8 ")
    assert len(lines) == 16
    assert lines[1].split()[:3] == ["Overall", "acc", "70.75"] and " to " in lines[1]
    assert "MD5" in captured.err and "note: " in captured.err
    bleu = command(capsys, "COCO_VAL", workbook("COCO_VAL")).out
    assert [line.split()[0] for line in bleu.splitlines()[1:5]] == [
        f"Bleu-{n}" for n in (1, 2, 3, 4)
    ]


def test_verdicts_are_written_with_the_scores(capsys, tmp_path):
    out = tmp_path / "scored"
    command(capsys, "AI2D_TEST", workbook("AI2D_TEST"), "--out", str(out))
    items = [json.loads(one) for one in (out / "items.jsonl").read_text().splitlines()]
    verdicts = json.loads((GOLDENS / "AI2D_TEST" / "per_row.json").read_text())
    assert [str(item["index"]) for item in items] == list(verdicts)
    for item, row in zip(items, verdicts.values(), strict=True):
        assert (item["extracted"], item["score"]) == (row["option"], row["hit"])
    scores = json.loads((out / "scores.json").read_text())
    assert close(
        scores["scores"], json.loads((GOLDENS / "AI2D_TEST/scores.json").read_text())
    )
    low, high = scores["intervals"][0]["Overall"]
    assert low < scores["scores"][0]["Overall"] < high
    assert scores["items"] == 40 and scores["scorer"].startswith("paper")


def test_a_score_that_is_not_there_is_null():
    rows = [{"split": "a", "Overall": 0.5, "x": float("nan")}]
    ends = [{"split": "a", "Overall": (0.1, 0.9), "x": (0.0, float("nan"))}]
    assert without_nan(rows) == [{"split": "a", "Overall": 0.5, "x": None}]
    assert without_nan(ends)[0]["x"] == [0.0, None]
    for tables in ((rows, ends), (without_nan(rows), without_nan(ends))):
        lines = score_lines(*tables)
        assert lines[0].split() == ["a", "Overall", "0.5", "(0.1", "to", "0.9)"]
        assert lines[1].split() == ["a", "x", "none"]


def test_a_part_of_the_rows_is_said_to_be_one(capsys, tmp_path):
    frame = pd.read_excel(workbook("POPE")).head(10)
    frame.to_excel(tmp_path / "part.xlsx", index=False, engine="xlsxwriter")
    captured = command(capsys, "POPE", tmp_path / "part.xlsx")
    assert captured.out.startswith("POPE: 10 of 48 rows")
    assert "predictions for 10 of 48 rows" in captured.err


def test_a_localized_table_is_scored_without_its_images(capsys, tmp_path):
    frame = pd.read_csv(GOLDENS / "SEEDBench2" / "SEEDBench2.tsv", sep="\t")
    local = frame.drop(columns="image").assign(image_path="elsewhere/0.jpg")
    local.to_csv(tmp_path / "SEEDBench2_local.tsv", sep="\t", index=False)
    file = tmp_path / "SEEDBench2_local.tsv"
    captured = run(capsys, file, "SEEDBench2", workbook("SEEDBench2"), "--json")
    whole = command(capsys, "SEEDBench2", workbook("SEEDBench2"), "--json").out
    assert (captured.out, captured.err) == (whole, "")


def test_what_is_wrong_ends_the_command_with_a_sentence(capsys):
    other = workbook("OCRVQA_TESTCORE")
    captured = command(capsys, "ChartQA_TEST", other, status=1)
    assert captured.out == "" and "questions are not those" in captured.err
    captured = run(capsys, "x.tsv", "Pope", "y.json", status=1)
    assert captured.err.startswith("error: task 'Pope' is not known. Did you mean POPE")
    with pytest.raises(SystemExit):
        command(capsys, "POPE", workbook("POPE"), "--scorer", "new")


# --- folders of goldens


@pytest.fixture(scope="module")
def checks():
    return check(GOLDENS)


def test_every_case_of_the_folder_comes_out(checks):
    assert [one for one in checks if not one.ok] == []
    names = [one.name for one in checks]
    assert len(names) == len(set(names)) == 15 * 6 + 1
    for task in NAMES:
        for what in ("prompts", "verdicts", "scores, paper", "scores, current"):
            assert f"{task} {what}" in names


@pytest.mark.parametrize(
    "file, old, new, failing",
    [
        ("prompts.json", "answer yes or no", "say yes or no", {"MME prompts"}),
        ("per_row.json", '"Unknown"', '"No"', {"MME verdicts"}),
        (
            "scores.json",
            '"count": 50.0',
            '"count": 50.001',
            {"MME scores, paper", "MME scores of raw predictions, paper"},
        ),
        ("README.json", '"count": 50.0', '"count": 51.0', {"MME scores, current"}),
        (
            "raw_predictions.json",
            '"Answer: Yes"',
            '"Answer: No"',
            {"MME predictions read back", "MME scores of raw predictions, paper"},
        ),
        ("MME.tsv", '"posters"', '"poster"', {"MME"}),
    ],
)
def test_a_case_that_is_changed_fails(tmp_path, file, old, new, failing):
    folder = tmp_path / "MME"
    shutil.copytree(GOLDENS / "MME", folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    failed = {one.name: one.detail for one in check(tmp_path) if not one.ok}
    assert set(failed) == failing
    assert all(failed.values())


def test_one_task_or_units_alone_can_be_checked(tmp_path):
    assert len(check(GOLDENS / "POPE")) == 6
    units = tmp_path / "units"
    units.mkdir()
    (units / "yorn.json").write_text(
        json.dumps([{"output": "Yes.", "punct": "yes", "result": "No"}])
    )
    (units / "new.json").write_text("[]")
    found = {one.name: one for one in check(units)}
    assert set(found) == {"units yorn, paper", "units yorn, current", "units new"}
    assert not any(one.ok for one in found.values())
    assert "result is 'Yes', expected 'No'" in found["units yorn, paper"].detail


def test_every_unit_comes_out_in_both_versions(tmp_path):
    shutil.copytree(GOLDENS.parent / "eval_units", tmp_path / "units")
    found = check(tmp_path)
    assert [one for one in found if not one.ok] == []
    units = {one.name.removeprefix("units ").split(",")[0] for one in found}
    assert len(found) == 2 * len(units) and units == set(UNITS)
    # The newest commit's result is compared, where it is another.
    for name in ("mcq", "process_answer", "chartqa_relaxed"):
        file = tmp_path / "units" / f"{name}.json"
        vectors = json.loads(file.read_text())
        old = [{k: v for k, v in one.items() if k != "newest"} for one in vectors]
        file.write_text(json.dumps(old))
    failed = {one.name for one in check(tmp_path) if not one.ok}
    assert failed == {
        f"units {name}, current"
        for name in ("mcq", "process_answer", "chartqa_relaxed")
    }


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(GoldensError, match="no cases; expected folders named as tasks"):
        check(tmp_path)


def test_differences_see_missing_extra_and_small_ones():
    assert list(differences({"a": 1.0}, {"a": 1.0 + 1e-9})) == []
    assert list(differences({"a": 1.0}, {"a": 1.0 + 1e-5})) != []
    assert list(differences({"a": 1}, {"a": 1, "b": 2})) == ["/b is missing"]
    assert list(differences({"a": 1, "b": 2}, {"a": 1})) == ["/b is extra"]
    assert list(differences([1, 2], [1])) != []
    assert list(differences("a", "b")) == [" is 'a', expected 'b'"]
