"""Intervals of scores: known answers, coverage, and units that stay together."""

import inspect
import json

import numpy as np
import pandas as pd
import pytest

from vtscale_jax.eval.scoring import intervals as spread
from vtscale_jax.eval.scoring.intervals import (
    DRAWS,
    intervals,
    point,
    resampled,
    share_interval,
)
from vtscale_jax.eval.scoring.mme import TOTALS
from vtscale_jax.eval.scoring.score import SCORERS, score
from vtscale_jax.eval.scoring.verdicts import ScoringError, commit_name


def mean_of(values):
    values = np.array(values, dtype=float)
    return lambda weights: (weights @ values / weights.sum(1))[:, None]


class TestBootstrap:
    def test_weights_are_whole_and_sum_to_the_units(self):
        seen = []

        def metric(weights):
            seen.append(weights)
            return weights[:, :1]

        resampled(metric, 7)
        weights = np.concatenate(seen)
        assert weights.shape == (DRAWS, 7)
        assert (weights.sum(1) == 7).all() and (weights == weights.round()).all()
        # Each unit is drawn once on average, with the multinomial's variance.
        assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.1)
        assert weights.var(0) == pytest.approx(np.full(7, 6 / 7), rel=0.2)

    def test_all_weights_one_is_the_score(self):
        assert point(mean_of([1, 2, 6]), 3) == [3]

    def test_width_is_that_of_a_mean(self):
        values = np.random.default_rng(0).normal(size=400)
        ((low, high),) = intervals(mean_of(values), 400)
        error = values.std() / 20
        assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
        assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)

    def test_covers_95_in_100(self):
        rng = np.random.default_rng(1)
        inside = 0
        for _ in range(200):
            ((low, high),) = intervals(mean_of(rng.exponential(size=100)), 100)
            inside += low <= 1 <= high
        assert 0.88 <= inside / 200 <= 0.98

    def test_pieces_are_one_sequence(self, monkeypatch):
        """The number of draws held at once changes nothing."""
        metric = mean_of([0, 1, 5, 9])
        whole = resampled(metric, 4)
        monkeypatch.setattr(spread, "_AT_ONCE", 4 * 300)
        assert np.array_equal(resampled(metric, 4), whole)
        monkeypatch.setattr(spread, "_AT_ONCE", 1)
        assert np.array_equal(resampled(metric, 4), whole)

    def test_streams_differ_and_repeat(self):
        metric = mean_of([0, 1, 5, 9])
        one, other = resampled(metric, 4, 1), resampled(metric, 4, 2)
        assert np.array_equal(one, resampled(metric, 4, 1))
        assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.15

    def test_share(self):
        low, high = share_interval(5, 10, 100.0)
        assert (low, high) == pytest.approx((23.659, 76.341), abs=1e-3)
        assert np.isnan(share_interval(0, 0, 1.0)).all()


class TestUnits:
    def test_textvqa_draws_items(self):
        """Its scores are shares, so Wilson's interval does not hold."""
        rows = pd.DataFrame(
            {
                "index": range(100),
                "answer": [repr(["x"] * (i % 4) + ["y"] * 7) for i in range(100)],
            }
        )
        scored = score("TextVQA_VAL", rows, ["x"] * 100, "paper")
        values = np.array([item.score for item in scored.items]) * 100
        low, high = scored.intervals[0]["Overall"]
        assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)

    def test_mme_draws_images_of_each_category(self):
        categories = [name for names in TOTALS.values() for name in names]
        rows = pd.DataFrame(
            [
                {"category": name, "image_path": i, "answer": "Yes"}
                for name in categories
                for i in range(40)
                for _ in (0, 1)
            ]
        )
        rows["index"] = range(len(rows))
        # Both questions of every second image are wrong: as many units as images.
        said = ["Yes" if i % 4 < 2 else "No" for i in range(len(rows))]
        scored = score("MME", rows, said, "paper")
        assert scored.scores[0]["OCR"] == 100
        low, high = scored.intervals[0]["OCR"]
        error = 200 * np.sqrt(0.25 / 40)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
        # Categories are drawn apart, so that their errors add as squares.
        low, high = scored.intervals[0]["reasoning"]
        assert high - low == pytest.approx(2 * 1.96 * error * 2, rel=0.15)

    def test_hallusion_draws_sets(self):
        """Ten rows of a set that are right or wrong together are one observation."""
        rows = pd.DataFrame(
            [
                {"index": f"VD_a_x_{s}_{f}_0", "l2-category": "VD_a", "answer": "No"}
                for s in range(50)
                for f in range(10)
            ]
        )
        said = ["no" if i // 10 % 2 else "yes" for i in range(len(rows))]
        low, high = score("HallusionBench", rows, said, "paper").intervals[0]["aAcc"]
        assert high - low == pytest.approx(2 * 196 * np.sqrt(0.25 / 50), rel=0.15)

    def test_pope_draws_rows(self):
        rows = pd.DataFrame({"index": range(200), "answer": "Yes", "category": "a,b,c"})
        said = ["yes" if i % 2 else "no" for i in range(200)]
        low, high = score("POPE", rows, said, "paper").intervals[0]["acc"]
        assert high - low == pytest.approx(2 * 196 * np.sqrt(0.25 / 200), rel=0.15)

    def test_captions_draw_images(self):
        rows = pd.DataFrame({"index": range(100), "answer": "['a b', 'c']"})
        said = ["a b" if i % 2 else "z" for i in range(100)]
        scored = score("COCO_VAL", rows, said, "paper")
        assert scored.scores["ROUGE_L"] == 50
        low, high = scored.intervals["ROUGE_L"]
        assert high - low == pytest.approx(2 * 1.96 * 5, rel=0.15)
        low, high = scored.intervals["Bleu"][0]
        assert low < scored.scores["Bleu"][0] < high


@pytest.mark.parametrize("task", SCORERS)
def test_form_and_order(golden_dir, task):
    """Intervals have the scores' form, contain them, and are the same each time."""
    folder = golden_dir / "eval" / task
    book = pd.read_excel(folder / f"fake_public_{task}.xlsx")
    said = [str(one) for one in book["prediction"]]
    scored = score(task, book, said, "paper")
    assert score(task, book, said, "paper") == scored

    def check(value, ends):
        if isinstance(value, dict):
            assert list(value) == list(ends)
            for name in value:
                check(value[name], ends[name])
        elif isinstance(value, list):
            for one, its in zip(value, ends, strict=True):
                check(one, its)
        elif isinstance(value, str):
            assert ends == value
        else:
            low, high = ends
            assert type(value) in (int, float) and type(low) is type(high) is float
            assert low - 1e-9 <= value <= high + 1e-9

    check(scored.scores, scored.intervals)
    json.dumps(scored._asdict(), allow_nan=False)


ROWS = pd.DataFrame({"index": [3, 8], "answer": ["A", "B"], "A": ["x", "y"]})


class TestErrors:
    def test_unknown_task(self):
        with pytest.raises(ScoringError, match="'POPES', expected one of MME.*POPE\\?"):
            score("POPES", ROWS, ["a", "b"], "paper")
        with pytest.raises(ScoringError, match="'zzzzzz', expected.*TextVQA_VAL$"):
            score("zzzzzz", ROWS, ["a", "b"], "paper")

    def test_unknown_version(self):
        with pytest.raises(ScoringError, match="'newest', expected one of paper, curr"):
            commit_name("newest")

    def test_other_number_of_predictions(self):
        with pytest.raises(ScoringError, match="1 predictions for 2 rows"):
            score("MMStar", ROWS, ["A"], "paper")

    def test_predictions_that_are_no_texts(self):
        unchecked = inspect.unwrap(score)
        with pytest.raises(ScoringError, match="row 2: the prediction is nan.*'nan'"):
            unchecked("MMStar", ROWS, ["A", float("nan")], "paper")

    def test_indices_twice(self):
        with pytest.raises(ScoringError, match=r"row 2 \(index 3\): this index occurs"):
            score("MMStar", ROWS.assign(index=3), ["A", "B"], "paper")

    def test_missing_columns(self):
        with pytest.raises(ScoringError, match="POPE: the table lacks the column ca"):
            score("POPE", ROWS, ["A", "B"], "paper")
        with pytest.raises(ScoringError, match="lacks the column index, answer"):
            score("POPE", ROWS[["A"]], ["A", "B"], "paper")

    def test_no_rows(self):
        with pytest.raises(ScoringError, match="the table has no rows"):
            score("MMStar", ROWS[:0], [], "paper")

    def test_tables_are_left_as_they_are(self):
        rows = ROWS.assign(B=[1.0, 2.0], Category="x")
        before = rows.copy(deep=True)
        score("MMStar", rows, ["A", "1"], "paper")
        pd.testing.assert_frame_equal(rows, before)


def test_numbers_come_back_as_from_a_workbook(tmp_path):
    """What `score` does to columns of numbers is what a real workbook does."""
    from vtscale_jax.eval.scoring.cells import numbers_as_reread

    columns = {
        "whole": [3.0, -4.0, 1e15],
        "gap": [3.0, np.nan, 4.0],
        "parts": [3.0, 0.5, 0.1 + 0.2],
        "digits": [1 / 3, 1e-300, 123456789.123456789],
        "ints": [1, 2, 3],
        "texts": ["3.0", "x", None],
        "flags": [True, False, True],
    }
    rows = pd.DataFrame(columns)
    file = tmp_path / "book.xlsx"
    rows.to_excel(file, index=False, engine="xlsxwriter")
    back = pd.read_excel(file)
    found = numbers_as_reread(rows)
    for name in columns:
        assert list(map(str, found[name])) == list(map(str, back[name])), name
    assert str(found["whole"][0]) == "3" != str(rows["whole"][0])
    assert str(found["parts"][2]) == "0.3" != str(rows["parts"][2])
    pd.testing.assert_frame_equal(numbers_as_reread(found), found)
    # Integers end at 2^63; what is larger stays a float.
    large = pd.DataFrame({"large": [1.0, 1e19], "never": [1.0, np.inf]})
    pd.testing.assert_frame_equal(numbers_as_reread(large), large)
