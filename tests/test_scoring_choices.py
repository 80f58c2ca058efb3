"""Multiple choice: which option is read, by which version, and the table of shares."""

import math
import string

import numpy as np
import pandas as pd
import pytest

from vtscale_jax.eval.scoring.multiple_choice import infer, named_letter, named_text
from vtscale_jax.eval.scoring.score import score
from vtscale_jax.eval.scoring.verdicts import ScoringError

VERSIONS = ("paper", "current")
ANIMALS = {"A": "cat", "B": "dog", "C": "red car", "D": "bicycle"}
LONG = "x" * 400  # so that the limit of length is out of the way


@pytest.mark.parametrize("version", VERSIONS)
class TestLetter:
    @pytest.mark.parametrize("mark", ".()[],:;!*#{}")
    def test_marks_part_words(self, mark, version):
        assert named_letter(f"x{mark}B{mark}y", ANIMALS, version) == "B"

    @pytest.mark.parametrize(
        "said",
        [
            *("b", '"B"', "'B'", "<B>", "B/C", "B-x", "B?", "选B", "B。", "B_", "E"),
            *("AB", "", " "),
        ],
    )
    def test_not_recognised(self, said, version):
        assert named_letter(said, ANIMALS, version) is None

    @pytest.mark.parametrize("said", ["A", "B B", "the answer: C", "\tD\n", "B Z"])
    def test_recognised(self, said, version):
        letter = next(c for c in said if c in "ABCD")
        assert named_letter(said, ANIMALS, version) == letter

    def test_two_letters(self, version):
        assert named_letter("B or C", ANIMALS, version) is None
        assert infer("B or C", ANIMALS, version) is None

    def test_an_article_is_an_option(self, version):
        assert infer("A dog", ANIMALS, version) == "A"
        assert infer("a dog", ANIMALS, version) == "B"

    def test_z(self, version):
        assert named_letter("Z", ANIMALS, version) == "Z"
        assert named_letter("Z.", {}, version) == "Z"
        assert named_letter("z", ANIMALS, version) is None
        assert named_letter("A B Z", ANIMALS, version) is None
        # Z goes before the text of an option.
        assert infer("Z dog", ANIMALS, version) == "Z"

    @pytest.mark.parametrize(
        "refusal",
        [
            "Sorry, I can't help with images of people yet.",
            "I can't process this file.",
            "I'm sorry, but without the image provided",
            "Cannot determine the answer",
        ],
    )
    def test_refusals(self, refusal, version):
        assert infer(f"{refusal} B", ANIMALS, version) == "Z"
        assert infer(f"So: {refusal} dog", ANIMALS, version) == "Z"
        assert infer(f"{refusal.upper()} B", ANIMALS, version) == "B"

    def test_a_failed_call_is_no_refusal(self, version):
        failed = "Failed to obtain answer via API"
        assert named_letter(f"{failed}. B", ANIMALS, version) is None
        assert (
            named_letter(f"Cannot determine the answer {failed}", {}, version) is None
        )
        # The option's text may still be found, as in VLMEvalKit.
        choices = {**ANIMALS, "C": LONG}
        assert infer(f"{failed} answer is A dog", choices, version) == "B"

    def test_letters_are_those_of_the_row(self, version):
        assert named_letter("E", {**ANIMALS, "E": "x"}, version) == "E"
        assert named_letter("C or A", {"A": 1, "B": 2}, version) == "A"


class TestLetterOfCurrent:
    @pytest.mark.parametrize("after", range(7))
    def test_among_the_last_four_words(self, after):
        said = "so B" + " x" * after
        assert named_letter(said, ANIMALS, "paper") == "B"
        expected = "B" if after < 4 else None
        assert named_letter(said, ANIMALS, "current") == expected

    def test_the_first_occurrence_counts(self):
        said = "B is what I say now B"
        assert named_letter(said, ANIMALS, "paper") == "B"
        assert named_letter(said, ANIMALS, "current") is None

    @pytest.mark.parametrize(
        "said, letter",
        [
            ("the answer is b", "B"),
            ("The ANSWER IS C because of the many wheels it has", "C"),
            ("the correct answer  is\n**d**, not me", "D"),
            ("answer is B and not A", "B"),  # two letters
            ("answer is a or b", "A"),  # the first
            ("the answer is a dog", "A"),  # nothing need follow the letter
            ("the answer is bread", "B"),
            ("answers is b", None),
            ("the answer is: b", None),
            ("the answer is (b", None),
            ("the answer is e", None),
            ("my answers are b", None),
            ("the answeris b", None),
            ("I think this answer is b or so, as I said before", "B"),
        ],
    )
    def test_answer_is(self, said, letter):
        choices = {**ANIMALS, "E": "tree"}
        assert named_letter(said, choices, "current") == letter
        if said == said.lower():
            assert named_letter(said, choices, "paper") is None

    def test_answer_is_a_letter_of_the_row(self):
        assert named_letter("answer is d", {"A": "x", "B": "y"}, "current") is None

    def test_z_goes_before_answer_is(self):
        assert named_letter("Z the answer is b", ANIMALS, "current") == "Z"

    def test_text_comes_after_answer_is(self):
        said = "the answer is b: bicycle"
        assert infer(said, ANIMALS, "paper") == "D"
        assert infer(said, ANIMALS, "current") == "B"


@pytest.mark.parametrize("version", VERSIONS)
class TestText:
    def test_one_option_in_any_case(self, version):
        assert named_text("A RED CAR!", ANIMALS, version) == "C"
        assert named_text("redcar", ANIMALS, version) is None
        assert named_text("the dog", {**ANIMALS, "B": "DOG"}, version) == "B"

    def test_options_within_options(self, version):
        choices = {"A": "cat", "B": "cat and dog"}
        assert named_text("cat", choices, version) == "A"
        assert named_text("cat and dog", choices, version) is None

    def test_within_words(self, version):
        assert named_text("nothing", {"A": "Yes", "B": "No"}, version) == "B"
        assert named_text("10", {"A": "1", "B": "10"}, version) is None
        assert infer("A. 1", {"A": "1", "B": "10"}, version) == "A"
        assert infer("A. 10", {"A": "1", "B": "10"}, version) == "A"

    def test_numbers_as_text(self, version):
        choices = {"A": 3.0, "B": 40.0, "C": 7}
        assert named_text("3.0", choices, version) == "A"
        assert named_text("3", choices, version) is None
        assert named_text("7", choices, version) == "C"

    def test_no_options(self, version):
        assert infer("anything", {}, version) is None


def test_length_of_text():
    choices = {"A": "cat", "B": "dog"}  # 6 letters in all
    assert named_text("x" * 9 + "cat", choices, "current") == "A"
    assert named_text("x" * 10 + "cat", choices, "current") is None
    assert named_text("x" * 10 + "cat", choices, "paper") == "A"
    # Numbers count as they are written.
    assert named_text("x" * 9 + "3.0", {"A": 3.0, "B": 4.5}, "current") == "A"
    assert named_text("x" * 10 + "3.0", {"A": 3.0, "B": 4.5}, "current") is None


def test_letter_goes_before_text():
    assert infer("C. cat", ANIMALS, "paper") == "C"
    assert infer("B-dog", ANIMALS, "paper") == "B"


def rows_of(**columns):
    size = len(columns["answer"])
    options = {"A": "cat", "B": "dog", "C": "red car"}
    return pd.DataFrame({"index": range(size), **options, **columns})


class TestShares:
    def test_no_split(self):
        scored = score("MMStar", rows_of(answer=list("AAB")), list("ABB"), "paper")
        assert scored.scores == [{"split": "none", "Overall": pytest.approx(2 / 3)}]
        assert [item.score for item in scored.items] == [1, 0, 1]

    def test_unread_is_z_and_counted(self):
        scored = score("MMStar", rows_of(answer=list("AZ")), ["hm", "hm"], "paper")
        assert [item.extracted for item in scored.items] == ["Z", "Z"]
        assert scored.failures == 2

    def test_order_of_columns(self):
        rows = rows_of(
            answer=list("AAAA"),
            category=["z", "a", "a", "z"],
            **{"l2-category": ["m", "b", "m", "b"]},
            split=["two", "one", "one", "two"],
        )
        scored = score("SEEDBench2_Plus", rows, list("ABAA"), "paper")
        first, second = scored.scores
        assert list(first) == ["split", "Overall", "b", "m", "a", "z"]
        assert first["split"] == "one" and second["split"] == "two"
        assert first["Overall"] == 0.5 and second["Overall"] == 1
        assert (first["b"], first["m"], first["a"]) == (0, 1, 0.5)
        assert math.isnan(first["z"])
        assert math.isnan(scored.intervals[0]["z"][0])
        assert (second["b"], second["m"], second["z"]) == (1, 1, 1)

    def test_equal_names_overwrite(self):
        rows = rows_of(answer=list("AA"), category=["x", "y"])
        rows["l2-category"] = ["q", "x"]
        (row,) = score("ScienceQA_TEST", rows, list("AB"), "paper").scores
        # x stands where the l2-category x did, with the number of the category x.
        assert list(row.items())[2:] == [("q", 1), ("x", 1), ("y", 0)]

    def test_mmbench_names_are_short(self):
        rows = rows_of(answer=list("AA"), category=["logic_reasoning", "logic"])
        (row,) = score("AI2D_TEST", rows, list("AB"), "paper").scores
        assert row == {"split": "none", "Overall": 0.5, "logic": 0, "LR": 1}

    def test_names_are_lower_cased_but_for_letters(self):
        rows = rows_of(answer=list("AB")).rename(columns={"answer": "Answer"})
        rows = rows.assign(Category=["x", "y"], L2_Category="q")
        with pytest.raises(ScoringError, match="lacks the column answer"):
            score("MMStar", rows, list("AA"), "paper")
        rows = rows.rename(columns={"Answer": "answer"})
        (row,) = score("MMStar", rows, list("AA"), "paper").scores
        assert row == {"split": "none", "Overall": 0.5, "x": 1, "y": 0}

    def test_columns_that_differ_in_case(self):
        rows = rows_of(answer=list("A"), category=["x"]).assign(Category="y")
        with pytest.raises(ScoringError, match="columns category, Category are one"):
            score("MMStar", rows, ["A"], "paper")

    def test_options_are_those_of_the_row(self):
        rows = rows_of(answer=list("CC")).astype({"C": object})
        rows.loc[1, "C"] = np.nan
        scored = score("RealWorldQA", rows, ["C", "C"], "paper")
        assert [item.extracted for item in scored.items] == ["C", "Z"]
        assert scored.items[1].detail == {"answer": "C", "choices": ["A", "B"]}

    def test_any_capital_letter(self):
        rows = rows_of(answer=["Q"]).assign(Q="last", **{"Ä": "no", "QQ": "no"})
        scored = score("MMStar", rows, ["last"], "paper")
        assert scored.items[0].detail["choices"] == ["A", "B", "C", "Q"]
        rows = rows[rows.columns[::-1]]  # by name, not by place
        scored = score("MMStar", rows, ["last"], "paper")
        assert scored.items[0].detail["choices"] == ["A", "B", "C", "Q"]
        assert scored.items[0].extracted == "Q"
        assert set("ABCQ") < set(string.ascii_uppercase)

    def test_numbers_are_those_of_the_workbook(self):
        """A whole column of whole floats loses its .0; one with a gap keeps it."""
        rows = rows_of(answer=["A", "A"]).assign(A=[3.0, 4.0], B=[5.0, np.nan])
        scored = score("MMStar", rows, ["5.0 or 3", "4"], "paper")
        assert [item.extracted for item in scored.items] == ["Z", "A"]

    def test_a_category_that_is_missing(self):
        rows = rows_of(answer=list("AA"), category=["x", None])
        with pytest.raises(ScoringError, match=r"row 2 \(index 1\): category is miss"):
            score("MMStar", rows, list("AA"), "paper")
        rows["category"] = np.nan
        (row,) = score("MMStar", rows, list("AA"), "paper").scores
        assert row == {"split": "none", "Overall": 1}
        rows["split"] = np.nan
        with pytest.raises(ScoringError, match="split is missing"):
            score("MMStar", rows, list("AA"), "paper")
