"""The files that VLMEvalKit would write, beside those that it did write."""

import csv
import json

import openpyxl
import pandas as pd
import pytest
from benchmark_tables import GOLDENS, NAMES

from vtscale_jax.eval.benchmarks.predictions import (
    PredictionsError,
    raw_predictions,
    read_predictions,
)
from vtscale_jax.eval.benchmarks.table import read_table
from vtscale_jax.eval.benchmarks.tasks import get_task
from vtscale_jax.eval.benchmarks.workbooks import write_results
from vtscale_jax.eval.goldens.checks import differences
from vtscale_jax.eval.scoring.score import score


def evaluated(name, version="paper"):
    table = read_table(GOLDENS / name / f"{name}.tsv", get_task(name))
    raw = json.loads((GOLDENS / name / "raw_predictions.json").read_text())
    said = list(raw.values())
    found = raw_predictions(table, said, version)
    return table, said, score(name, found.rows, found.texts, version)


def written(folder, name, version="paper"):
    table, said, scored = evaluated(name, version)
    return write_results(
        folder, "fake_public", table.task, table.rows, said, scored, version
    )


def csv_rows(file):
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return sorted(rows, key=lambda row: row.get("split", ""))


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_what_vlmevalkit_wrote(name, tmp_path):
    paths = written(tmp_path, name)
    outputs = sorted((GOLDENS / name / "outputs").iterdir())
    book = GOLDENS / name / f"fake_public_{name}.xlsx"
    assert paths[0].name == book.name
    assert {path.name for path in paths} == {file.name for file in (book, *outputs)}
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for theirs in (book, *outputs):
        ours = tmp_path / theirs.name
        if theirs.suffix == ".json":
            found, expected = (json.loads(f.read_text()) for f in (ours, theirs))
            assert list(found) == list(expected)
            assert not list(differences(found, expected))
        elif theirs.suffix == ".csv":
            found, expected = csv_rows(ours), csv_rows(theirs)
            assert [list(row) for row in found] == [list(row) for row in expected]
            for mine, its in zip(found, expected, strict=True):
                assert mine.pop("split", "") == its.pop("split", "")
                numbers = {key: float(value) for key, value in its.items()}
                assert {k: float(v) for k, v in mine.items()} == pytest.approx(numbers)
            first = ours.read_text().splitlines()[0]
            assert first == theirs.read_text().splitlines()[0]  # quoted alike
        else:
            found, expected = pd.read_excel(ours), pd.read_excel(theirs)
            # The paths on the machine where the goldens were made.
            if name == "SEEDBench2":
                expected = expected.drop(columns="image_path")
            pd.testing.assert_frame_equal(found, expected)


def test_every_kind_of_file_is_among_the_goldens():
    endings = {
        file.name.removeprefix(f"fake_public_{name}")
        for name in NAMES
        for file in (GOLDENS / name / "outputs").iterdir()
    }
    assert endings == {
        *("_auxmatch.xlsx", "_exact_matching_result.xlsx"),
        *("_score.csv", "_acc.csv", "_score.json"),
    }


@pytest.mark.parametrize("name", ["POPE", "TextVQA_VAL"])
@pytest.mark.parametrize("version", ["paper", "current"])
def test_the_workbook_gives_the_scores_again(name, version, tmp_path):
    table, _, scored = evaluated(name, version)
    book = written(tmp_path, name, version)[0]
    again = read_predictions(book, table, version)
    assert again.notes == ()
    assert score(name, again.rows, again.texts, version).scores == scored.scores


def test_numbers_in_json_stand_on_lines_as_vlmevalkits_do(tmp_path):
    written(tmp_path, "OCRBench")
    name = "fake_public_OCRBench_score.json"
    theirs = (GOLDENS / "OCRBench" / "outputs" / name).read_text()
    assert (tmp_path / name).read_text() == theirs


def test_verdicts_on_choices_are_sorted_by_index(tmp_path):
    table, said, _ = evaluated("AI2D_TEST")
    at = list(range(len(table)))[::-1]
    found = raw_predictions(table, said[::-1], "paper", at)
    scored = score("AI2D_TEST", found.rows, found.texts, "paper")
    rows = table.rows.iloc[at]
    paths = write_results(
        tmp_path, "fake_public", table.task, rows, said[::-1], scored, "paper"
    )
    assert list(pd.read_excel(paths[0])["index"]) == list(rows["index"])
    theirs = GOLDENS / "AI2D_TEST" / "outputs" / paths[1].name
    pd.testing.assert_frame_equal(pd.read_excel(paths[1]), pd.read_excel(theirs))


def test_predictions_are_written_word_for_word(tmp_path):
    """Also those that a reader takes for something else."""
    table, said, scored = evaluated("OCRVQA_TESTCORE")
    said[:3] = ["N/A", "007", " x "]
    path = write_results(tmp_path, "m", table.task, table.rows, said, scored, "paper")[
        0
    ]
    (column,) = [
        column
        for column in openpyxl.load_workbook(path)["Sheet1"].iter_cols()
        if column[0].value == "prediction"
    ]
    assert [cell.value for cell in column[1:4]] == ["N/A", "007", " x "]


def test_files_are_replaced_and_no_pickle_is_written(tmp_path):
    first = written(tmp_path, "POPE")
    contents = [path.read_bytes() for path in first if path.suffix != ".xlsx"]
    for path in first:
        path.write_bytes(b"old")
    second = written(tmp_path, "POPE")
    assert second == first
    assert [p.read_bytes() for p in second if p.suffix != ".xlsx"] == contents
    assert not list(tmp_path.glob("*.pkl"))


def test_what_does_not_fit_together_is_refused(tmp_path):
    table, said, scored = evaluated("POPE")
    with pytest.raises(PredictionsError, match="48 rows, 47 predictions and 48"):
        write_results(tmp_path, "m", table.task, table.rows, said[:-1], scored, "paper")
    for name in ("", "a/b"):
        with pytest.raises(PredictionsError, match="cannot be part of a file name"):
            write_results(tmp_path, name, table.task, table.rows, said, scored, "paper")
    assert not list(tmp_path.iterdir())
