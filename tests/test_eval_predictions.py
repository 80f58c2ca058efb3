"""Predictions: what a workbook makes of them, files aligned with a table, errors."""

import json

import pandas as pd
import pytest
from benchmark_tables import GOLDENS, NAMES, question_rows, write_table

from vtscale_jax.eval.benchmarks.predictions import (
    PredictionsError,
    raw_predictions,
    read_predictions,
)
from vtscale_jax.eval.benchmarks.rereading import as_reread, reread, workbook
from vtscale_jax.eval.benchmarks.table import read_table
from vtscale_jax.eval.benchmarks.tasks import get_task

ROUNDTRIPS = json.loads((GOLDENS / "units" / "xlsx_roundtrip.json").read_text())
VERSIONS = ("paper", "current")


def long(text):
    return "x" * 32767 if text == "x*32767" else text


def golden(name):
    table = read_table(GOLDENS / name / f"{name}.tsv", get_task(name))
    return table, GOLDENS / name / f"fake_public_{name}.xlsx"


@pytest.fixture
def table(tmp_path):
    file = write_table(tmp_path / "OCRVQA_TESTCORE.tsv", question_rows(4))
    return read_table(file, get_task("OCRVQA_TESTCORE"))


# --- what a workbook does


@pytest.mark.parametrize("case", range(len(ROUNDTRIPS)))
def test_texts_come_back_as_vlmevalkit_reads_them(case):
    column = ROUNDTRIPS[case]
    raw = [long(one["raw"]) for one in column]
    assert as_reread(raw, "paper") == [long(one["loaded"]) for one in column]


def test_the_roundtrips_change_many_texts():
    changed = [
        one for column in ROUNDTRIPS for one in column if one["raw"] != one["loaded"]
    ]
    assert len(ROUNDTRIPS) == 11 and len(changed) > 15


def test_a_formula_is_text_in_the_current_version_only():
    raw = ["=1+1", "{=2}", "a", ""]
    assert as_reread(raw, "paper") == ["0", "0", "a", "nan"]
    assert as_reread(raw, "current") == ["=1+1", "{=2}", "a", "nan"]


def test_all_texts_empty_are_all_there():
    assert as_reread(["", "", ""], "paper") == ["nan"] * 3


def test_other_columns_come_back_from_the_workbook_too():
    frame = pd.DataFrame({"index": [0, 1], "answer": [5.0, 6.0], "C": [36.0, None]})
    again = reread(frame, "paper")
    assert list(map(str, again["answer"])) == ["5", "6"]
    assert list(map(str, again["C"])) == ["36.0", "nan"]


# --- goldens


@pytest.mark.parametrize("name", NAMES)
def test_what_was_said_becomes_what_the_workbook_holds(name):
    table, book = golden(name)
    raw = json.loads((GOLDENS / name / "raw_predictions.json").read_text())
    found = raw_predictions(table, list(raw.values()), "paper")
    read = read_predictions(book, table, "paper")
    assert found.texts == read.texts
    assert found.positions == read.positions == tuple(range(len(table)))
    assert found.notes == read.notes == ()
    columns = [column for column in read.rows if column in found.rows]
    assert set(columns) == set(table.rows)
    pd.testing.assert_frame_equal(found.rows[columns], read.rows[columns])
    said = read_predictions(GOLDENS / name / "raw_predictions.json", table, "paper")
    assert said.texts == read.texts


@pytest.mark.parametrize("name", ["MME", "RealWorldQA"])
def test_a_tsv_and_a_list_of_rows_say_the_same(name, tmp_path):
    table, book = golden(name)
    frame = pd.read_excel(book)
    frame.to_csv(tmp_path / "p.tsv", sep="\t", index=False, quoting=1)
    raw = json.loads((GOLDENS / name / "raw_predictions.json").read_text())
    rows = [{"index": int(i), "prediction": said} for i, said in raw.items()]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    expected = read_predictions(book, table, "paper").texts
    for file in ("p.tsv", "p.json"):
        assert read_predictions(tmp_path / file, table, "paper").texts == expected


# --- answers, and whose


def test_right_letters_come_from_the_table_other_answers_from_the_workbook(tmp_path):
    for name, ours in (("MMStar", True), ("POPE", False)):
        table, book = golden(name)
        frame = pd.read_excel(book)
        frame["answer"] = "Z"
        file = tmp_path / f"mine_{name}.xlsx"
        frame.to_excel(file, index=False, engine="xlsxwriter")
        found = read_predictions(file, table, "paper")
        assert list(found.rows["answer"]) == (
            list(table.rows["answer"]) if ours else ["Z"] * len(table)
        )
        assert any("right answers are not those" in n for n in found.notes) != ours


def test_options_are_those_of_the_workbook():
    """VLMEvalKit reads the texts of options there, where 36.0 of a whole column of
    numbers is 36."""
    table, book = golden("RealWorldQA")
    found = read_predictions(book, table, "paper")
    assert found.rows["D"].dtype == "float64"
    whole = table.rows.assign(D=7.0)
    again = reread(whole.assign(prediction="A"), "paper")
    assert set(map(str, again["D"])) == {"7"}


def test_an_order_of_its_own_is_kept(table, tmp_path):
    file = tmp_path / "p.tsv"
    file.write_text("index\tprediction\n2\tc\n0\ta\n")
    found = read_predictions(file, table, "paper")
    assert found.positions == (2, 0) and found.texts == ("c", "a")
    assert list(found.rows["index"]) == [2, 0]
    assert list(found.rows["question"]) == ["What is word 2?", "What is word 0?"]
    assert "predictions for 2 of 4 rows" in found.notes[0]


def test_predictions_of_some_rows(table):
    found = raw_predictions(table, ["c", "b"], "paper", [2, 1])
    assert list(found.rows["answer"]) == ["word 2", "word 1"]
    with pytest.raises(PredictionsError, match="3 predictions for 4 rows"):
        raw_predictions(table, ["a", "b", "c"], "paper")
    with pytest.raises(PredictionsError, match="no predictions"):
        raw_predictions(table, [], "paper", [])


def test_an_index_that_a_workbook_made_a_fraction_is_found(table, tmp_path):
    frame = pd.DataFrame({"index": [0.0, 3.0], "prediction": ["a", "d"]})
    frame.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    assert read_predictions(tmp_path / "p.tsv", table, "paper").positions == (0, 3)


def test_numbers_of_json_are_what_python_writes(table, tmp_path):
    (tmp_path / "p.json").write_text('{"0": 5, "1": "x", "2": 1.50, "3": true}')
    found = read_predictions(tmp_path / "p.json", table, "paper")
    assert found.texts == ("5", "x", "1.5", "True")


@pytest.mark.parametrize("version", VERSIONS)
def test_mme_is_scored_only_whole(version):
    table, _ = golden("MME")
    with pytest.raises(PredictionsError, match="no prediction with category"):
        raw_predictions(table, ["Yes", "No"], version, [0, 1])


# --- what is wrong, and where


def lines(*rows):
    return "\n".join(["index\tprediction", *rows]) + "\n"


WRONG = [
    (
        "p.tsv",
        lines("0\ta", "9\tb"),
        r"1 of 2 .*data row 2 \(index 9\)\. Is it the file",
    ),
    (
        "p.tsv",
        lines("0\ta", "1\tb", "0\tc"),
        "row 3: index 0 is there already at .*row 1",
    ),
    ("p.tsv", lines("0\ta", "\tb"), "data row 2: index is missing"),
    ("p.tsv", lines(), "has no predictions"),
    (
        "p.tsv",
        "index\tanswer\n0\ta\n",
        "no column 'prediction'; there are index, answer",
    ),
    ("p.tsv", "prediction\na\n", "no column 'index'"),
    ("p.tsv", "", "not a table of tab-separated columns"),
    (
        "p.tsv",
        "index\tquestion\tprediction\n1\tWhat is word 1?\ta\n2\tWho?\tb\n",
        r"1 of 2 questions are not those .*data row 2 has 'Who\?', expected 'What",
    ),
    ("p.json", "{", "not JSON"),
    ("p.json", "[1]", "expected {index: prediction} or a list"),
    ("p.json", "{}", "has no predictions"),
    ("p.json", '{"0": null}', "entry 1: prediction is null, expected a text"),
    ("p.json", '{"0": "a", "1": ["b"]}', r"entry 2: prediction is \[\"b\"\], expected"),
    (
        "p.json",
        '{"0": "a", "0": "b"}',
        "entry 2: index 0 is there already at .*entry 1",
    ),
    ("p.json", '[{"index": 0, "text": "b"}]', "no column 'prediction'"),
    ("p.json", '{"x": "a"}', r"entry 1 \(index x\)"),
    (
        "p.csv",
        "index,prediction\n0,a\n",
        "ends with '.csv', expected .xlsx, .tsv, .json",
    ),
    ("p.xlsx", "no workbook", "p.xlsx: not a workbook that can be read"),
]


@pytest.mark.parametrize("name, content, message", WRONG)
def test_what_is_wrong_is_named_with_its_row(table, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(tmp_path / name, table, "paper")


def test_a_missing_file_is_named(table, tmp_path):
    with pytest.raises(PredictionsError, match=r"no\.xlsx: is not there"):
        read_predictions(tmp_path / "no.xlsx", table, "paper")


def test_the_workbook_of_another_benchmark_is_refused():
    table, _ = golden("SEEDBench_IMG")
    _, other = golden("SEEDBench2_Plus")
    with pytest.raises(PredictionsError, match=r"36 of 36 questions .*, row 2 has"):
        read_predictions(other, table, "paper")


def test_many_absent_rows_are_counted_and_a_few_named(table, tmp_path):
    (tmp_path / "p.tsv").write_text(lines(*(f"{i}\ta" for i in range(2, 20))))
    with pytest.raises(PredictionsError) as raised:
        read_predictions(tmp_path / "p.tsv", table, "paper")
    message = str(raised.value)
    assert "16 of 18 predictions" in message and "(index 8)" in message
    assert "(index 9)" not in message and "; …" in message


def test_a_question_that_the_workbook_changed_is_the_same(tmp_path):
    rows = question_rows(2, question=["=1+1 is?", '"a\r\nb"'])
    table = read_table(
        write_table(tmp_path / "OCRVQA_TESTCORE.tsv", rows), get_task("OCRVQA_TESTCORE")
    )
    for version in VERSIONS:
        said = table.rows.assign(prediction=["x", "y"])
        (tmp_path / "p.xlsx").write_bytes(workbook(said, version))
        assert read_predictions(tmp_path / "p.xlsx", table, version).texts == ("x", "y")
