"""The shipped numbers are those of the paper's tables, digit for digit.

`tests/golden/scaling` has these tables as they were copied from the paper: wide, with
the paper's names of columns. They are read here in a way of its own.
"""

import csv
import hashlib
from importlib import resources

import numpy as np
import pytest

from vtscale_jax.scaling import published, vlmevalkit
from vtscale_jax.scaling.reading import read_scores
from vtscale_jax.scaling.scores import UPPER

FOLDER = resources.files("vtscale_jax.scaling.published")


@pytest.fixture(scope="module")
def wide(golden_dir):
    def read(name):
        with (golden_dir / "scaling" / name).open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="module")
def scores():
    return published.published_scores()


def test_every_score_is_the_papers(wide, scores):
    rows = wide("appendix_d_fused.csv")
    found = {
        (one.inputs, int(m), one.metric): s
        for one in scores.series
        for m, s in zip(one.m, one.score, strict=True)
    }
    expected = {
        (row["inputs"], int(row["n_l"]), metric): float(text)
        for row in rows
        for metric, text in row.items()
        if metric not in ("inputs", "n_l")
    }
    assert len(expected) == 30 * 26
    assert found == expected
    assert scores.metrics() == tuple(rows[0])[2:] == vlmevalkit.METRICS
    assert scores.inputs() == tuple(dict.fromkeys(row["inputs"] for row in rows))
    assert scores.excluded == () and scores.notes == ()


def test_the_text_of_scores_is_that_of_the_table(wide):
    """Floats alone would not show that 86.6 had become 86.60000000000001."""
    shipped = csv.DictReader((FOLDER / "scores.csv").read_text().splitlines())
    texts = {(r["inputs"], r["n_l"], r["metric"]): r["score"] for r in shipped}
    for row in wide("appendix_d_fused.csv"):
        for metric in vlmevalkit.METRICS:
            assert texts[row["inputs"], row["n_l"], metric] == row[metric]


def test_a_wide_table_of_the_paper_is_read_alike(golden_dir, scores):
    of_wide = read_scores([golden_dir / "scaling" / "appendix_d_fused.csv"])
    assert [one.name for one in of_wide.series] == [one.name for one in scores.series]
    for one, other in zip(of_wide.series, scores.series, strict=True):
        assert np.array_equal(one.m, other.m) and one.upper == other.upper
        assert np.array_equal(one.score, other.score)


def test_scores_lie_on_their_scales(scores):
    for one in scores.series:
        assert one.m.tolist() == [1, 8, 16, 32, 64, 128, 256, 384, 512, 768]
        assert one.upper == UPPER.get(one.metric, 100.0)
        assert (one.score >= 0).all() and (one.score <= one.upper).all()
        # None are published, so none are made up.
        assert one.n_items is None and one.stderr is None and one.items is None


def test_mme_adds_up_and_hallusionbench_is_a_mean(scores):
    """What the benchmarks define (spec/eval.md §5) holds of the copied numbers."""
    for inputs in scores.inputs():
        of = {one.metric: one.score for one in scores.series if one.inputs == inputs}
        total = of["MME/Perception"] + of["MME/Cognition"]
        assert np.allclose(of["MME/Overall"], total, atol=2e-3)
        parts = [of[f"HallusionBench/{name}"] for name in ("aAcc", "fAcc", "qAcc")]
        assert np.allclose(of["HallusionBench/Overall"], np.mean(parts, 0), atol=2e-3)


def test_other_models_are_the_papers_and_blanks_stay_blank(wide):
    models = published.other_models()
    rows = wide("appendix_d_models.csv")
    assert list(models) == [row["model"] for row in rows]
    for row in rows:
        filled = {name: float(text) for name, text in row.items() if _is_score(text)}
        assert models[row["model"]] == filled
    blank = models["GPT-4o (0513, detail-low)"]
    assert "COCO_VAL/CIDEr" not in blank and len(blank) == 11
    assert {name for row in models.values() for name in row} <= set(vlmevalkit.METRICS)


def _is_score(text):
    return text.replace(".", "", 1).isdigit()


def test_table_5_has_full_names_of_metrics(wide, scores):
    rows = wide("table5_token_reduction.csv")
    full = {"MME": "MME/Overall", "OCRBench": "OCRBench/Final Score"}
    expected = {
        (
            int(row["n"]),
            row["method"],
            full.get(name, name if "/" in name else f"{name}/Overall"),
        ): float(text)
        for row in rows
        for name, text in row.items()
        if name not in ("n", "method")
    }
    found = {(r.n_l, r.method, r.metric): r.score for r in published.token_reduction()}
    assert found == expected and len(found) == 7 * 3 * 17
    # The mapping is right: Proposed is the paper's own model, rounded once more.
    for (m, method, metric), score in found.items():
        if method == "Proposed":
            series = scores.of(metric, "vqq")
            assert abs(series.score[series.m == m].item() - score) < 5.01e-3, metric


def test_tables_1_and_6():
    fits = published.table_1()
    assert len({fit.metric for fit in fits}) == len(fits) == 18
    assert {fit.metric for fit in fits} <= set(vlmevalkit.METRICS)
    assert fits[0] == ("MME/Overall", 1067.6, -0.0516)
    assert fits[9] == ("RealWorldQA/Overall", 46.232, -0.0030)
    rows = published.time_to_first_token()
    assert [row.n_l for row in rows] == [768, 512, 256, 128, 64, 32, 16, 8, 1]
    assert rows[0] == (768, 0.3038, 81.9693, 15.4844, 15.4832)
    assert rows[-1].ttft_s == 0.2137


def test_provenance_has_every_file_and_its_hash():
    files = published.provenance()["files"]
    shipped = {f.name for f in FOLDER.iterdir() if f.name.endswith(".csv")}
    assert set(files) == shipped
    for name, about in files.items():
        content = (FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == about["sha256"], name
        assert content.count(b"\n") - 1 == about["rows"]
        assert about["from"] and about["rounding"] and about["changed"]
        assert b"\r" not in content


def test_table_1_follows_from_the_scores(scores):
    """Least squares of log S over log N_l, done here by hand, gives the printed fits:
    the two tables belong together."""
    for fit in published.table_1():
        series = scores.of(fit.metric, "vqq")
        slope, intercept = np.polyfit(np.log(series.m), np.log(series.score), 1)
        assert slope == pytest.approx(-fit.alpha, abs=6e-5), fit.metric
        assert np.exp(intercept) == pytest.approx(fit.c, rel=2e-4), fit.metric
