"""Fits: closed forms by hand and against searches, recovery from noisy data."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from vtscale_jax.divergence import fits, theory

NAN = math.nan
N = np.arange(1, 301)


def noisy(values, seed, share=0.03):
    """Values with noise of a share of their root mean square."""
    generator = np.random.default_rng(seed)
    size = share * math.sqrt(np.mean(values**2))
    return values + size * generator.normal(size=len(values))


# --- one scale -----------------------------------------------------------------------


def test_scale_by_hand():
    # λ = (1·1 + 2·3)/(1 + 4) = 7/5; residues 2/5 and −1/5; √((4 + 1)/25 / 10)
    found = fits.fit_scale(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    assert found.scale == pytest.approx(1.4)
    assert found.relative_rmse == pytest.approx(math.sqrt(0.2 / 10))


def test_lambda_is_that_of_equation_34():
    upsilon = theory.constant_spread(N, 0.4, 0.31, 0.3)
    divergence = noisy(7.3 * np.sqrt(upsilon), 0)
    found = fits.fit_scale(np.sqrt(upsilon), divergence)
    assert found.scale == pytest.approx(
        np.sum(divergence * np.sqrt(upsilon)) / np.sum(upsilon), rel=1e-13
    )
    searched = optimize.minimize_scalar(
        lambda scale: np.sum((divergence - scale * np.sqrt(upsilon)) ** 2)
    )
    assert found.scale == pytest.approx(searched.x, rel=1e-7)
    assert found.scale == pytest.approx(7.3, rel=0.01)
    assert found.relative_rmse == pytest.approx(0.03, rel=0.15)
    # Fitted over Υ itself, or with ½ of it, λ is another number.
    assert fits.fit_scale(upsilon, divergence).scale != pytest.approx(7.3, rel=0.1)
    halved = fits.fit_scale(np.sqrt(upsilon / 2), divergence).scale
    assert halved == pytest.approx(found.scale * math.sqrt(2))


def test_weights_count_as_repeated_points():
    shape, measured = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    repeats = np.array([2, 1, 3])
    weighted = fits.fit_scale(shape, measured, weights=repeats)
    repeated = fits.fit_scale(np.repeat(shape, repeats), np.repeat(measured, repeats))
    assert weighted.scale == pytest.approx(repeated.scale, rel=1e-14)
    assert weighted.relative_rmse == pytest.approx(repeated.relative_rmse, rel=1e-14)
    assert weighted.scale != pytest.approx(fits.fit_scale(shape, measured).scale)


def test_relative_rmse_by_hand():
    measured = np.array([3.0, 4.0])
    assert fits.relative_rmse(measured, measured) == 0
    assert fits.relative_rmse(np.zeros(2), measured) == 1
    assert fits.relative_rmse(np.array([3.0, 5.0]), measured) == pytest.approx(1 / 5)
    assert math.isnan(fits.relative_rmse(measured, np.zeros(2)))
    # It has no unit.
    scaled = fits.relative_rmse(np.array([3e9, 5e9]), measured * 1e9)
    assert scaled == pytest.approx(1 / 5)


# --- the free power ------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.5, 0.83, 1.0, -0.4])
@pytest.mark.parametrize("scale", [2.5, 1e-6, 4e7])
def test_power_is_recovered(exponent, scale):
    exact = fits.fit_power(N, scale * N**exponent)
    assert exact.exponent == pytest.approx(exponent, abs=1e-7)
    assert exact.scale == pytest.approx(scale, rel=1e-6)
    assert exact.relative_rmse < 1e-7
    found = fits.fit_power(N, noisy(scale * N**exponent, 1))
    assert found.exponent == pytest.approx(exponent, abs=0.03)
    assert found.relative_rmse == pytest.approx(0.03, rel=0.15)


def test_power_minimises_the_error_of_the_values():
    divergence = noisy(3 * N**0.7, 2, 0.2)
    found = fits.fit_power(N, divergence)

    def error(scale, exponent):
        return np.sum((divergence - scale * N**exponent) ** 2)

    best = error(found.scale, found.exponent)
    general, _ = optimize.curve_fit(lambda n, c, a: c * n**a, N, divergence, (1, 1))
    assert [found.scale, found.exponent] == pytest.approx(general, rel=1e-5)
    scales, exponents = np.meshgrid(np.linspace(1, 9, 81), np.linspace(0.3, 1.1, 81))
    grid = np.vectorize(error)(scales, exponents)
    assert best <= grid.min()
    # The line through the logarithms is another fit, and a worse one.
    positive = divergence > 0
    slope, _ = np.polyfit(np.log(N[positive]), np.log(divergence[positive]), 1)
    assert abs(slope - found.exponent) > 1e-3


def test_power_with_weights_repeats_points():
    n, repeats = np.array([1, 2, 5, 9]), np.array([3, 1, 1, 2])
    measured = np.array([1.0, 1.9, 3.0, 7.0])
    weighted = fits.fit_power(n, measured, weights=repeats)
    repeated = fits.fit_power(np.repeat(n, repeats), np.repeat(measured, repeats))
    assert weighted == pytest.approx(repeated, rel=1e-6)
    assert weighted.exponent != pytest.approx(
        fits.fit_power(n, measured).exponent, rel=1e-3
    )


def test_power_of_extreme_values_does_not_overflow():
    found = fits.fit_power(np.array([1, 2, 3]), np.array([0.0, 0.0, 5.0]))
    assert found.relative_rmse < 1e-6 and found.exponent > 10
    # Values below 0 are fitted as they are; only the start needs logarithms.
    found = fits.fit_power(np.array([1, 2, 3, 4]), np.array([-0.1, 2.0, 3.0, 4.0]))
    assert 0.5 < found.exponent < 1.5


# --- the four forms together ---------------------------------------------------------


def test_forms_share_their_points_and_their_measure():
    upsilon = theory.constant_spread(N, 0.4, 0.31, 0.3)
    divergence = noisy(5 * np.sqrt(upsilon), 3, 0.02)
    forms = fits.fit_forms(upsilon, divergence, N)
    assert forms.num_points == len(N)
    assert forms.bound == fits.fit_scale(np.sqrt(upsilon), divergence)
    assert forms.root == fits.fit_scale(np.sqrt(N), divergence)
    assert forms.linear == fits.fit_scale(N.astype(float), divergence)
    assert forms.power == fits.fit_power(N, divergence)
    errors = [form.relative_rmse for form in forms[:4]]
    assert min(errors) == errors[0] < 0.025
    # √n and n are powers, so a free power is at least as good as both.
    assert errors[1] < min(errors[2:])
    # The terms of Υ in the wrong order of sign fit worse: the test can tell.
    wrong = theory.constant_spread(N, 0.4, 0.3, 0.31)
    wrong = np.where(wrong > 0, wrong, 1e-9)
    assert fits.fit_forms(wrong, divergence, N).bound.relative_rmse > 5 * errors[0]


def test_points_that_are_fitted():
    upsilon = np.array([1.0, NAN, 2.0, 0.0, -1.0, 3.0, 3.0])
    divergence = np.array([1.0, 1.0, NAN, 1.0, 1.0, 1.0, 1.0])
    counts = np.array([20, 20, 20, 20, 20, 10, 9])
    used = fits.fitted_points(upsilon, divergence, counts)
    np.testing.assert_array_equal(np.flatnonzero(used), [0, 5])
    used = fits.fitted_points(upsilon, divergence, counts, least_count=9)
    np.testing.assert_array_equal(np.flatnonzero(used), [0, 5, 6])


def test_constant_of_a_curve():
    curve, counts = np.array([0.9, 0.2, 0.4, NAN, 0.8]), np.array([40, 30, 10, 10, 9])
    # (30·0.2 + 10·0.4)/40, without n = 1 and without n that too few pairs reach
    assert fits.weighted_mean(curve, counts) == pytest.approx(0.25)
    assert math.isnan(fits.weighted_mean(curve, counts, least_count=50))
    assert curve[0] == 0.9


# --- κ and β -------------------------------------------------------------------------

M = (2, 4, 8, 16, 32, 64, 128, 256, 512)
UPSILON = {m: float(theory.constant_spread(m, 0.4, 0.31, 0.3)) for m in M}


def drawn_scores(seed, kappa=0.3, beta=0.25, sd=0.02):
    generator = np.random.default_rng(seed)
    return {
        m: float(theory.score(u, kappa=kappa, beta=beta))
        * math.exp(sd * generator.normal())
        for m, u in UPSILON.items()
    }


def test_scores_without_noise_give_kappa_and_beta():
    found = fits.fit_scores(drawn_scores(0, sd=0), UPSILON)
    assert found.kappa == pytest.approx(0.3, rel=1e-12)
    assert found.beta == pytest.approx(0.25, rel=1e-12)
    assert found.num_points == 9 and found.residual_sd < 1e-12


def test_scores_agree_with_scipy():
    scores = drawn_scores(1)
    found = fits.fit_scores(scores, UPSILON)
    line = stats.linregress(
        [math.log(UPSILON[m]) / 2 for m in scores], np.log([*scores.values()])
    )
    assert found.beta == pytest.approx(line.slope, rel=1e-10)
    assert math.log(found.kappa) == pytest.approx(line.intercept, rel=1e-10)
    assert found.beta_error == pytest.approx(line.stderr, rel=1e-10)
    assert found.log_kappa_error == pytest.approx(line.intercept_stderr, rel=1e-10)
    t = 2.3646242515927844  # of 7 degrees of freedom, from a printed table: 2.365
    low, high = found.beta_interval
    assert (high - low) / 2 == pytest.approx(t * line.stderr, rel=1e-9)
    low, high = np.log(found.kappa_interval)
    assert (high - low) / 2 == pytest.approx(t * line.intercept_stderr, rel=1e-9)
    # Over log Υ, without the ½, β would be half of that.
    doubled = {m: u**2 for m, u in UPSILON.items()}
    assert fits.fit_scores(scores, doubled).beta == pytest.approx(found.beta / 2)


def test_three_scores_by_hand():
    # ½·log Υ = 0, 1, 2 and log S = 0, 1, 1: β = ½, log κ = 1/6, residues ∓1/6, 1/3
    upsilon = {m: math.exp(2 * x) for m, x in ((1, 0), (2, 1), (3, 2))}
    scores = {m: math.exp(y) for m, y in ((1, 0), (2, 1), (3, 1))}
    found = fits.fit_scores(scores, upsilon)
    assert found.beta == pytest.approx(0.5)
    assert math.log(found.kappa) == pytest.approx(1 / 6)
    assert found.residual_sd == pytest.approx(math.sqrt(1 / 6))
    assert found.beta_error == pytest.approx(math.sqrt(1 / 12))
    assert found.beta_interval[1] == pytest.approx(0.5 + 12.7062047 / math.sqrt(12))


def test_interval_covers_95_per_cent():
    kappa, beta, trials = 0.3, 0.25, 2000
    covered = np.zeros(2)
    for seed in range(trials):
        found = fits.fit_scores(drawn_scores(seed), UPSILON)
        covered += [
            found.kappa_interval[0] <= kappa <= found.kappa_interval[1],
            found.beta_interval[0] <= beta <= found.beta_interval[1],
        ]
    # Four standard deviations of a share of 0.95; the normal quantile 1.96 in place of
    # Student's 2.36 would cover 91 %.
    assert np.all(np.abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials))


def test_counts_weigh_scores():
    scores = drawn_scores(2)
    plain = fits.fit_scores(scores, UPSILON)
    equal = fits.fit_scores(scores, UPSILON, counts=dict.fromkeys(scores, 70))
    assert plain[:4] == pytest.approx(equal[:4], rel=1e-12)
    # A score that hardly counts moves the line hardly.
    first, *rest = scores
    wild = {**scores, first: 5.0}
    counts = {first: 1, **dict.fromkeys(rest, 10**9)}
    found = fits.fit_scores(wild, UPSILON, counts=counts)
    without = fits.fit_scores({m: scores[m] for m in rest}, UPSILON)
    assert found.beta == pytest.approx(without.beta, rel=1e-4)
    assert fits.fit_scores(wild, UPSILON).beta < 0


def test_wide_interval_ends_in_infinity():
    upsilon = {1: 1e40, 2: 1.5e40, 3: 2.2e40}
    found = fits.fit_scores({1: 0.1, 2: 0.9, 3: 0.2}, upsilon)
    assert found.kappa_interval[1] == math.inf and math.isfinite(found.kappa)


# --- what is refused -----------------------------------------------------------------

ONES, SCORES = np.ones(3), {1: 0.1, 2: 0.2, 3: 0.3}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fits.fit_scale(np.zeros(0), np.zeros(0)), "has 0 points"),
        (lambda: fits.fit_scale(np.zeros(3), ONES), "shape is 0 at every point"),
        (lambda: fits.fit_scale(ONES, np.array([1, NAN, 1])), "measured holds"),
        (lambda: fits.fit_scale(np.array([1, NAN, 1]), ONES), "shape holds"),
        (lambda: fits.fit_scale(ONES, ONES, weights=-ONES), "weights holds values"),
        (lambda: fits.fit_scale(ONES, ONES, weights=0 * ONES), "nothing but 0"),
        (lambda: fits.fit_power(N[:1], ONES[:1]), "at least 2"),
        (lambda: fits.fit_power(ONES, ONES), "two different n"),
        (lambda: fits.fit_power(N[:3], 0 * ONES), "two different n"),
        (lambda: fits.fit_power(N[:3] - 1, ONES), "two different n"),
        (lambda: fits.fit_forms(-ONES, ONES, N[:3]), "upsilon holds"),
        (lambda: fits.fit_scores({1: 1, 2: 2}, SCORES), "scores has 2 M"),
        (lambda: fits.fit_scores({**SCORES, 3: 0}, SCORES), r"scores\[3\] is 0"),
        (lambda: fits.fit_scores(SCORES, {1: 1, 2: 2}), "lacks M = 3"),
        (
            lambda: fits.fit_scores(SCORES, {**SCORES, 2: -0.5}),
            r"upsilon\[2\] is -0.5.*leave this score out",
        ),
        (lambda: fits.fit_scores(SCORES, {**SCORES, 2: NAN}), r"upsilon\[2\] is nan"),
        (
            lambda: fits.fit_scores(SCORES, dict.fromkeys(SCORES, 2.5)),
            "same at all M",
        ),
        (
            lambda: fits.fit_scores(SCORES, {1: 2.0, 2: 2.0 + 1e-9, 3: 2.0 + 2e-9}),
            "differs too little",
        ),
        (
            lambda: fits.fit_scores(SCORES, SCORES, counts={1: 3, 2: 3}),
            r"counts\[3\] is None",
        ),
        (lambda: fits.fit_scores(SCORES, SCORES, confidence=95.0), "confidence is 95"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
