"""All laws of a series: what is compared, what is not identified, what is left out."""

import functools
import json
import re

import numpy as np
import pytest
from scipy import optimize, stats

from vtscale_jax.scaling import comparison
from vtscale_jax.scaling.analysis import How, analyse, fit_series
from vtscale_jax.scaling.fits_file import content
from vtscale_jax.scaling.fitting import fit
from vtscale_jax.scaling.identification import problems, told
from vtscale_jax.scaling.law_fits import c_prime, explained
from vtscale_jax.scaling.laws import (
    CONSTANT,
    LAWS,
    LOGARITHMIC,
    POWER,
    SATURATING,
    on_scale,
)
from vtscale_jax.scaling.noise import item_noise, log_noise, normal_noise
from vtscale_jax.scaling.report_tables import tables
from vtscale_jax.scaling.result import Interval
from vtscale_jax.scaling.scores import Scores, ScoresError, Series
from vtscale_jax.scaling.text_table import table

M = np.array([1, 8, 16, 32, 64, 128, 256, 384, 512, 768])
SMALL = np.array([1, 2, 4, 8, 16, 32, 64])
FEW = How(replicates=100)


def series(score, m=M, **known):
    return Series("vqq", "x", np.array(m), np.array(score, float), **known)


def counted(score, m=SMALL, n=200, upper=100.0):
    return series(score, m, upper=upper, n_items=np.full(len(m), n))


def wavy(m=M, seed=0, sigma=0.05):
    rng = np.random.default_rng(seed)
    return 30 * m**0.1 * np.exp(sigma * rng.standard_normal(len(m)))


def analysed(*many):
    return analyse(Scores("s", many), FEW)


@functools.cache
def usual():
    """The analysis of a power law with noise, which several tests look at."""
    return analysed(series(wavy()))


# --- comparison ---------------------------------------------------------------------


def test_aicc_by_hand():
    rss, n = 0.3, 10
    # c, α and the variance: 3 parameters.
    expected = n * np.log(rss / n) + 6 + 2 * 3 * 4 / (n - 3 - 1)
    assert comparison.aicc(log_noise(), rss, n, 2) == pytest.approx(expected)
    known = item_noise(np.full(n, 50.0), 1.0)
    # The variance of items is known: 2 parameters, and the deviance itself.
    expected = 12.5 + 4 + 2 * 2 * 3 / (n - 2 - 1)
    assert comparison.aicc(known, 12.5, n, 2) == pytest.approx(expected)
    assert np.isnan(comparison.aicc(log_noise(), rss, 4, 2))
    assert np.isfinite(comparison.aicc(log_noise(), rss, 5, 2))
    assert np.isfinite(comparison.aicc(known, rss, 4, 2))
    assert np.isnan(comparison.aicc(log_noise(0.1), rss, n, 2))  # no likelihood
    assert np.isnan(comparison.aicc(log_noise(), np.inf, n, 2))
    assert np.isfinite(comparison.aicc(log_noise(), 0.0, n, 2))


def test_aicc_of_a_series_is_that_of_its_residuals():
    one = series(wavy())
    found = usual().fits[0].fits["power"]
    y, x = np.log(one.score), np.log(M)
    rss = np.sum((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2)
    assert found.aicc == pytest.approx(10 * np.log(rss / 10) + 6 + 24 / 6)
    assert found.rms_log == pytest.approx(np.sqrt(rss / 10))


@pytest.mark.parametrize(
    "m, cut",
    [
        (M, 128),  # of 768 / 4 = 192
        (SMALL, 16),
        ([1, 2, 4, 8], None),  # three up to 2
        ([1, 8, 16, 32, 128], 32),
        ([5], None),
    ],
)
def test_default_cut(m, cut):
    assert comparison.default_cut(np.array(m, float)) == cut


def predict(law, m, score, at):
    """The same laws by SciPy, from formulas that are written out again."""
    x = np.log(m)
    if law == "constant":
        return np.full(len(at), np.exp(np.log(score).mean()))
    if law == "power":
        return np.exp(np.polyval(np.polyfit(x, np.log(score), 1), np.log(at)))
    if law == "logarithmic":
        b, a = np.polyfit(x, score, 1)
        found = optimize.least_squares(
            lambda u: np.log(np.maximum(u[0] + u[1] * x, 1e-9)) - np.log(score),
            [a, b],
            xtol=1e-14,
            ftol=1e-14,
        ).x
        return found[0] + found[1] * np.log(at)
    assert law == "saturating"

    def curve(u, m):
        return np.exp(u[1]) - (np.exp(u[1]) - np.exp(u[0])) * m ** -np.exp(u[2])

    limits = np.array([(-40, np.log(100)), (-40, np.log(100)), SATURATING.limits[2]])
    tries = [
        optimize.least_squares(
            lambda u: np.log(curve(u, m)) - np.log(score),
            [np.log(score[0]), np.log(score[-1]), b],
            bounds=limits.T,
            xtol=1e-14,
            ftol=1e-14,
        )
        for b in (-2.5, -1.2, 0.0)
    ]
    return curve(min(tries, key=lambda one: one.cost).x, at)


@pytest.mark.parametrize("law", ["constant", "power", "logarithmic", "saturating"])
def test_errors_of_prediction_by_brute_force(law):
    m, score = M.astype(float), wavy()
    one = series(score, upper=100.0)
    guesses = [
        predict(law, m[m != n], score[m != n], np.array([n]))[0].clip(0, 100) for n in m
    ]
    left_out = np.mean(np.abs(guesses - score) / score)
    small = m <= 128
    far = predict(law, m[small], score[small], m[~small]).clip(0, 100)
    beyond = np.mean(np.abs(far - score[~small]) / score[~small])
    used = on_scale(LAWS[law], 100.0)
    found = comparison.leave_one_out(used, m, score, log_noise(), 100.0)
    assert found == pytest.approx(left_out, rel=1e-4)
    ahead = comparison.predicted(used, m, score, log_noise(), small, 100.0)
    assert comparison.relative_error(ahead, score[~small]) == pytest.approx(
        beyond, rel=1e-4
    )
    moved = np.where(m == 8, 1.05 * score, score)
    other = comparison.leave_one_out(used, m, moved, log_noise(), 100.0)
    assert other != pytest.approx(left_out, rel=1e-4)
    assert one.upper == 100.0


def test_predictions_are_held_to_the_scale():
    m = np.array([1.0, 2, 4, 8, 512])
    score = np.array([20.0, 30, 45, 67, 95])
    known = m < 500
    free = comparison.predicted(POWER, m, score, log_noise(), known, np.inf)
    held = comparison.predicted(POWER, m, score, log_noise(), known, 100.0)
    assert free[0] > 300 and held.tolist() == [100.0]
    few = comparison.predicted(POWER, m, score, log_noise(), m < 2, 100.0)
    assert np.isnan(few).all() and few.shape == (4,)


def test_relative_error_leaves_zeros_out():
    score = np.array([0.0, 10, 20])
    assert comparison.relative_error(np.array([5.0, 11, 18]), score) == 0.1
    assert np.isnan(comparison.relative_error(np.ones(1), np.zeros(1)))


def test_last_value_is_beside_every_law_everywhere():
    score, analysis = wavy(), usual()
    found = analysis.fits[0]
    near = np.concatenate([[score[1]], score[:-1]])
    expected = np.mean(np.abs(near - score) / score)
    assert found.last_value_leave_one_out == pytest.approx(expected)
    large = M > 128
    expected = np.mean(np.abs(score[5] - score[large]) / score[large])
    assert found.cut == analysis.cut == 128
    assert found.last_value_extrapolation == pytest.approx(expected)
    said = content(analysis)
    assert said["last_value"][0]["extrapolation"] == pytest.approx(expected)
    assert all(fit["last_value_extrapolation"] > 0 for fit in said["fits"])
    text = table(analysis)
    line = next(line for line in text.splitlines() if "last value" in line)
    assert f"{expected:.1%}" in line
    assert f"last value {expected:.1%}" in text.splitlines()[-1]
    # Of one law alone too.
    assert "last value" in table(analysis, ["power"])
    assert "logarithmic" not in table(analysis, ["power"]).splitlines()[2]
    report = {one.name: one for one in tables(analysis, (), ())}
    assert report["extrapolation"].columns[-1] == "last value"
    assert report["extrapolation"].rows[0][-1].text == f"{expected:.1%}"


def test_the_cut_that_is_asked_for():
    found, _ = fit_series(series(wavy()), FEW._replace(cut=32))
    assert found.cut == 32
    score = wavy()
    slope = np.polyfit(np.log(M[:4]), np.log(score[:4]), 1)
    far = np.exp(np.polyval(slope, np.log(M[4:])))
    expected = np.mean(np.abs(far - score[4:]) / score[4:])
    assert found.fits["power"].extrapolation == pytest.approx(expected, rel=1e-5)
    beyond, _ = fit_series(series(wavy()[:3], M[:3]), FEW._replace(cut=768))
    assert np.isnan(beyond.fits["power"].extrapolation)
    assert np.isnan(beyond.last_value_extrapolation)


def test_the_law_that_made_the_scores_is_chosen():
    rng = np.random.default_rng(0)
    for name, u in (("power", [1.0, -0.4]), ("saturating", [1.0, 4.0, -0.7])):
        score = LAWS[name].curve(np.array([u]), M * 1.0)[0]
        score *= np.exp(0.01 * rng.standard_normal(len(M)))
        assert fit_series(series(score), FEW)[0].chosen == name


def test_aicc_is_compared_between_laws_of_the_same_errors():
    analysis = analysed(counted([5, 9, 14, 20, 30, 35, 41]))
    found = analysis.fits[0]
    assert {"power", "power_weighted"} <= set(found.fits)
    assert found.chosen not in (None, "power")
    fits = {fit["law"]: fit for fit in content(analysis)["fits"]}
    assert (fits["power"]["errors"], fits["power_weighted"]["errors"]) == (
        "log",
        "items",
    )
    line = next(x for x in table(analysis, ["power"]).splitlines() if " power " in x)
    assert "–" in line


# --- identification -----------------------------------------------------------------


def test_flat_scores_do_not_identify_an_exponent():
    rng = np.random.default_rng(2)
    analysis = analysed(series(40 * np.exp(0.05 * rng.standard_normal(len(M)))))
    found = analysis.fits[0].fits["power"]
    assert found.problems == ("α cannot be told from 0",) and not found.identified
    fit = next(one for one in content(analysis)["fits"] if one["law"] == "power")
    assert fit["identified"] is False
    assert fit["problems"] == ["α cannot be told from 0"]
    assert fit["c_prime"] is None  # no number in any form
    assert "not identified: α cannot be told from 0" in table(analysis)
    report = {one.name: one for one in tables(analysis, (), ())}
    row = report["power-vqq"].rows[0]
    assert row[4].text == "undefined"
    assert row[-1].text == "α cannot be told from 0" and row[-1].bad
    assert told(found.problems) == "not identified: α cannot be told from 0"
    json.dumps(content(analysis), allow_nan=False)


def test_growing_scores_identify_it():
    analysis = usual()
    found = analysis.fits[0].fits["power"]
    assert found.identified and found.interval("alpha").high < 0
    prime = found.estimates["c_prime"]
    c, alpha = found.estimates["c"], found.estimates["alpha"]
    np.testing.assert_allclose((prime / M) ** alpha, c / M**alpha, rtol=1e-9)
    row = {one.name: one for one in tables(analysis, (), ())}["power-vqq"].rows[0]
    assert row[-1].text == "yes" and not row[-1].bad


def test_c_prime_is_undefined_where_alpha_is():
    assert np.isnan(c_prime({"c": 3.0, "alpha": 0.0}, identified=True))
    assert np.isnan(c_prime({"c": 3.0, "alpha": -0.3}, identified=False))
    value = c_prime({"c": 3.0, "alpha": -0.3}, identified=True)
    assert value ** (-0.3) == pytest.approx(3.0)
    assert c_prime({"c": 1e3, "alpha": 1e-4}, identified=True) == np.inf


SURE = {"c": Interval(1.0, 2.0), "alpha": Interval(-0.4, -0.2)}


@pytest.mark.parametrize(
    "law, intervals, held, said",
    [
        (POWER, SURE, (0, 0), ()),
        (POWER, None, (0, 0), ("too few M for an interval",)),
        (
            POWER,
            {**SURE, "alpha": Interval(-0.4, 0.0)},
            (0, 0),
            ("α cannot be told from 0",),
        ),
        (
            POWER,
            {**SURE, "c": Interval(1.0, np.inf)},
            (0, 0),
            ("no end to the interval of c",),
        ),
        (POWER, SURE, (0, 0.02), ()),
        (
            POWER,
            SURE,
            (0, 0.03),
            ("α runs to the end of its range in 3% of the resamples",),
        ),
        (CONSTANT, {"c": Interval(1.0, 2.0)}, (0,), ()),
        (
            LOGARITHMIC,
            {"a": Interval(1.0, 2.0), "b": Interval(-1.0, 1.0)},
            (0, 0),
            ("b cannot be told from 0",),
        ),
    ],
)
def test_problems(law, intervals, held, said):
    estimates = dict.fromkeys(law.edges, 1.0)
    assert problems(law, estimates, intervals, np.array(held, float), np.inf) == said


@pytest.mark.parametrize("high, crosses", [(99.0, False), (100.0, True), (120.0, True)])
def test_saturation_beyond_the_scale_is_no_saturation(high, crosses):
    ends = {
        "s_inf": Interval(80.0, high),
        "a": Interval(30.0, 50.0),
        "b": Interval(0.2, 0.4),
    }
    estimates = {"s_inf": 90.0, "a": 40.0, "b": 0.3}
    said = problems(SATURATING, estimates, ends, np.zeros(3), 100.0)
    sentence = "the interval of S∞ crosses the end of the scale (100)"
    assert (sentence in said) is crosses


def test_a_parameter_at_its_limit_is_said():
    # Υ that grows with M² from the first token: no balance point to be found.
    score = 3.0 * M**0.5 * np.exp(0.02 * np.random.default_rng(1).standard_normal(10))
    fits = fit_series(series(score), FEW)[0].fits
    said = fits["theory"].problems
    assert any("n_balance runs to the end of its range" in one for one in said)
    assert fits["power"].identified


# --- few, equal and missing scores --------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_m(number):
    analysis = analysed(series(wavy()[:number], M[:number]))
    found = analysis.fits[0]
    needed = {name for name, law in LAWS.items() if law.num_parameters > number}
    assert set(found.failed) == needed and set(found.fits) == set(LAWS) - needed
    for name, why in found.failed.items():
        said = {str(number), str(LAWS[name].num_parameters)}
        assert "usable scores" in why and set(re.findall(r"\d+", why)) == said
    assert all(not f.identified for n, f in found.fits.items() if n != "constant")
    assert found.chosen is None and found.cut is None and analysis.cut is None
    said = content(analysis)
    assert {one["law"] for one in said["failed"]} == needed
    json.dumps(said, allow_nan=False)
    text = table(analysis)
    if needed:
        assert all(f"none: {why}" in text for why in found.failed.values())
        report = {one.name: one for one in tables(analysis, (), ())}
        cells = [cell.text for row in report["laws"].rows for cell in row]
        assert any(cell.startswith("not fitted: ") for cell in cells)


@pytest.mark.parametrize("value", [50.0, 7.0, 1 / 3])
def test_equal_scores(value):
    # Rounding leaves α of 1e-16 and residuals as small, so that it may look certain.
    found = fit_series(series(np.full(6, value), M[:6]), FEW)[0]
    assert found.chosen == "constant"
    assert found.fits["constant"].estimates["c"] == pytest.approx(value)
    for name, one in found.fits.items():
        if name != "constant":
            assert any("cannot be told from 0" in said for said in one.problems), name


@pytest.mark.parametrize("known", [{}, {"upper": 1.0}, {"upper": 100.0}])
@pytest.mark.parametrize("n_items", [None, 200])
def test_all_zero(known, n_items):
    if n_items:
        known = {**known, "n_items": np.full(len(SMALL), n_items)}
    analysis = analysed(series(np.zeros(len(SMALL)), SMALL, **known))
    found = analysis.fits[0]
    assert not found.fits and found.chosen is None
    assert set(LAWS) <= set(found.failed)
    assert len(analysis.scores.excluded) == len(SMALL)
    assert all(one.value == "0" for one in analysis.scores.excluded)
    assert "last value" in table(analysis)
    if n_items and known.get("upper"):
        assert found.failed["constant"] == "every score is 0, an end of the scale"


def test_all_right():
    found = fit_series(counted(np.full(len(SMALL), 100.0)), FEW)[0]
    assert set(found.fits) == {"power"} and not found.fits["power"].identified
    assert found.failed["constant"] == "every score is 100, an end of the scale"


def test_scores_at_the_end_of_the_scale_leave_nothing_certain():
    # Resamples must move away from the fit, or intervals have no width.
    found = fit_series(counted([0.9, 0.95, 1, 1, 1, 1, 1], n=20, upper=1.0), FEW)[0]
    for name, one in found.fits.items():
        for key, (low, high) in one.intervals["items"].items():
            assert high - low > 1e-3 * abs(one.estimates[key]), (name, key)


def test_zeros_and_negatives_have_no_logarithm():
    analysis = analysed(series([-2, 0, 3, 5, 9, 12, 20], SMALL))
    found = analysis.fits[0]
    said = [(one.n_l, one.value, one.reason) for one in analysis.scores.excluded]
    reason = "not above 0, so that it has no logarithm; left out of every law"
    assert said == [(1, "-2", reason), (2, "0", reason)]
    assert [one["n_l"] for one in content(analysis)["excluded"]] == [1, 2]
    x, y = np.log(SMALL[2:]), np.log([3, 5, 9, 12, 20])
    slope, intercept = np.polyfit(x, y, 1)
    power = found.fits["power"].estimates
    np.testing.assert_allclose(
        [power["c"], power["alpha"]], [np.exp(intercept), -slope], rtol=1e-5
    )
    report = {one.name: one for one in tables(analysis, (), ())}
    assert [row[2].text for row in report["excluded"].rows] == ["1", "2"]


def test_questions_use_the_zeros_that_logarithms_cannot():
    score = [0, 0, 1, 3, 10, 20, 30]
    found, excluded = fit_series(counted(score), FEW)
    assert [one.n_l for one in excluded] == [1, 2]
    assert all(one.reason.endswith("the paper's power law") for one in excluded)
    weighted = found.fits["power_weighted"].estimates
    # The same without the zeros would say another law.
    m, kept = SMALL[2:] * 1.0, np.array([score[2:]], float)
    other = fit(POWER, m, kept, item_noise(np.full(5, 200.0), 100.0)).u[0, 1]
    assert abs(weighted["alpha"] - other) > 0.005
    slope = np.polyfit(np.log(m), np.log(kept[0]), 1)[0]
    paper = found.fits["power"].estimates
    assert paper["alpha"] == pytest.approx(-slope, rel=1e-5)


# --- errors that are known ----------------------------------------------------------


def test_explained_is_a_chi_square_test():
    noise = normal_noise(np.ones(10), np.inf)
    at = stats.chi2.isf(0.05, 8)
    assert explained(noise, at * 0.99, 10, 2) and not explained(noise, at * 1.01, 10, 2)
    assert not explained(log_noise(), 0.0, 10, 2)
    assert explained(noise, 1e9, 2, 2)  # nothing is left to test


def test_dispersion_is_what_the_best_law_leaves():
    share = 0.3 * M**0.1 * np.exp(0.1 * np.sin(7 * np.log(M)))
    found, _ = fit_series(counted(100 * share, M, 5000), FEW)
    assert found.dispersion > 3
    noise = item_noise(np.full(len(M), 5000.0), 100.0)
    power = found.fits["power_weighted"]
    loss = noise.loss(100 * share[None], power.predict(M * 1.0)[None]).sum()
    expected = loss / found.dispersion + 4 + 12 / 7
    assert power.aicc == pytest.approx(expected)
    calm, _ = fit_series(counted(30 * M[:4] ** 0.1, M[:4], 50), FEW)
    assert calm.dispersion == 1.0


def test_huber_turns_from_an_outlier():
    score = 30 * M**0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(10))
    score[-1] *= 0.4
    plain = -np.polyfit(np.log(M), np.log(score), 1)[0]
    robust = fit_series(series(score), FEW._replace(huber=0.02))[0]
    assert abs(robust.fits["power"].estimates["alpha"] + 0.2) < 0.01
    assert abs(plain + 0.2) > 0.03
    assert robust.chosen is None  # Huber's loss is no likelihood


def test_upsilon_that_ends_before_the_scores_is_said():
    long = {n: float(n**1.5) for n in range(1, 769)}
    short = {n: value for n, value in long.items() if n <= 64}
    found, _ = fit_series(series(wavy()), FEW._replace(upsilon=long))
    assert found.fits["theory_measured"].estimates["beta"] == pytest.approx(
        -found.fits["power"].estimates["alpha"] / 0.75, rel=1e-4
    )
    few = series(wavy()[[0, 4, 5]], M[[0, 4, 5]])
    missing, _ = fit_series(few, FEW._replace(upsilon=short))
    assert missing.failed["theory_measured"].startswith("Υ was not measured at M = 6")
    headless = {n: value for n, value in long.items() if n > 1}
    late, _ = fit_series(few, FEW._replace(upsilon=headless))
    assert late.failed["theory_measured"] == "Υ was not measured at M = 1"


def test_nothing_to_fit():
    with pytest.raises(ScoresError, match="s: no scores to fit"):
        analyse(Scores("s", ()))


def test_cuts_that_differ_are_no_common_one():
    m = np.array([1, 2, 4, 8, 40])
    one, other = series(wavy(m), m), series(wavy(2 * m), 2 * m)._replace(metric="y")
    heard = []
    analysis = analyse(Scores("s", (one, other)), FEW, heard.append)
    assert [one.cut for one in analysis.fits] == [8, 16] and analysis.cut is None
    assert heard == ["x (vqq)", "y (vqq)"]
