"""Fits against SciPy's: the same losses from formulas that are written out again."""

import functools

import numpy as np
import pytest
from scipy import optimize

from vtscale_jax.scaling import noise as noises
from vtscale_jax.scaling.fitting import fit, jacobian, paper_power
from vtscale_jax.scaling.laws import (
    BALANCE,
    LAWS,
    LOGARITHMIC,
    POWER,
    RATE,
    SATURATING,
    SHIFT,
    on_scale,
)
from vtscale_jax.scaling.published import published_scores
from vtscale_jax.scaling.scores import Series

M = np.array([1.0, 8, 16, 32, 64, 128, 256, 384, 512, 768])
# One that grows steadily, one that saturates, one that is flat, one that falls.
METRICS = (
    "OCRBench/Final Score",
    "POPE/Overall",
    "RealWorldQA/Overall",
    "COCO_VAL/ROUGE-L",
    "POPE/recall",
)


def power(m, log_c, alpha):
    return np.exp(log_c) * m**-alpha


def shifted(m, log_first, alpha, log_one_m0):
    m0 = np.expm1(log_one_m0)
    return np.exp(log_first) * ((m + m0) / (1 + m0)) ** -alpha


def saturating(m, log_first, log_last, log_b):
    first, last = np.exp(log_first), np.exp(log_last)
    return last - (last - first) * m ** -np.exp(log_b)


def theory(m, log_c, beta, log_n):
    n = np.exp(log_n)
    return np.exp(log_c) * (m * (m + n) / (1 + n)) ** (beta / 2)


# The law in the same coordinates, their limits, and starts far from each other.
WRITTEN = {
    "constant": (lambda m, log_c: np.exp(log_c) + 0 * m, [(-40, 40)], [[1.0]]),
    "power": (power, [(-40, 40), (-8, 8)], [[1.0, 0.0], [4.0, -0.3]]),
    "logarithmic": (
        lambda m, a, b: a + b * np.log(m),
        [(-np.inf, np.inf)] * 2,
        [[50.0, 0.1], [20.0, 3.0]],
    ),
    "saturating": (
        saturating,
        [(-40, np.inf), (-40, np.inf), RATE],
        [[3.0, 4.0, b] for b in (-2.5, -1.0, 0.5, 1.5)],
    ),
    "shifted": (
        shifted,
        [(-40, 40), (-8, 8), SHIFT],
        [[3.0, -0.3, s] for s in (-3.0, -1.0, 0.5, 3.0, 6.0)],
    ),
    "theory": (
        theory,
        [(-40, 40), (-8, 8), BALANCE],
        [[3.0, 0.3, n] for n in (-3.0, 0.5, 3.0, 6.0, 9.0)],
    ),
}


@functools.cache
def published(metric):
    return published_scores().of(metric, "vqq")


def scipy_loss(name, series, residuals):
    """The smallest sum of squares from every start."""
    curve, limits, starts = WRITTEN[name]
    limits = np.array(limits, float)
    if name == "saturating":
        limits[:2, 1] = np.log(series.upper)
    m = series.m.astype(float)

    def left(u):
        return residuals(curve(m, *u))

    found = []
    for start in starts:
        start = np.clip(start, limits[:, 0] + 1e-6, limits[:, 1] - 1e-6)
        one = optimize.least_squares(
            left, start, bounds=limits.T, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        found.append(2 * one.cost)
    return min(found)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("metric", METRICS)
def test_same_loss_as_least_squares(name, metric):
    series = published(metric)
    law = on_scale(LAWS[name], series.upper)
    found = fit(law, series.m.astype(float), series.score[None], noises.log_noise())

    def residuals(curve):
        # A sum may leave what has a logarithm on its way.
        return np.log(np.maximum(curve, 1e-9)) - np.log(series.score)

    expected = scipy_loss(name, series, residuals)
    np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)
    moved = found.u.copy()
    moved[0, 0] *= 1.01
    away = law.curve(moved, series.m * 1.0)[0]
    assert (residuals(away) ** 2).sum() > expected * (1 + 1e-6)


def test_paper_power_is_the_line_through_the_logarithms():
    for metric in METRICS:
        series = published(metric)
        c, alpha = paper_power(series.m.astype(float), series.score)
        slope, intercept = np.polyfit(np.log(series.m), np.log(series.score), 1)
        np.testing.assert_allclose([c, alpha], [np.exp(intercept), -slope], rtol=1e-5)
        other = fit(POWER, series.m * 1.0, series.score[None], noises.log_noise())
        np.testing.assert_allclose(other.u[0], [np.log(c), alpha], rtol=1e-5)


@pytest.mark.parametrize(
    "m, score", [([1.0, 2], [0.0, 3]), ([1.0, 2], [-1.0, 3]), ([4.0], [3.0])]
)
def test_paper_power_refuses_what_has_no_line(m, score):
    with pytest.raises(ValueError, match="positive scores at two M or more"):
        paper_power(np.array(m), np.array(score))


def binomial_loss(curve, score, n, upper):
    """Twice the negative log-likelihood above that of the saturated model."""
    k, p = score / upper * n, curve / upper
    if np.any(p <= 0) or np.any(p >= 1):
        return np.inf
    full = k / n
    return 2 * np.sum(
        k * np.log(full) - k * np.log(p)
        + (n - k) * np.log1p(-full) - (n - k) * np.log1p(-p)
    )  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("score", [(5, 9, 14, 20, 30), (70, 88, 96, 99, 99.5)])
def test_items_are_a_binomial_likelihood(name, score):
    m, n = np.array([1.0, 4, 16, 64, 256]), np.array([200.0, 300, 200, 400, 200])
    score = np.array(score, float)
    law = on_scale(LAWS[name], 100.0)
    found = fit(law, m, score[None], noises.item_noise(n, 100.0))
    curve, limits, starts = WRITTEN[name]
    limits = np.array(limits, float)
    if name == "saturating":
        limits[:2, 1] = np.log(100.0)

    def loss(u):
        if np.any(u < limits[:, 0]) or np.any(u > limits[:, 1]):
            return np.inf
        return binomial_loss(curve(m, *u), score, n, 100.0)

    flat = {"logarithmic": [40.0, 0.01], "power": [3.5, -0.01]}.get(name)
    options = {"xatol": 1e-10, "fatol": 1e-11, "maxiter": 4000, "maxfev": 4000}
    around = [found.u[0], found.u[0] * 1.05, *([flat] if flat else starts[1:3])]
    with np.errstate(invalid="ignore"):
        best = min(
            optimize.minimize(
                loss, np.array(u, float), method="Nelder-Mead", options=options
            ).fun
            for u in around
            if np.isfinite(loss(np.array(u, float)))
        )
    assert abs(loss(found.u[0]) - found.loss[0]) < 1e-6 * found.loss[0]
    assert found.loss[0] <= best * (1 + 1e-6) + 1e-9
    assert loss(found.u[0] * 1.001) > best


@pytest.mark.parametrize("name", ["power", "logarithmic", "shifted", "theory"])
def test_scores_at_the_end_of_the_scale_do_not_stop_a_fit(name):
    # The best law comes close to the end here; steps that overshoot stay short of it.
    m, n = 2.0 ** np.arange(7), np.full(7, 500.0)
    score = np.array([50.0, 99, 100, 100, 100, 100, 100])
    found = fit(LAWS[name], m, score[None], noises.item_noise(n, 100.0))
    counted = np.minimum(score, 100 * (1 - 0.5 / n))  # half a question from all
    curve, limits, _ = WRITTEN[name]

    def loss(u):
        if np.any(u < np.array(limits)[:, 0]) or np.any(u > np.array(limits)[:, 1]):
            return np.inf
        return binomial_loss(curve(m, *u), counted, n, 100.0)

    options = {"xatol": 1e-10, "fatol": 1e-11, "maxiter": 6000, "maxfev": 6000}
    first = np.eye(found.u.shape[1])[0]
    with np.errstate(invalid="ignore"):
        best = optimize.minimize(
            loss, found.u[0] - 0.01 * first, method="Nelder-Mead", options=options
        )
    assert np.isfinite(best.fun)
    assert found.loss[0] <= best.fun * (1 + 1e-5)


def test_half_a_question_is_all_that_an_end_is_moved():
    n = np.array([10.0, 10, 10, 10])
    shares = noises.inner_share(np.array([0.0, 1, 5, 10]), n, 10.0)
    np.testing.assert_allclose(shares, [0.05, 0.1, 0.5, 0.95])


def test_known_errors_are_those_of_curve_fit():
    rng = np.random.default_rng(3)
    sigma = np.linspace(0.2, 3.0, len(M))
    score = 20 * M**0.2 + sigma * rng.standard_normal(len(M))
    found = fit(POWER, M, score[None], noises.normal_noise(sigma, np.inf))
    ours = [np.exp(found.u[0, 0]), found.u[0, 1]]

    def other(errors):
        return optimize.curve_fit(
            lambda m, c, alpha: c * m**-alpha,
            M,
            score,
            p0=(20, -0.1),
            sigma=errors,
            absolute_sigma=True,
            xtol=1e-14,
            ftol=1e-14,
        )[0]

    np.testing.assert_allclose(ours, other(sigma), rtol=1e-6)
    assert not np.allclose(ours, other(np.ones(len(M))), rtol=1e-4)


@pytest.mark.parametrize("bend", [0.02, 0.1])
def test_huber_is_squares_then_lines(bend):
    rng = np.random.default_rng(4)
    score = 20 * M**0.2 * np.exp(0.05 * rng.standard_normal(len(M)))
    score[3] *= 0.5
    found = fit(POWER, M, score[None], noises.log_noise(bend))

    def loss(u):
        left = np.abs(np.log(score) - u[0] + u[1] * np.log(M))
        return np.sum(np.where(left < bend, left**2, 2 * bend * left - bend**2))

    # least_squares has the same loss as ρ(z) of z = (r/bend)², and other steps.
    other = optimize.least_squares(
        lambda u: np.log(score) - u[0] + u[1] * np.log(M),
        [3.0, 0.0],
        loss="huber",
        f_scale=bend,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert abs(found.loss[0] - loss(found.u[0])) < 1e-12
    np.testing.assert_allclose(found.loss[0], loss(other.x), rtol=1e-6)
    squares = fit(POWER, M, score[None], noises.log_noise())
    # Steps of the loss's middle come to a stop where gains are below 1e-11 of it.
    np.testing.assert_allclose(found.u[0], other.x, rtol=2e-3)
    assert abs(squares.u[0, 0] - other.x[0]) > 0.02


TRUTHS = {
    "constant": [3.0],
    "power": [3.0, -0.2],
    "logarithmic": [10.0, 4.0],
    "saturating": [2.5, 4.2, -1.0],
    "shifted": [2.5, -0.4, 2.0],
    "theory": [2.5, 0.3, 4.0],
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", noises.KINDS)
def test_exact_scores_give_the_law_back(name, kind):
    law, true = LAWS[name], np.array([TRUTHS[name]])
    score = law.curve(true, M)
    noise = {
        "log": noises.log_noise(),
        "items": noises.item_noise(np.full(len(M), 400.0), 100.0),
        "stderr": noises.normal_noise(np.full(len(M), 0.5), 100.0),
    }[kind]
    found = fit(law, M, score, noise)
    assert found.loss[0] < 1e-8
    ours, theirs = law.estimates(found.u), law.estimates(true)
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=2e-3, err_msg=key)
    other = fit(law, M, law.curve(true * 1.02, M), noise)
    changed = law.estimates(other.u)
    assert not np.allclose(changed[law.edges[0]], theirs[law.edges[0]], rtol=2e-3)


def test_rows_are_fitted_apart():
    rng = np.random.default_rng(0)
    rows = 30 * M**0.1 * np.exp(0.1 * rng.standard_normal((5, len(M))))
    for name, law in LAWS.items():
        starts = law.starts(rows.mean(0), M)
        together = fit(law, M, rows, noises.log_noise(), starts)
        for row in range(5):
            alone = fit(law, M, rows[row : row + 1], noises.log_noise(), starts)
            assert together.loss[row] == pytest.approx(alone.loss[0], rel=1e-9), name
            np.testing.assert_array_equal(together.u[row], alone.u[0])


def test_a_law_that_leaves_the_scale_has_an_infinite_loss():
    noise = noises.item_noise(np.full(3, 50.0), 1.0)
    m, score = np.array([1.0, 2, 4]), np.array([[0.2, 0.5, 0.9]])
    losses = noise.loss(score, np.array([[0.2, 0.5, 1.0], [0.0, 0.5, 0.9]]))
    assert np.isinf(losses).tolist() == [[False, False, True], [True, False, False]]
    normal = noises.normal_noise(np.full(3, 0.1), 1.0)
    # Normal errors may carry a score, and a law, beyond an end.
    found = normal.loss(score, np.array([[0.2, 0.5, 1.2]]))
    np.testing.assert_allclose(found, [[0, 0, 9]])
    logs = noises.log_noise().loss(score, np.array([[0.2, -0.5, 0.9]]))
    assert np.isinf(logs).tolist() == [[False, True, False]]
    # No start on the scale: said by the loss, not by a fit that is none.
    off = fit(LOGARITHMIC, m, score, noise, np.array([[5.0, 1.0]]))
    assert np.isinf(off.loss[0])


def test_saturation_stays_on_its_scale():
    m = np.array([1.0, 2, 4, 8, 16, 32])
    score = 40 + 12 * np.log(m)  # would go on beyond 100
    free = fit(SATURATING, m, score[None], noises.log_noise())
    held = fit(on_scale(SATURATING, 100.0), m, score[None], noises.log_noise())
    assert SATURATING.estimates(free.u)["s_inf"][0] > 150
    assert SATURATING.estimates(held.u)["s_inf"][0] == pytest.approx(100.0)
    assert held.loss[0] > free.loss[0]


@pytest.mark.parametrize("name", LAWS)
def test_jacobian_is_that_of_the_curve(name):
    law, u = LAWS[name], np.array([TRUTHS[name]])
    slopes = jacobian(law, M, u)[0]
    for i in range(u.shape[1]):
        moved = u.copy()
        moved[0, i] += 1e-7
        once = (law.curve(moved, M) - law.curve(u, M))[0] / 1e-7
        np.testing.assert_allclose(slopes[:, i], once, rtol=1e-4, atol=1e-5)


def test_noise_is_what_a_series_knows():
    m, score = np.array([1, 8]), np.array([20.0, 30.0])
    bare = Series("", "x", m, score)
    assert noises.noise_of(bare).kind == "log"
    n = np.array([50, 50])
    items = bare._replace(n_items=n, upper=100.0)
    assert noises.noise_of(items).kind == "items"
    assert noises.noise_of(bare._replace(n_items=n)).kind == "log"
    stderr = bare._replace(stderr=np.array([1.0, 2.0]))
    assert noises.noise_of(stderr).kind == "stderr"
    # Parts of a point vary less than right or wrong does: what is said counts.
    both = items._replace(stderr=stderr.stderr)
    assert noises.noise_of(both).kind == "stderr"
    assert noises.noise_of(both, huber=0.1).kind == "log"
    assert noises.noise_of(items, huber=0.1).bend == 0.1


def test_the_slope_of_a_loss_is_what_steps_are_made_of():
    score, fitted = np.array([[3.0, 50, 97]]), np.array([[5.0, 40, 99]])
    kinds = {
        "items": noises.item_noise(np.array([50.0, 60, 70]), 100.0),
        "stderr": noises.normal_noise(np.array([1.0, 2, 3]), 100.0),
        "log": noises.log_noise(),
        "huber": noises.log_noise(0.1),
    }
    for kind, noise in kinds.items():
        pull, weight = noise.downhill(score, fitted)
        step = 1e-5
        ahead, behind = (noise.loss(score, fitted + s) for s in (step, -step))
        slope = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(-2 * pull * weight, slope, rtol=1e-4, err_msg=kind)
        bend = (ahead + behind - 2 * noise.loss(score, fitted)) / step**2
        if kind in ("items", "stderr"):
            np.testing.assert_allclose(2 * weight**2, bend, rtol=1e-3, err_msg=kind)
