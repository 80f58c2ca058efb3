"""Yes/no benchmarks: the rules of punctuation and reading, and what is made of them."""

import math

import numpy as np
import pandas as pd
import pytest

from vtscale_jax.eval.scoring.mme import TOTALS, score_mme
from vtscale_jax.eval.scoring.punctuation import MARKS, without_punctuation
from vtscale_jax.eval.scoring.score import score
from vtscale_jax.eval.scoring.verdicts import ScoringError
from vtscale_jax.eval.scoring.yes_no import yes_or_no

VERSIONS = ("paper", "current")
CATEGORIES = [name for names in TOTALS.values() for name in names]


class TestPunctuation:
    def test_the_marks_are_the_21(self):
        assert len(set(MARKS)) == len(MARKS) == 21

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_goes_or_becomes_a_space(self, mark, version):
        apart = without_punctuation(f"a{mark}b", version)
        assert apart == "a b"
        # Beside a space anywhere, on either side, it goes everywhere.
        assert without_punctuation(f"a{mark}b{mark} c", version) == "ab c"
        assert without_punctuation(f"a{mark}b {mark}c", version) == "ab c"
        # Other white space is no space.
        assert without_punctuation(f"a{mark}\nb", version) == "a \nb"
        # Digits with a comma anywhere: all marks go.
        assert without_punctuation(f"a{mark}b 1,2", version) == "ab 12"
        assert without_punctuation(f"a{mark}b 1,c", version) != "ab 1c"

    @pytest.mark.parametrize("version", VERSIONS)
    def test_one_mark_does_not_decide_for_another(self, version):
        assert without_punctuation("a, b(c", version) == "a b c"
        # The space that a mark became is not looked at: the text before is.
        assert without_punctuation("a;/b", version) == "a  b"

    @pytest.mark.parametrize("version", VERSIONS)
    def test_others_stay(self, version):
        kept = "a:b * 'c' …、。｜# $ % & ^ ~ |"
        assert without_punctuation(kept, version) == kept

    @pytest.mark.parametrize(
        "text, paper, current",
        [
            ("a.b", "ab", "ab"),
            ("a. b.", "a b", "a b"),
            (".5", ".5", ".5"),
            ("5.", "5", "5."),
            ("5.x", "5x", "5.x"),
            ("1.5", "1.5", "1.5"),
            ("x.5", "x.5", "x.5"),
            ("..", "", ""),
            ("3..", "3", "3."),
            ("٣.x", "٣x", "٣.x"),  # digits of all alphabets
        ],
    )
    def test_periods(self, text, paper, current):
        assert without_punctuation(text, "paper") == paper
        assert without_punctuation(text, "current") == current

    @pytest.mark.parametrize("version", VERSIONS)
    def test_at_most_32_periods_go(self, version):
        assert without_punctuation("x." * 40, version) == "x" * 32 + "x." * 8
        # Those that stay for their digit are not counted.
        text = "y.1" * 5 + "x." * 33
        assert without_punctuation(text, version).count(".") == 6

    def test_the_examples_of_the_module(self):
        for text, expected in (
            ("Yes,there", "Yes there"),
            ("yes(ok)", "yes ok "),
            ("Yes,there, (ok)", "Yesthere ok "),
            ("1,000 (ok)", "1000 ok"),
        ):
            assert without_punctuation(text, "paper") == expected


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "said, expected",
    [
        *[("Yes", "Yes"), ("NO", "No"), ("yes.", "Yes"), ("It is. No!", "No")],
        *[("no no", "No"), ("\tyes\n", "Yes"), ("Yes,there", "Yes")],
        *[("Yes and no", "Unknown"), ("", "Unknown"), ("nan", "Unknown")],
        *[("Answer:Yes", "Unknown"), ("Yes:", "Unknown"), ("**Yes**", "Unknown")],
        *[("'Yes'", "Unknown"), ("Yes.No", "Unknown"), ("No.1", "Unknown")],
        *[("Nope", "Unknown"), ("True", "Unknown"), ("not", "Unknown")],
        ("Yes,there is, ok", "Unknown"),
        *[("Answer: Yes", "Yes"), ("** Yes **", "Yes"), ("no-one", "No")],
        *[("a no-one - b", "Unknown"), ("Yes, 1,000", "Yes")],
    ],
)
def test_yes_or_no(said, expected, version):
    assert yes_or_no(said, version) == expected


def mme_rows(change=()):
    """Two questions for each of two images of all categories; all answers Yes."""
    rows = [
        {"index": 4 * c + 2 * i + q, "category": name, "image_path": f"{i}.jpg"}
        for c, name in enumerate(CATEGORIES)
        for i in (0, 1)
        for q in (0, 1)
    ]
    return pd.DataFrame([{**row, "answer": "Yes"} for row in rows] + list(change))


def row_of(scored, split="Overall"):
    (row,) = [one for one in scored.scores if one["split"] == split]
    return row


class TestMME:
    def test_all_right(self):
        rows = mme_rows()
        (row,) = score("MME", rows, ["yes"] * len(rows), "paper").scores
        assert row["perception"] == 2000 and row["reasoning"] == 800
        assert list(row) == ["perception", "reasoning", *CATEGORIES]

    def test_one_question_wrong(self):
        rows = mme_rows()
        said = ["Yes"] * len(rows)
        said[1] = "No"  # second question of the first image of OCR
        scored = score("MME", rows, said, "paper")
        (row,) = scored.scores
        assert row["OCR"] == 75 + 50
        assert row["perception"] == 2000 - 75 and row["reasoning"] == 800
        assert scored.failures == 0

    def test_unknown_is_wrong_and_counted(self):
        rows = mme_rows()
        rows.loc[0, "answer"] = "Unknown"  # exactly what is read counts
        said = ["maybe"] * 2 + ["Yes"] * (len(rows) - 2)
        scored = score("MME", rows, said, "paper")
        assert scored.failures == 2
        assert scored.scores[0]["OCR"] == 75 + 50

    def test_a_third_question_counts_in_acc_only(self):
        extra = {"category": "OCR", "image_path": "0.jpg", "answer": "Yes"}
        rows = mme_rows([{"index": 900, **extra}])
        said = ["Yes"] * (len(rows) - 1) + ["No"]
        (row,) = score("MME", rows, said, "paper").scores
        assert row["OCR"] == pytest.approx(100 * 4 / 5 + 100)

    def test_images_of_two_categories_are_two(self):
        """0.jpg is in every category of these rows; each has its own pair."""
        rows = mme_rows()
        said = ["Yes", "No", *["Yes"] * (len(rows) - 2)]
        (row,) = score("MME", rows, said, "paper").scores
        assert row["artwork"] == 200

    def test_order_of_rows_sets_the_pair_and_the_columns(self):
        rows = mme_rows().iloc[::-1]
        (row,) = score("MME", rows, ["Yes"] * len(rows), "paper").scores
        assert list(row)[2:] == CATEGORIES[::-1]

    def test_another_category_is_shown_but_in_no_total(self):
        new = [
            {"index": 900 + i, "category": "new", "image_path": "x", "answer": "Yes"}
            for i in (0, 1)
        ]
        rows = mme_rows(new)
        (row,) = score("MME", rows, ["Yes"] * len(rows), "paper").scores
        assert row["new"] == 200 and row["perception"] == 2000

    def test_needs_all_categories(self):
        rows = mme_rows()
        rows = rows[rows["category"] != "posters"]
        with pytest.raises(ScoringError, match="category posters; the totals need"):
            score("MME", rows, ["Yes"] * len(rows), "paper")

    def test_needs_two_questions_of_an_image(self):
        rows = mme_rows([{"index": 77, "category": "OCR", "image_path": "z"}])
        with pytest.raises(ScoringError, match=r"row 57 \(index 77\).*'z' in OCR"):
            score("MME", rows, ["Yes"] * len(rows), "paper")

    def test_needs_the_image(self):
        rows = mme_rows()
        rows.loc[3, "image_path"] = np.nan
        with pytest.raises(ScoringError, match=r"row 4 \(index 3\): image_path"):
            score_mme("MME", rows, ["Yes"] * len(rows), "paper")


HALLUSION = pd.DataFrame(
    [
        # l2-category VD_a: set 0 has figures 0, 1 and questions 0, 1
        *[("VD_a_x_0_0_0", "VD", "VD_a"), ("VD_a_x_0_0_1", "VD", "VD_a")],
        *[("VD_a_x_0_1_0", "VD", "VD_a"), ("VD_a_x_0_1_1", "VD", "VD_a")],
        # set 1: another group for the same figure and question numbers
        ("VD_a_x_1_0_0", "VD", "VD_a"),
        # another l2-category with set 0, figure 0, question 0
        ("VS_b_y_0_0_0", "VS", "VS_b"),
    ],
    columns=["index", "category", "l2-category"],
).assign(answer="No")


class TestHallusion:
    def scored(self, wrong, rows=HALLUSION):
        said = ["yes" if place in wrong else "no" for place in range(len(rows))]
        return score("HallusionBench", rows, said, "paper")

    def test_groups(self):
        # Wrong: question 0 on figure 1 of set 0.
        scored = self.scored({2})
        row = row_of(scored)
        assert row["aAcc"] == pytest.approx(100 * 5 / 6)
        # Figures: a00, a01 (wrong), a10, b00; questions: a00 (wrong), a01, a10, b00
        assert row["fAcc"] == row["qAcc"] == 75
        # Both rows of figure 1 wrong: one figure, but two questions.
        row = row_of(self.scored({2, 3}))
        assert (row["fAcc"], row["qAcc"]) == (75, 50)
        row = row_of(self.scored({0, 2}))
        assert (row["fAcc"], row["qAcc"]) == (50, 75)

    def test_rows_are_categories_and_l2_categories_sorted(self):
        scored = self.scored({5})
        assert [row["split"] for row in scored.scores] == [
            *("Overall", "VD", "VD_a", "VS", "VS_b")
        ]
        assert list(scored.scores[0]) == ["split", "aAcc", "fAcc", "qAcc"]
        assert row_of(scored, "VD")["aAcc"] == row_of(scored, "VD_a")["qAcc"] == 100
        assert row_of(scored, "VS")["fAcc"] == 0

    def test_category_may_lack(self):
        scored = self.scored(set(), HALLUSION.drop(columns="category"))
        assert [row["split"] for row in scored.scores] == ["Overall", "VD_a", "VS_b"]

    def test_unknown_is_wrong(self):
        scored = score("HallusionBench", HALLUSION, ["maybe"] * 6, "current")
        assert scored.failures == 6 and row_of(scored)["aAcc"] == 0

    def test_index_of_another_form(self):
        rows = HALLUSION.copy()
        rows.loc[1, "index"] = "VD_a_x_0_0"
        with pytest.raises(ScoringError, match=r"row 2 \(index VD_a_x_0_0\).* 5 parts"):
            self.scored(set(), rows)

    def test_sets_are_drawn_whole(self):
        """Of one set, every draw is the same; of two, not."""
        one = HALLUSION[:4]
        ends = self.scored({0}, one).intervals
        assert row_of(self.scored({0}, one))["aAcc"] == 75
        assert ends[0]["aAcc"] == (75, 75)
        low, high = self.scored({4, 5}).intervals[0]["aAcc"]
        assert low < 50 < high
        # Larger sets bring more rows and groups into a draw: shares, not sums.
        for row in self.scored(set()).intervals:
            assert row["aAcc"] == row["fAcc"] == row["qAcc"] == (100, 100)


def pope(truth, said, categories, version="paper"):
    rows = pd.DataFrame(
        {"index": range(1, len(truth) + 1), "answer": truth, "category": categories}
    )
    return score("POPE", rows, said, version)


class TestPOPE:
    def test_unknown_is_negative_and_wrong(self):
        scored = pope(
            ["Yes", "Yes", "No", "No", "No"],
            ["yes", "hm", "hm", "no", "yes"],
            ["random"] * 5,
        )
        row = row_of(scored)
        # tp 1, fp 1, fn 1, tn 2; but only two answers are right.
        assert row == {
            "split": "Overall",
            "Overall": 50,
            "acc": 40,
            "precision": 50,
            "recall": 50,
        }
        assert scored.failures == 2 and len(scored.items) == 5

    def test_rows_repeat_for_each_category(self):
        scored = pope(
            ["Yes", "Yes", "No"],
            ["yes", "no", "no"],
            ["adversarial,popular,random", "random", "popular"],
        )
        assert [row["split"] for row in scored.scores] == [
            *("Overall", "adversarial", "popular", "random")
        ]
        row = row_of(scored)
        assert row["acc"] == 80  # of 5 repeated rows
        assert row["recall"] == 75 and row["precision"] == 100
        assert row["Overall"] == pytest.approx(100 * 2 * 0.75 / 1.75)
        assert row_of(scored, "random")["acc"] == 50
        assert row_of(scored, "adversarial")["Overall"] == 100

    def test_what_is_undefined_is_0(self):
        row = row_of(pope(["No", "No"], ["no", "no"], ["random"] * 2))
        assert (row["precision"], row["recall"], row["Overall"]) == (0, 0, 0)
        assert row["acc"] == 100

    def test_without_category_a_row_counts_in_overall_alone(self):
        scored = pope(["Yes", "Yes"], ["yes", "no"], ["random", np.nan])
        assert row_of(scored)["acc"] == 50 and row_of(scored, "random")["acc"] == 100

    def test_truth_is_yes_exactly(self):
        scored = pope(["yes", "Yes"], ["yes", "yes"], ["random"] * 2)
        assert row_of(scored)["precision"] == 50 and row_of(scored)["acc"] == 50

    def test_names_keep_their_spaces(self):
        scored = pope(["Yes"], ["yes"], ["a, b"])
        assert [row["split"] for row in scored.scores] == [" b", "Overall", "a"]

    def test_a_category_that_is_no_text(self):
        with pytest.raises(ScoringError, match=r"row 1 \(index 1\): category is 3"):
            pope(["Yes"], ["yes"], [3])

    def test_intervals_of_single_and_repeated_rows(self):
        """Wilson's where a row counts once; where it counts thrice it is still one."""
        truth, said = ["Yes"] * 10 + ["No"] * 10, ["yes"] * 10 + ["no"] * 9 + ["yes"]
        once = pope(truth, said, ["random"] * 20).intervals
        assert once[0] == {**once[1], "split": "Overall"}
        p, z2 = 0.95, 1.959963984540054**2 / 20
        half = math.sqrt(z2 * p * (1 - p) + z2 * z2 / 4)
        assert once[0]["acc"] == pytest.approx(
            [100 * (p + z2 / 2 - half) / (1 + z2), 100 * (p + z2 / 2 + half) / (1 + z2)]
        )
        assert once[0]["recall"][1] == 100 and once[0]["recall"][0] < 75
        thrice = pope(truth, said, ["a,b,c"] * 20).intervals[0]
        assert row_of(pope(truth, said, ["a,b,c"] * 20))["acc"] == 95
        # A bootstrap of 20, not of 60: its low end is 17/20 or 16/20.
        assert thrice["acc"][0] in (80, 85) and thrice["acc"][1] == 100

    def test_nothing_said_yes_tells_nothing_of_precision(self):
        ends = pope(["Yes", "No"], ["no", "no"], ["random"] * 2).intervals
        assert ends[0]["precision"] == (0, 100) and ends[0]["Overall"] == (0, 0)
