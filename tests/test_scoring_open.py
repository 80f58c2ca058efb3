"""Open answers: OCRVQA, ChartQA, TextVQA and OCRBench, rule by rule."""

import numpy as np
import pandas as pd
import pytest

from vtscale_jax.eval.scoring.ocrbench import FORMULAS, SUMS, contains
from vtscale_jax.eval.scoring.open_answers import (
    agreement,
    contractions,
    normal,
    number,
    relaxed,
    same_text,
)
from vtscale_jax.eval.scoring.score import score
from vtscale_jax.eval.scoring.verdicts import ScoringError

VERSIONS = ("paper", "current")


def one(task, answer, said, version="paper"):
    """The verdict on one answer."""
    rows = pd.DataFrame({"index": [0], "answer": [answer]})
    return score(task, rows, [said], version).items[0]


@pytest.mark.parametrize(
    "said, reference, right",
    [
        *[(" yes\n", "Yes", 1), ("Yes", " yes ", 1), ("Yes.", "Yes", 0)],
        *[("5", "5.0", 0), ("a b", "a  b", 0), ("", " ", 1)],
    ],
)
def test_same_text(said, reference, right):
    assert same_text(said, reference) == right


class TestNumber:
    @pytest.mark.parametrize(
        "text, value",
        [
            *[("14", 14), ("1_000", 1000), (".5", 0.5), ("3e2", 300), (" 5 ", 5)],
            *[("-1.5", -1.5), ("inf", np.inf), ("50%", 0.5), ("7%%", 0.07)],
            *[("10 %", 0.1), ("１４", 14), ("1e3%", 10)],
        ],
    )
    def test_numbers(self, text, value):
        assert number(text) == pytest.approx(value)

    @pytest.mark.parametrize(
        "text", ["1,234", "$5", "14 million", "", "%", "5 kg", "0x10", "1/2", "5% "]
    )
    def test_others(self, text):
        assert number(text) is None


class TestRelaxed:
    @pytest.mark.parametrize(
        "said, reference, paper, current",
        [
            # 5 % of the prediction, or of the reference
            ("95", "100", 0, 1),
            ("95.24", "100", 1, 1),
            ("94.9", "100", 0, 0),
            ("105", "100", 1, 1),
            ("105.26", "100", 1, 0),
            ("105.27", "100", 0, 0),
            ("-95", "-100", 0, 1),
            ("-100", "100", 0, 0),
            # zero is a text, on the side that divides
            ("0", "0.0", 0, 0),
            ("0", "0", 1, 1),
            ("0.0", "0.001", 0, 0),
            ("0", "5", 0, 0),
            ("5", "0", 0, 0),
            # text in any case; only the prediction is stripped
            ("YES ", "yes", 1, 1),
            ("yes", "yes ", 0, 0),
            ("Yes.", "Yes", 0, 0),
            ("5", "five", 0, 0),
            ("five", "5", 0, 0),
            # years are numbers, percent signs hundredths
            ("2010", "1915", 1, 1),
            ("14%", "14", 0, 0),
            ("14%", "0.14", 1, 1),
            ("10 %", "10%", 1, 1),
            # neither is near anything, nor itself
            ("inf", "inf", 0, 0),
            ("nan", "nan", 0, 0),
            ("nan", "14", 0, 0),
        ],
    )
    def test_both_versions(self, said, reference, paper, current):
        assert relaxed(said, reference, "paper") == paper
        assert relaxed(said, reference, "current") == current

    def test_zero_is_compared_as_text_on_its_side_only(self):
        """A division by the other side's 0 must not happen; "0" is 0 % of nothing."""
        assert relaxed("-0.0", "0", "paper") == relaxed("0", "-0.0", "current") == 0
        # paper divides by the prediction 5, current by the reference 5
        assert relaxed("0.0", "0%", "current") == relaxed("0%", "0.0", "paper") == 0


class TestReferences:
    def test_a_list_of_literals_is_alternatives(self):
        assert one("ChartQA_TEST", "[2015, 3]", "3").detail["match"] == [0, 1]
        assert one("ChartQA_TEST", "[2015, 3]", "3").score == 1
        assert one("ChartQA_TEST", "[2015, 3]", "[2015, 3]").score == 0
        assert one("OCRVQA_TESTCORE", "['a', \"b's\"]", "B'S").score == 1
        assert one("OCRVQA_TESTCORE", " ['a', 7]", "7").score == 1

    @pytest.mark.parametrize(
        "cell", ["[Japan, Sweden]", "('a', 'b')", "{'a'}", "'a'", "[1", "[1 + 1]", "5"]
    )
    def test_all_else_is_one_text(self, cell):
        item = one("OCRVQA_TESTCORE", cell, cell.upper())
        assert item.score == 1 and item.detail["gt"] == [cell]
        assert one("OCRVQA_TESTCORE", cell, "a").score == 0

    def test_a_cell_is_never_run(self, tmp_path):
        file = tmp_path / "made"
        cell = f"[open({str(file)!r}, 'w').close()]"
        assert one("ChartQA_TEST", cell, "x").detail["gt"] == [cell]
        assert not file.exists()

    def test_backslashes_give_no_warning(self):
        assert one("OCRVQA_TESTCORE", r"['\d', 'b']", "\\D").score == 1

    @pytest.mark.parametrize(
        "cell",
        ["[" * 5000 + "]" * 5000, "[" + "-" * 5000 + "1]", "[" + "1+" * 9000 + "1]"],
    )
    def test_cells_too_deep_are_texts(self, cell):
        assert one("OCRVQA_TESTCORE", cell, cell).score == 1

    def test_numbers_as_the_workbook_has_them(self):
        rows = pd.DataFrame({"index": [0, 1], "answer": [5.0, 7.0]})
        scored = score("OCRVQA_TESTCORE", rows, ["5", "7.0"], "paper")
        assert [item.score for item in scored.items] == [1, 0]
        rows["answer"] = [5.0, 7.5]
        scored = score("OCRVQA_TESTCORE", rows, ["5", "7.5"], "paper")
        assert [item.score for item in scored.items] == [0, 1]

    def test_a_missing_answer_is_the_text_nan(self):
        rows = pd.DataFrame({"index": [0, 1], "answer": ["a", np.nan]})
        scored = score("OCRVQA_TESTCORE", rows, ["nan", "nan"], "paper")
        assert [item.score for item in scored.items] == [0, 1]

    def test_an_empty_list(self):
        with pytest.raises(ScoringError, match=r"row 1 \(index 0\).*empty list"):
            one("TextVQA_VAL", "[]", "x")


class TestNormal:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("none", "0"),
            ("Zero one TWO three four five", "0 1 2 3 4 5"),
            ("six seven eight nine ten eleven", "6 7 8 9 10 eleven"),
            ("The man, an apple a day", "man apple day"),
            ("dont", "don't"),
            ("Im", "im"),
            ("somebody'd", "somebodyd"),
            ("a\nb\tc", "b c"),
            ("x\rthe\ry", "x y"),
            ("  x  ", "x"),
            ("x, \n", "x"),
            ("\nx,y", "x y"),  # stripped before the rule looks for spaces
            ("x,\ty z,w", "x y zw"),  # tabs are spaces for the rule, and newlines
            ("x,\ny z,w", "x y zw"),
            ("x,\ry z,w", "x y z w"),
            ("theone", "theone"),
        ],
    )
    def test_words(self, text, expected):
        assert normal(text, "paper") == normal(text, "current") == expected

    def test_periods_by_version(self):
        assert normal("No. 5.", "paper") == "no 5"
        assert normal("No. 5.", "current") == "no 5."

    def test_stripping_comes_before_punctuation(self):
        """At its end the comma would stand beside a space, and go everywhere."""
        assert normal("a,b,\t", "paper") == "b"
        assert normal("ab,cd ,", "paper") == "abcd"

    def test_a_word_of_number_is_no_contraction(self):
        assert len(contractions()) == 120
        for word, full in contractions().items():
            if word == word.lower() and not set(word) & set("_-"):
                assert normal(word, "paper") == full
            elif word != word.lower():
                assert normal(word, "paper") != full


class TestAgreement:
    @pytest.mark.parametrize(
        "equal, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
    )
    def test_of_ten(self, equal, expected):
        answer = repr(["x"] * equal + ["y"] * (10 - equal))
        assert one("TextVQA_VAL", answer, "x").score == pytest.approx(expected)

    def test_of_one(self):
        assert one("TextVQA_VAL", "['x']", "x").score == 0
        assert one("TextVQA_VAL", "x", "x").score == 0

    def test_each_reference_sees_the_others(self):
        assert agreement("x", ["x", "y", "x"]) == [1 / 3, 2 / 3, 1 / 3]

    def test_prediction_and_references_are_normalised(self):
        item = one("TextVQA_VAL", "['The Cat!', 'cat', 'two', 'cat']", "a CAT")
        assert item.detail == {
            "gt": ["cat", "cat", "2", "cat"],
            "pred": "cat",
            "match": pytest.approx([2 / 3, 2 / 3, 1, 2 / 3]),
        }
        assert item.extracted == "cat"


class TestMeans:
    ROWS = pd.DataFrame({"index": range(4), "answer": list("aabb")})

    def test_splits_and_overall(self):
        rows = self.ROWS.assign(split=["u", "t", "t", "t"], category="c")
        (row,) = score("ChartQA_TEST", rows, list("axbb"), "paper").scores
        # The mean of all rows, not of the splits; and no categories.
        assert list(row.items()) == [
            ("t", pytest.approx(200 / 3)),
            ("u", 100),
            ("Overall", 75),
        ]

    def test_categories_without_splits(self):
        rows = self.ROWS.assign(category=["z", "k", "z", "z"])
        for task in ("OCRVQA_TESTCORE", "ChartQA_TEST"):
            (row,) = score(task, rows, list("axbb"), "paper").scores
            assert list(row.items()) == [("Overall", 75), ("k", 0), ("z", 100)]
            # A column with nothing in it is none; a gap in it is an error.
            empty = rows.assign(category=np.nan)
            assert score(task, empty, list("axbb"), "paper").scores == [{"Overall": 75}]
            gap = rows.assign(category=["z", None, "z", "z"])
            with pytest.raises(ScoringError, match="row 2 .*category is missing"):
                score(task, gap, list("axbb"), "paper")

    def test_nothing_is_rounded(self):
        (row,) = score("OCRVQA_TESTCORE", self.ROWS[:3], list("abb"), "paper").scores
        assert row == {"Overall": pytest.approx(200 / 3, abs=1e-12)}

    def test_no_answer_is_unreadable(self):
        assert score("OCRVQA_TESTCORE", self.ROWS, ["nan"] * 4, "paper").failures == 0


OCR_ROWS = pd.DataFrame(
    [
        (0, "Regular Text Recognition", "['Ab']"),
        (1, "Digit String Recognition", "['12', '13']"),
        (2, "Doc-oriented VQA", "['x y']"),
        (3, FORMULAS, r"['\\frac a b']"),
    ],
    columns=["index", "category", "answer"],
)


class TestOCRBench:
    def test_counts(self):
        said = ["cab", "no", "X\nY", r"\fraca b"]
        scored = score("OCRBench", OCR_ROWS, said, "paper")
        assert list(scored.scores.items()) == [
            ("Text Recognition", 1),
            ("Scene Text-centric VQA", 0),
            ("Doc-oriented VQA", 1),
            ("Key Information Extraction", 0),
            (FORMULAS, 1),
            ("Final Score", 3),
            ("Final Score Norm", 0.3),
        ]
        assert [item.score for item in scored.items] == [1, 0, 1, 1]
        assert scored.intervals["Scene Text-centric VQA"] == (0, 0)
        low, high = scored.intervals["Final Score"]
        assert 0 < low < 3 < high < 4
        assert scored.intervals["Final Score Norm"] == (low / 10, high / 10)

    def test_ten_categories_in_five_sums(self):
        assert list(map(len, SUMS.values())) == [6, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        "said, answers, category, hit",
        [
            ("The CAT sat", ["cat"], "x", True),
            ("c at", ["cat"], "x", False),
            ("a  b", ["a b"], "x", False),
            ("cat", [" Cat\n"], "x", True),
            ("a\nb", ["a b"], "x", True),
            ("a\tb", ["a b"], "x", False),
            ("a b", ["z", "b"], "x", True),
            ("", ["a"], "x", False),
            ("a", [""], "x", True),  # nothing is part of everything
            ("A B", ["ab"], FORMULAS, False),
            ("x A\n B", ["A B"], FORMULAS, True),
            ("x A\tB", ["A B"], FORMULAS, False),
            ("AB", [" A B "], FORMULAS, True),
        ],
    )
    def test_contains(self, said, answers, category, hit):
        assert contains(said, answers, category) is hit

    @pytest.mark.parametrize("answer", ["plain", "'a'", "[5]", "[]", "('a',)", "{}"])
    def test_answers_must_be_lists_of_texts(self, answer):
        rows = OCR_ROWS.assign(answer=["['a']", answer, "['a']", "['a']"])
        with pytest.raises(ScoringError, match=r"row 2 \(index 1\): answer is .*\['14"):
            score("OCRBench", rows, ["x"] * 4, "paper")

    def test_another_category_counts_nowhere_and_is_refused_when_hit(self):
        rows = OCR_ROWS.assign(category=[*OCR_ROWS["category"][:3], "new"])
        assert score("OCRBench", rows, ["cab"] * 4, "paper").scores["Final Score"] == 1
        with pytest.raises(ScoringError, match=r"row 4 \(index 3\): category is 'new'"):
            score("OCRBench", rows, [r"\frac a b"] * 4, "paper")
