"""Tables of scores: what is read, what is labelled, and what is refused, with lines."""

import math
import subprocess
import sys

import numpy as np
import pytest

from vtscale_jax.scaling.reading import read_scores, together, without
from vtscale_jax.scaling.scores import ScoresError
from vtscale_jax.scaling.tables import parse_table, read_table

TIDY = "inputs,n_l,metric,score\nvqq,8,POPE/acc,80.2\nvqq,1,POPE/acc,60\n"
WIDE = "inputs,n_l,POPE/acc,MMStar/Overall\nvqq,8,80.2,31\nvqq,1,60,29.5\n"
FULL = "n_l,metric,score,n_items,stderr,upper\n1,a,3,10,0.5,20\n2,a,4,10,0.25,20\n"


def values(rows):
    return [(one.inputs, one.metric, one.n_l, one.score) for one in rows.scores]


def read(text):
    return together([parse_table(text, "t.csv")], "t.csv")


def test_tidy_and_wide_hold_the_same():
    rows = parse_table(TIDY, "t.csv")
    assert values(rows) == [("vqq", "POPE/acc", 8, 80.2), ("vqq", "POPE/acc", 1, 60.0)]
    assert rows.scores[1].where == "t.csv, line 3"
    wide = parse_table(WIDE, "t.csv")
    assert values(wide) == [
        ("vqq", "POPE/acc", 8, 80.2),
        ("vqq", "MMStar/Overall", 8, 31.0),
        ("vqq", "POPE/acc", 1, 60.0),
        ("vqq", "MMStar/Overall", 1, 29.5),
    ]
    assert wide.notes == rows.notes == wide.excluded == rows.excluded == ()


def test_optional_columns_are_read_and_may_be_empty():
    one, two = parse_table(FULL.replace("10,0.25,20", ",,"), "t.csv").scores
    assert (one.inputs, one.n_items, one.stderr, one.upper) == ("", 10, 0.5, 20.0)
    assert type(one.n_items) is int
    assert (two.n_items, two.stderr, two.upper) == (None, None, None)


def test_order_of_columns_does_not_matter():
    swapped = "score,extra,metric,n_l,inputs\n80.2,x,POPE/acc,8,vqq\n"
    rows = parse_table(swapped, "t.csv")
    assert values(rows) == [("vqq", "POPE/acc", 8, 80.2)]
    assert len(rows.notes) == 1 and "column 'extra' is ignored" in rows.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        TIDY.replace("\n", "\r\n"),
        TIDY.replace("\n", "\n\n"),
        TIDY.replace(",", " , "),
        TIDY.replace("POPE/acc", '"POPE/acc"').replace("80.2", '"80.2"'),
        TIDY.replace("POPE/acc", ' "POPE/acc"'),
        TIDY.replace("\n", "\n,,,\n"),
        TIDY.replace(",8,", ",8.0,"),
        TIDY.replace(",60", ",6e1"),
        TIDY.rstrip("\n"),
    ],
)
def test_forms_of_the_same_table(tmp_path, text):
    path = tmp_path / "t.csv"
    for mark in ("", "\N{ZERO WIDTH NO-BREAK SPACE}"):
        path.write_bytes((mark + text).encode())
        rows = read_table(path)
        assert values(rows) == values(parse_table(TIDY, "t.csv"))
        assert rows.excluded == rows.notes == ()


def test_lines_are_those_of_the_file():
    text = 'n_l,metric,score,why\n1,a,2,"two\nlines"\n\n8,a,x,\n'
    with pytest.raises(ScoresError, match="t.csv, line 5: field score is 'x'"):
        parse_table(text, "t.csv")


def test_quoted_names_may_hold_commas():
    rows = parse_table('n_l,metric,score\n8,"a, ""b""",3\n', "t.csv")
    assert rows.scores[0].metric == 'a, "b"'


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "inf", "-Infinity", "1e999"])
@pytest.mark.parametrize("text", [TIDY, WIDE])
def test_cells_without_a_number_are_excluded_with_their_place(text, cell):
    rows = parse_table(text.replace(",80.2", f",{cell}"), "t.csv")
    (one,) = rows.excluded
    said = "is empty" if not cell.strip() else f"says {cell}"
    assert one[:4] == ("vqq", "POPE/acc", 8, cell.strip())
    assert one.reason == f"no score: the cell {said}"
    assert one.where == "t.csv, line 2"
    whole = parse_table(text, "t.csv")
    assert len(rows.scores) == len(whole.scores) - 1
    assert all(math.isfinite(score.score) for score in rows.scores)


LINES = [
    ("vqq,x,a,1", r"n_l is 'x', expected a whole number of vision tokens, 1 or more"),
    ("vqq,0,a,1", "n_l is '0'"),
    ("vqq,-8,a,1", "n_l is '-8'"),
    ("vqq,8.5,a,1", "n_l is '8.5'"),
    ("vqq,,a,1", "n_l is ''"),
    ("vqq,nan,a,1", "n_l is 'nan'"),
    ("vqq,inf,a,1", "n_l is 'inf'"),
    ("vqq,1e30,a,1", "n_l is '1e30'"),
    ("vqq,1_0,a,1", "n_l is '1_0'"),
    ("vqq,\N{ARABIC-INDIC DIGIT EIGHT},a,1", "n_l is "),
    ('vqq,8,a,"12,5"', "score is '12,5', expected a number.*with a point"),
    ("vqq,8,a,1O", "score is '1O'"),
    ("vqq,8,a,1_0", "score is '1_0'"),
    ("vqq,8,a,0x10", "score is '0x10'"),
    ("vqq,8,a,5%", "score is '5%'"),
    ("vqq,8,a,--", "score is '--'"),
    (f"vqq,8,a,{'y' * 500}", "score is 'yyyy"),
    ("vqq,8,,1", "field metric is ''"),
    ("vqq,8,a", "has 3 cells, expected 4 as columns: inputs, n_l, metric, score"),
    ("vqq,8,a,1,2", "has 5 cells, expected 4.*in quotes.*with a point"),
    ('vqq,8,a,"1', "not CSV"),
    ('vqq,8,"a"b,1', "not CSV"),
]


@pytest.mark.parametrize("line, words", LINES)
def test_lines_that_are_no_scores_are_named(line, words):
    with pytest.raises(ScoresError, match=words) as raised:
        parse_table(f"{TIDY}\n{line}\nvqq,16,a,2\n", "t.csv")
    assert str(raised.value).startswith("t.csv, line 5: ")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "old, new, words",
    [
        (",10,0.25", ",0,0.25", "n_items is '0', expected a whole number of questions"),
        (",10,0.25", ",9.5,0.25", "n_items is '9.5'"),
        (",10,0.25", ",many,0.25", "n_items is 'many'"),
        (",0.25,", ",-0.25,", "stderr is '-0.25', expected a number, 0 or more"),
        (",0.25,", ",nan,", "stderr is 'nan'"),
        ("0.25,20", "0.25,0", "upper is '0', expected the largest score possible"),
        ("0.25,20", "0.25,inf", "upper is 'inf'"),
    ],
)
def test_optional_cells_are_checked(old, new, words):
    assert old in FULL
    with pytest.raises(ScoresError, match=f"t.csv, line 3: field {words}"):
        parse_table(FULL.replace(old, new), "t.csv")


def test_text_in_a_wide_table_names_its_column():
    with pytest.raises(ScoresError, match="line 3: field MMStar/Overall is '29,5'"):
        parse_table(WIDE.replace(",29.5", ',"29,5"'), "t.csv")


@pytest.mark.parametrize(
    "header, words",
    [
        ("a,b,c", "has columns 'a', 'b', 'c'; expected n_l, metric and score"),
        ("inputs,n_l", "has columns 'inputs', 'n_l'; expected"),
        ("n_l,metric,value", "'metric' is of the first form, which needs all of n_l"),
        ("n_l,score", "'score' is of the first form"),
        ("n_l,POPE/acc,n_items", "'n_items' is of the first form"),
        ("inputs;n_l;metric;score", "Part the columns by commas"),
        ("n_l\tmetric\tscore", "Part the columns by commas"),
        ("n_l,a,b,a", "columns 2 and 4 are both 'a', expected different names"),
        ("n_l,metric,score,n_l", "columns 1 and 4 are both 'n_l'"),
        ("n_l,a,", "column 3 has no name"),
    ],
)
def test_columns_that_make_no_table_are_named(header, words):
    with pytest.raises(ScoresError, match=words) as raised:
        parse_table(f"\n{header}\n1,2,3\n", "t.csv")
    assert str(raised.value).startswith("t.csv, line 2: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "t.csv is empty; expected n_l, metric and score"),
        ("\n \n", "t.csv is empty"),
        ("n_l,metric,score\n\n", "has a line of columns only"),
    ],
)
def test_tables_without_scores(text, words):
    with pytest.raises(ScoresError, match=words):
        parse_table(text, "t.csv")


@pytest.mark.parametrize("again", ["vqq,8,POPE/acc,80.2", "vqq,8.0,POPE/acc,"])
def test_duplicates_name_both_lines(again):
    with pytest.raises(ScoresError) as raised:
        parse_table(f"{TIDY}{again}\n", "t.csv")
    assert str(raised.value).startswith(
        "t.csv, line 4: a second score of POPE/acc (vqq) at n_l = 8"
    )
    assert "the first is at t.csv, line 2" in str(raised.value)


def test_other_inputs_are_no_duplicate():
    assert len(parse_table(f"{TIDY}vq,8,POPE/acc,80.2\n", "t.csv").scores) == 3


def test_files_that_cannot_be_read(tmp_path):
    latin = tmp_path / "latin.csv"
    latin.write_bytes("n_l,metric,score\n1,é,2\n".encode("latin-1"))
    with pytest.raises(ScoresError, match="latin.csv is not text in UTF-8.*save"):
        read_scores([latin])
    with pytest.raises(ScoresError, match="gone.csv is not there"):
        read_scores([tmp_path / "gone.csv"])
    with pytest.raises(ScoresError, match="holds no scores, expected a run folder"):
        read_scores([tmp_path])
    with pytest.raises(ScoresError, match="no path given"):
        read_scores([])


def test_series_rise_in_m_and_keep_the_order_of_metrics():
    scores = read(
        "inputs,n_l,metric,score\nvq,8,b,1\nvqq,8,a,2\nvqq,1,b,3\nvq,1,b,4\nvqq,8,b,5\n"
    )
    assert [one.name for one in scores.series] == ["b (vq)", "b (vqq)", "a (vqq)"]
    assert scores.inputs() == ("vq", "vqq") and scores.metrics() == ("b", "a")
    series = scores.of("b", "vqq")
    assert series.m.tolist() == [1, 8] and series.score.tolist() == [3.0, 5.0]
    assert scores.of("a", "vqq").m.tolist() == [8]  # one point stays in
    assert scores.source == "t.csv"


def test_sources_are_joined_and_duplicates_across_them_named(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(TIDY)
    two.write_text("inputs,n_l,POPE/acc\nvqq,16,81\n")
    joined = read_scores([one, two])
    assert joined.of("POPE/acc", "vqq").m.tolist() == [1, 8, 16]
    assert joined.source == f"{one}, {two}"
    two.write_text("inputs,n_l,POPE/acc\n\nvqq,8,81\n")
    with pytest.raises(ScoresError) as raised:
        read_scores([one, two])
    assert str(raised.value).startswith(f"{two}, line 3: a second score")
    assert f"the first is at {one}, line 2" in str(raised.value)


def test_an_m_that_others_have_is_noted_as_missing():
    text = "n_l,a,b,c\n1,1,2,3\n8,1,2,\n16,,2,3\n"
    scores = read(text)
    # An empty cell is excluded, and so is not noted once more.
    assert len(scores.excluded) == 2 and scores.notes == ()
    scores = read("n_l,metric,score\n1,a,1\n8,a,1\n1,b,2\n1,c,2\n")
    assert scores.notes == ("b, c: no score at M = 8, where other metrics have one",)


@pytest.mark.parametrize("field", ["n_items", "stderr"])
def test_what_some_m_lack_is_dropped_with_a_note(field):
    whole = read(FULL)
    assert getattr(whole.of("a", ""), field) is not None and whole.notes == ()
    gone = FULL.replace(*{"n_items": (",4,10", ",4,"), "stderr": ("0.25", "")}[field])
    scores = read(gone)
    assert getattr(scores.of("a", ""), field) is None
    assert scores.notes == (f"a: {field} is not used, as it is missing at M = 2",)
    other = {"n_items": "stderr", "stderr": "n_items"}[field]
    assert getattr(scores.of("a", ""), other) is not None


def test_a_standard_error_of_0_is_not_used():
    scores = read(FULL.replace("0.25", "0"))
    assert scores.of("a", "").stderr is None
    assert scores.of("a", "").n_items is not None
    assert scores.notes == (
        "a: stderr is not used, as it is 0 at M = 2: no score is without error",
    )


def test_n_items_and_stderr_follow_their_m():
    series = read(
        "n_l,metric,score,n_items,stderr\n8,a,2,30,0.3\n1,a,1,10,0.1\n2,a,1,20,0.2\n"
    ).series[0]
    assert series.m.tolist() == [1, 2, 8]
    assert series.n_items.tolist() == [10, 20, 30]
    assert series.stderr.tolist() == [0.1, 0.2, 0.3]
    assert series.n_items.dtype == np.int64


@pytest.mark.parametrize(
    "text, upper, noted",
    [
        (FULL, 20.0, False),
        (FULL.replace("0.25,20", "0.25,"), 20.0, False),
        ("n_l,metric,score\n1,MME/Overall,1500\n", 2800.0, False),
        ("n_l,metric,score\n1,POPE/acc,60\n", 100.0, False),
        ("n_l,metric,score,upper\n1,POPE/acc,0.6,1\n", 1.0, False),
        ("n_l,metric,score\n1,POPE/acc,0.6\n", 100.0, True),
        ("n_l,metric,score\n1,mine,60\n", None, False),
        ("n_l,metric,score,n_items\n1,mine,60,5\n", 100.0, True),
        ("n_l,metric,score,n_items\n1,mine,0.6,5\n2,mine,1,5\n", 1.0, True),
        ("n_l,metric,score,n_items\n1,mine,101,5\n", None, False),
        ("n_l,metric,score,n_items\n1,mine,-0.1,5\n", None, False),
    ],
)
def test_where_the_scale_ends(text, upper, noted):
    scores = read(text)
    assert scores.series[0].upper == upper
    assert ["a column upper" in note for note in scores.notes] == [True] * noted


@pytest.mark.parametrize(
    "text, words",
    [
        (FULL.replace("a,4", "a,21"), "line 3: score of a is 21, expected 0 to 20"),
        (FULL.replace("a,4", "a,-4"), "line 3: score of a is -4, expected 0 to 20"),
        ("n_l,MME/Overall\n1,2801\n", "line 2: score of MME/Overall is 2801"),
        ("n_l,POPE/acc\n1,-1\n", "line 2: score of POPE/acc is -1, expected 0 to 100"),
        ("n_l,MMStar/Overall\n1,100.1\n", "is 100.1, expected 0 to 100"),
        (
            FULL.replace("0.25,20", "0.25,100"),
            "line 3: upper of a is 100, but 20 at t.csv, line 2",
        ),
    ],
)
def test_scores_off_their_scale_are_refused(text, words):
    with pytest.raises(ScoresError, match=words):
        read(text)


def test_zeros_stay_in_and_rounding_is_forgiven():
    scores = read("n_l,POPE/acc,mine\n1,0,-3\n2,100.00000000000001,0\n")
    assert scores.of("POPE/acc", "").score.tolist() == [0.0, 100.00000000000001]
    assert scores.of("mine", "").score.tolist() == [-3.0, 0.0]


def test_a_table_of_excluded_scores_only_is_refused():
    with pytest.raises(ScoresError, match="no score that can be used: t.csv, line 2"):
        read("n_l,a\n1,\n2,nan\n")


def test_leaving_out_some_m_is_recorded():
    scores = read(
        "inputs,n_l,metric,score,n_items\nvqq,1,a,1,5\nvqq,8,a,2.5,5\nvq,8,a,3,5\n"
        "vqq,8,b,4,5\n"
    )
    less = without(scores, "a", [8])
    assert less.of("a", "vqq").m.tolist() == [1]
    assert less.of("a", "vqq").n_items.tolist() == [5]
    assert less.of("a", "vq") is None  # nothing of it is left
    assert less.of("b", "vqq").m.tolist() == [8]
    assert [tuple(one[:5]) for one in less.excluded] == [
        ("vqq", "a", 8, "2.5", "asked for"),
        ("vq", "a", 8, "3", "asked for"),
    ]
    assert scores.excluded == () and len(scores.of("a", "vqq").m) == 2
    with pytest.raises(ScoresError, match=r"no metric 'z', expected one of a, b"):
        without(scores, "z", [8])
    with pytest.raises(ScoresError, match="no score at M = 9.*expected M of 1, 8"):
        without(scores, "a", [8, 9])


def test_models_go_with_folders_only(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TIDY)
    with pytest.raises(ScoresError, match="--model mine: no such model"):
        read_scores([path], models={"mine": (8, "")})


def test_reading_needs_no_device():
    code = "import sys, vtscale_jax.scaling.reading, vtscale_jax.scaling.published\n"
    code += "print(sorted({'jax', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    child = subprocess.run(run, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
