"""Intervals: reproducible, of the right width, and absent where scores tell of none."""

import numpy as np
import pytest
from scipy import stats

from vtscale_jax.scaling import intervals
from vtscale_jax.scaling.analysis import How, analyse, fit_series
from vtscale_jax.scaling.fitting import fit
from vtscale_jax.scaling.law_fits import explained, explained_by_items, fit_law, points
from vtscale_jax.scaling.laws import CONSTANT, LAWS, POWER
from vtscale_jax.scaling.noise import item_noise, log_noise, noise_of
from vtscale_jax.scaling.scores import Scores, Series

M = np.array([1, 8, 16, 32, 64, 128, 256, 384, 512, 768])
X = np.log(M)
FEW = How(replicates=100)


def noisy(seed=0, sigma=0.05, metric="x", m=M):
    rng = np.random.default_rng(seed)
    score = 30 * m**0.1 * np.exp(sigma * rng.standard_normal(len(m)))
    return Series("vqq", metric, m, score)


def asked(n, correlated, seed=0, m=M, alpha=-0.12):
    """Single questions: with `correlated`, those that are right at one M are right at
    every larger one."""
    rng = np.random.default_rng(seed)
    share = 0.3 * m**-alpha / 1.0
    skill = rng.random(n) if correlated else rng.random((len(m), n))
    items = (skill < share[:, None]).astype(float)
    return Series(
        "vqq", "x", m, 100 * items.mean(1), 100.0, np.full(len(m), n), None, items
    )


def fit_one(series, replicates=200, law=POWER):
    """One law alone, by the errors that the series tells of."""
    given = points(series, noise_of(series), series.score > 0)
    best = given.best(law)
    found, _ = fit_law(
        law,
        given,
        best,
        given.m,
        fits_items=explained_by_items(law, given, best),
        dispersion=1.0,
        cut=None,
        replicates=replicates,
        rng=np.random.default_rng(0),
    )
    return found


def width(interval):
    return interval.high - interval.low


def ols(series):
    """Intercept and slope of log S with their standard errors, by the formulas."""
    y = np.log(series.score)
    design = np.stack([np.ones(len(y)), np.log(series.m)], 1)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    left = y - design @ found
    variance = left @ left / (len(y) - 2)
    return found, np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))


def budgets(series, replicates, seed=0):
    m = series.m.astype(float)
    best = fit(POWER, m, series.score[None], log_noise())
    rng = np.random.default_rng(seed)
    rows = intervals.budget_scores(
        POWER, m, series.score, log_noise(), best.u[0], replicates, rng
    )
    return intervals.refit(POWER, m, series.score, rows, log_noise(), best)


def test_seed_decides_and_nothing_else():
    one, other = noisy(0, metric="x", m=M[:6]), noisy(1, metric="y", m=M[:6])
    both = analyse(Scores("s", (one, other)), FEW)
    alone = analyse(Scores("s", (other,)), FEW)
    again = fit_series(other, FEW)[0]
    reseeded = fit_series(other, FEW._replace(seed=1))[0]
    for name in LAWS:
        first = both.of("y", "vqq").fits[name].intervals
        assert first == alone.fits[0].fits[name].intervals == again.fits[name].intervals
        assert first != reseeded.fits[name].intervals
    assert (
        both.of("x", "vqq").fits["power"].intervals
        != both.of("y", "vqq").fits["power"].intervals
    )


def test_each_series_draws_for_itself():
    # Equal scores under two names: the same draws would tie their intervals together.
    ends = [
        fit_series(noisy(m=M[:5], metric=name), FEW)[0].fits["power"].intervals
        for name in ("x", "y")
    ]
    assert ends[0] != ends[1]


def test_bands_go_with_the_seed_too():
    first, second = (
        fit_series(noisy(m=M[:6]), FEW)[0].bands["power"] for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    found = fit_series(noisy(m=M[:6]), FEW)[0]
    line = found.fits["power"].predict(found.grid)
    low, high = first
    assert np.all(low < line) and np.all(line < high)


def test_intervals_shrink_with_the_root_of_the_questions():
    share = 0.3 * M**0.1

    def of(n):
        series = Series("", "x", M, 100 * share, 100.0, np.full(len(M), n))
        return fit_one(series, replicates=1000)

    few, many = of(400), of(6400)
    assert few.main == many.main == "items"
    ratio = width(few.interval("alpha")) / width(many.interval("alpha"))
    assert 3.5 < ratio < 4.5
    relative = [
        np.log(one.interval("c").high / one.interval("c").low) for one in (few, many)
    ]
    assert 3.5 < relative[0] / relative[1] < 4.5


def test_shared_questions_narrow_the_exponent_not_the_level():
    shared, apart = (asked(400, kind, alpha=-0.03) for kind in (True, False))
    one, other = fit_one(shared), fit_one(apart)
    assert one.main == other.main == "items"
    # What is left when the questions are not known to be the same.
    known = fit_one(shared._replace(items=None))
    assert width(one.interval("alpha")) < 0.6 * width(known.interval("alpha"))
    assert width(other.interval("alpha")) > 0.8 * width(known.interval("alpha"))

    def relative(found):
        return np.log(found.interval("c").high / found.interval("c").low)

    # ln c is the level at M = 1: its error is that of one score, not of ten.
    at_one = np.sqrt(0.7 / 0.3 / 400) * 2 * 1.96
    assert 0.7 * at_one < relative(one) < 1.3 * at_one


def test_items_that_move_together_say_all_of_the_exponent_and_little_of_the_level():
    # The same answers at every M but for a factor: α is known, c is not.
    rng = np.random.default_rng(0)
    answers = (rng.random(300) < 0.5).astype(float)
    items = answers * (0.3 * M**0.1)[:, None]
    n = np.full(len(M), 300)
    series = Series("", "x", M, 100 * items.mean(1), 100.0, n, None, items)
    found = fit_one(series)
    assert width(found.intervals["items"]["alpha"]) < 1e-6
    c = found.intervals["items"]["c"]
    assert width(c) / found.estimates["c"] > 0.15


def test_items_in_another_order_are_the_same_scores():
    series = asked(200, True)
    rows = intervals.item_scores(series, 50, np.random.default_rng(0))
    assert rows.shape == (50, len(M))
    # The same questions at every M: no set has them fall as M rises.
    assert np.all(np.diff(rows, axis=1) >= -1e-9)
    apart = intervals.item_scores(asked(200, False), 50, np.random.default_rng(0))
    assert not np.all(np.diff(apart, axis=1) >= -1e-9)
    np.testing.assert_allclose(rows.mean(0), series.score, rtol=0.05)


def test_resampled_scores_have_the_errors_that_are_known():
    m = np.array([1, 8, 64])
    rng = np.random.default_rng(0)
    items = Series(
        "", "x", m, np.array([20.0, 50, 80]), 100.0, np.array([50, 100, 400])
    )
    rows = intervals.item_scores(items, 4000, rng)
    spread = [100 * np.sqrt(p * (1 - p) / n) for p, n in zip(
        (0.2, 0.5, 0.8), (50, 100, 400), strict=True
    )]  # fmt: skip
    np.testing.assert_allclose(rows.std(0), spread, rtol=0.05)
    known = Series("", "x", m, np.array([2.0, 3, 4]), stderr=np.array([0.1, 0.2, 0.0]))
    rows = intervals.item_scores(known, 4000, rng)
    np.testing.assert_allclose(rows.std(0), [0.1, 0.2, 0.0], rtol=0.05)
    np.testing.assert_allclose(rows.mean(0), known.score, rtol=0.01)
    assert intervals.item_scores(noisy(), 10, rng) is None


def test_no_right_answer_is_not_known_for_certain():
    m = np.array([1, 8])
    n = np.array([100, 100])
    series = Series("", "x", m, np.array([0.0, 100.0]), 100.0, n)
    rows = intervals.item_scores(series, 500, np.random.default_rng(0))
    assert rows[:, 0].max() > 0 and rows[:, 1].min() < 100
    assert rows[:, 0].mean() < 1.5 and rows[:, 1].mean() > 98.5


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_studentised_is_near_the_t_interval(seed):
    # For normal errors the t-interval is exact; the bootstrap has ten residuals only.
    series = noisy(seed)
    (log_c, slope), errors = ols(series)
    half = stats.t.ppf(0.975, len(M) - 2) * errors
    found = budgets(series, 2000)
    low, high = intervals.studentised(lambda u: u, found)
    ratio = (high - low) / (2 * half)
    assert np.all((0.8 < ratio) & (ratio < 1.25))
    np.testing.assert_allclose((low + high) / 2, [log_c, -slope], atol=0.4 * half.max())
    # Percentiles lack the t-quantile: narrower by z/t, as scaled residuals have the
    # right variance.
    narrow_low, narrow_high = intervals.percentiles(lambda u: u, found)
    narrow = (narrow_high - narrow_low) / (2 * half)
    assert np.all(narrow < ratio)
    assert np.all((0.7 < narrow) & (narrow < 1.0))


def test_budgets_draw_the_residuals_scaled_for_their_leverage():
    series = noisy(3)
    m = series.m.astype(float)
    best = fit(POWER, m, series.score[None], log_noise())
    rows = intervals.budget_scores(
        POWER, m, series.score, log_noise(), best.u[0], 3000, np.random.default_rng(0)
    )
    drawn = np.log(rows) - np.log(POWER.curve(best.u, m))
    y, design = np.log(series.score), np.stack([np.ones(len(m)), np.log(m)], 1)
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    left = (y - hat @ y) / np.sqrt(1 - np.diag(hat))
    left -= left.mean()
    np.testing.assert_allclose(np.unique(drawn.round(6)), np.sort(left), atol=2e-6)
    assert abs(drawn.std() / left.std() - 1) < 0.02


@pytest.mark.parametrize("kind", ["log", "items"])
def test_coverage(kind):
    # Of 60 intervals of 95 % an honest method misses 3; of half the width, 20 or so.
    rng = np.random.default_rng(7)
    true = np.array([np.log(30.0), -0.1])
    hits = []
    for _ in range(60):
        exact = 30.0 * M**0.1
        m = M.astype(float)
        if kind == "log":
            score = exact * np.exp(0.05 * rng.standard_normal(len(M)))
            series, noise = Series("", "x", M, score), log_noise()
        else:
            n = np.full(len(M), 300)
            score = 100 * rng.binomial(n, exact / 100) / n
            series = Series("", "x", M, score, 100.0, n)
            noise = item_noise(n.astype(float), 100.0)
        best = fit(POWER, m, score[None], noise)
        if kind == "log":
            rows = intervals.budget_scores(POWER, m, score, noise, best.u[0], 199, rng)
            ends = intervals.studentised
        else:
            rows = intervals.item_scores(series, 199, rng)
            ends = intervals.percentiles
        found = intervals.refit(POWER, m, score, rows, noise, best)
        low, high = ends(lambda u: u, found)
        middle, half = (low + high) / 2, (high - low) / 2
        inside = np.abs(true - middle) <= half
        within_half = np.abs(true - middle) <= half / 2
        hits.append([inside, within_half])
    share = np.mean(hits, axis=0)
    assert np.all(share[0] >= 0.87), share
    # The negative control: the same test refuses intervals of half the width.
    assert np.all(share[1] < 0.85), share


def test_items_vary_about_the_law_that_is_given():
    rng = np.random.default_rng(0)
    n = np.full(len(M), 400)
    counted = Series("", "x", M, np.full(len(M), 40.0), 100.0, n)
    center = np.linspace(20.0, 60.0, len(M))
    about = intervals.item_scores(counted, 4000, rng, center)
    np.testing.assert_allclose(about.mean(0), center, atol=0.2)
    marks = (rng.random(300) < 0.4).astype(float)
    shared = np.tile(marks, (len(M), 1))
    asked = Series("", "x", M, 100 * shared.mean(1), 100.0, np.full(len(M), 300))
    asked = asked._replace(items=shared)
    rows = intervals.item_scores(asked, 4000, rng, center)
    np.testing.assert_allclose(rows.mean(0), center, atol=0.3)
    # The same questions everywhere: all M still move as one.
    assert np.corrcoef(rows.T).min() > 0.999
    beyond = intervals.item_scores(asked, 200, rng, np.full(len(M), 130.0))
    assert beyond.max() == 100.0


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_budgets_have_no_interval(number):
    m = M[:number]
    found = fit_series(noisy(m=m), FEW)[0]
    for name, one in found.fits.items():
        if number - one.law.num_parameters >= 2:
            assert one.main == "budgets", name
        else:
            assert one.main is None and one.intervals == {}, name
            assert one.problems == ("too few M for an interval",), name
            assert one.interval("c") is None
            assert np.isnan(found.bands[name]).all()
    if number > 1:
        assert np.isnan(found.fits["power"].estimates["c_prime"])


def test_items_have_an_interval_where_budgets_have_none():
    n = np.full(2, 400)
    series = Series("", "x", M[:2], np.array([20.0, 60]), 100.0, n)
    found = fit_one(series)
    assert found.main == "items" and found.identified
    assert found.interval("alpha").high < 0


def test_both_are_joined_when_items_explain_too_little():
    n = np.full(len(M), 4000)
    share = 0.3 * M**0.1
    wild = share * np.exp(0.15 * np.sin(5 * X))
    found, calm = (
        fit_one(Series("", "x", M, 100 * score, 100.0, n)) for score in (wild, share)
    )
    assert found.main == "both" and calm.main == "items"
    assert set(calm.intervals) == {"items", "budgets"}
    ends = found.intervals
    assert width(ends["budgets"]["alpha"]) > 3 * width(ends["items"]["alpha"])
    joined, alpha = ends["both"]["alpha"], found.estimates["alpha"]
    assert found.interval("alpha") == joined
    for end in ("low", "high"):
        parts = [getattr(ends[k]["alpha"], end) - alpha for k in ("items", "budgets")]
        assert abs(getattr(joined, end) - alpha) == pytest.approx(np.hypot(*parts))
    # c is above 0: its errors are added as those of its logarithm.
    c = found.estimates["c"]
    parts = [np.log(ends[k]["c"].low / c) for k in ("items", "budgets")]
    assert np.log(ends["both"]["c"].low / c) == pytest.approx(-np.hypot(*parts))


def test_a_law_through_all_scores_has_its_value_for_an_interval():
    exact = fit_one(Series("", "x", M, 5.0 * M**0.25))
    assert exact.identified
    np.testing.assert_allclose(exact.interval("alpha"), -0.25, rtol=1e-9)
    flat = fit_one(Series("", "x", M, np.full(len(M), 5.0)))
    assert flat.problems == ("α cannot be told from 0",)


def test_intervals_stay_in_the_range_that_is_searched():
    # Flat from the second M on: m0 is at its lowest.
    score = np.array([20.0, *[60.0 + 0.1 * i for i in range(len(M) - 1)]])
    series = Series("", "x", M, score)
    m0 = fit_one(series, law=LAWS["shifted"]).interval("m0")
    assert m0.low >= -1 and np.isfinite(m0.high)
    assert fit_one(series, law=LAWS["theory"]).interval("n_balance").low >= 0.0199


def test_shared_questions_leave_less_to_hide_trainings_in():
    # A training moves all answers at its M. With the same questions everywhere, 6 % of
    # that is far more than items leave; with others at each M it need not be.
    rng = np.random.default_rng(0)
    m, n = 2 ** np.arange(7), 500
    counts = {"still": 0, "moved": 0, "unpaired": 0}
    for _ in range(30):
        skill = rng.random(n)
        for name, sigma in (("still", 0.0), ("moved", 0.06)):
            share = 0.3 * m**0.1 * np.exp(sigma * rng.standard_normal(7))
            items = (skill < share[:, None]).astype(float)
            score, number = 100 * items.mean(1), np.full(7, n)
            series = Series("", "x", m, score, 100.0, number, None, items)
            given = points(series, noise_of(series), score > 0)
            best = fit(POWER, m * 1.0, score[None], given.noise)
            counts[name] += explained_by_items(POWER, given, best)
            if name == "moved":
                loss = float(best.loss[0])
                counts["unpaired"] += explained(given.noise, loss, 7, 2)
    assert counts["still"] >= 25 and counts["moved"] <= 5
    assert counts["unpaired"] > 15  # what the plain χ² would have passed


def test_without_single_questions_it_is_the_plain_test():
    score, n = 30 * M**0.1 * np.exp(0.1 * np.sin(X)), np.full(len(M), 900)
    series = Series("", "x", M, score, 100.0, n)
    given = points(series, noise_of(series), score > 0)
    best = fit(POWER, M * 1.0, score[None], given.noise)
    for factor in (0.1, 1.0, 3.0):
        some = best._replace(loss=best.loss * factor)
        plain = explained(given.noise, float(some.loss[0]), len(M), 2)
        assert explained_by_items(POWER, given, some) is plain
    # Questions of their own at each M have nearly the same law as none at all.
    apart = asked(4000, False)
    given = points(apart, noise_of(apart), apart.score > 0)
    best = fit(POWER, M * 1.0, apart.score[None], given.noise)
    limit = stats.chi2.isf(0.05, len(M) - 2)
    for factor, expected in ((0.85, True), (1.15, False)):
        some = best._replace(loss=np.array([limit * factor]))
        assert explained_by_items(POWER, given, some) is expected


def test_a_constant_has_the_t_interval_of_a_mean():
    rng = np.random.default_rng(11)
    logs = np.log(20) + 0.1 * rng.standard_normal(len(M))
    one = fit_one(Series("", "x", M, np.exp(logs)), 2000, CONSTANT)
    low, high = np.log(one.interval("c"))
    half = stats.t.ppf(0.975, len(M) - 1) * logs.std(ddof=1) / np.sqrt(len(M))
    assert (high - low) / (2 * half) == pytest.approx(1, abs=0.2)
    assert one.estimates["c"] == pytest.approx(np.exp(logs.mean()))
    assert CONSTANT.growth is None and one.identified
