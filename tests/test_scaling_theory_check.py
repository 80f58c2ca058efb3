"""Does the theory predict? Scores that it made, scores that it did not, too few."""

import json

import numpy as np
import pytest

from vtscale_jax.scaling.analysis import PLAIN, analyse
from vtscale_jax.scaling.fits_file import content
from vtscale_jax.scaling.laws import LAWS
from vtscale_jax.scaling.report_tables import check_table
from vtscale_jax.scaling.scores import Scores, Series
from vtscale_jax.scaling.theory_check import MEASURED, check

M = np.array([1, 2, 4, 8, 16, 32, 64, 128])


def spread(n_balance=12.0, length=256):
    """Υ(n) = (A − B)n + Bn² with A/B − 1 = n_balance."""
    n = np.arange(1, length + 1)
    return {int(i): 0.05 * (n_balance * i + i**2) for i in n}


def series(score, m=M, **known):
    return Series("vqq", "read", np.array(m), np.array(score, float), **known)


def by_theory(beta=0.3, c=5.0, m=M, upsilon=None):
    upsilon = upsilon or spread()
    return c * np.array([upsilon[int(n)] / upsilon[1] for n in m]) ** (beta / 2)


def test_scores_of_the_theory_are_predicted():
    found = check(series(by_theory()), spread(), "model")
    assert found.verdict == "predicts"
    assert (found.beta, found.c) == (pytest.approx(0.3), pytest.approx(5.0))
    assert found.fitted_m == (1, 2, 4, 8, 16, 32) and found.predicted_m == (64, 128)
    assert found.beyond == found.not_positive == ()
    assert found.errors[MEASURED] < 1e-6
    assert set(found.errors) == {MEASURED, *LAWS, "last value"} - {"theory"}
    last = by_theory()[5]
    expected = np.mean(np.abs(last - by_theory()[6:]) / by_theory()[6:])
    assert found.errors["last value"] == pytest.approx(expected)
    assert "β = 0.3 from M = 1, 2, 4, 8, 16, 32" in found.sentence
    assert "predicts better" in found.sentence


def test_upsilon_of_another_model_does_not_predict():
    found = check(series(by_theory()), spread(1000.0), "another")
    assert found.verdict == "fails" and found.errors[MEASURED] > 0.02


def test_scores_that_saturate_are_a_failure_that_is_said():
    rng = np.random.default_rng(0)
    score = (60 - 40 * M**-1.2) * np.exp(0.005 * rng.standard_normal(len(M)))
    found = check(series(score, upper=100.0), spread(), "model")
    assert found.verdict == "fails"
    assert "It fails: repeating the last value is better." in found.sentence
    assert found.errors[MEASURED] > found.errors["last value"]
    assert f"misses M = 64, 128 by {found.errors[MEASURED]:.1%}" in found.sentence


def test_a_law_without_upsilon_that_is_better_is_named():
    found = check(series(10 + 1.5 * np.log(M)), spread(1e4), "model")
    assert found.verdict == "fails"
    assert found.errors[MEASURED] < found.errors["last value"]
    assert "the logarithmic law is better, which knows no Υ" in found.sentence


def test_m_beyond_what_was_measured_are_listed():
    found = check(series(by_theory()), spread(length=40), "model", cut=8)
    assert found.beyond == (64, 128)
    assert found.fitted_m == (1, 2, 4, 8) and found.predicted_m == (16, 32)
    assert found.verdict == "predicts"
    assert "Left out: M = 64, 128, where Υ is not known." in found.sentence


def test_scores_without_logarithm_are_listed():
    score = by_theory()
    score[[0, 2]] = 0.0, -1.0
    found = check(series(score), spread(), "model", cut=16)
    assert found.not_positive == (1, 4) and found.fitted_m == (2, 8, 16)
    assert "M = 1, 4, where the score is not above 0" in found.sentence
    assert found.beta == pytest.approx(0.3)


@pytest.mark.parametrize(
    "m, length, cut, numbers",
    [
        ((1, 2), 256, None, (0, 2)),
        ((1, 2, 4, 8, 16, 32), 4, None, (0, 3)),
        ((1, 2, 4, 8), 256, 1, (1, 3)),
        ((1, 2, 4, 8), 256, 8, (4, 0)),
        ((64, 128), 40, None, (0, 0)),
    ],
)
def test_too_few_m_cannot_be_checked(m, length, cut, numbers):
    one = series(by_theory(m=m), m)
    found = check(one, spread(length=length), "model", cut=cut)
    assert found.verdict == "cannot be checked" and not found.errors
    assert np.isnan(found.beta)
    assert (len(found.fitted_m), len(found.predicted_m)) == numbers
    told = f"{numbers[0]} can be fitted and {numbers[1]} predicted"
    assert told in found.sentence and "read (vqq)" in found.sentence


def test_upsilon_without_its_first_cannot_be_checked():
    upsilon = {n: value for n, value in spread().items() if n > 1}
    found = check(series(by_theory()), upsilon, "model")
    assert found.verdict == "cannot be checked"
    assert "no Υ(1)" in found.sentence and found.beyond == (1,)


def test_questions_weigh_the_scores():
    n = np.array([20000, 20000, 20000, 20000, 20, 20, 20, 20])
    score = by_theory()
    score[4:6] *= 2  # of few questions, so that it hardly counts
    few = check(series(score, n_items=n, upper=100.0), spread(), "m")
    plain = check(series(score), spread(), "m")
    assert abs(few.beta - 0.3) < 0.05 < abs(plain.beta - 0.3)


def test_checks_are_told_in_the_file_and_in_the_table():
    one = series(by_theory())
    checks = [
        check(one, spread(), "model"),
        check(one, spread(length=4), "short"),
        check(one, spread(1000.0), "other"),
    ]
    analysis = analyse(Scores("s", (one,)), PLAIN._replace(replicates=100))
    told = json.loads(json.dumps(content(analysis, checks), allow_nan=False))
    told = told["theory_checks"]
    assert [t["verdict"] for t in told] == ["predicts", "cannot be checked", "fails"]
    assert told[0]["errors"]["last value"] > 0 and told[1]["beta"] is None
    assert told[1]["beyond"] == [8, 16, 32, 64, 128]
    table = check_table(checks)
    texts = [[cell.text for cell in row] for row in table.rows]
    assert any("fails" in row for row in texts)
    assert any("predicts" in row for row in texts)
    assert "last value" in table.columns
