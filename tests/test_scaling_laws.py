"""Laws: their curves against formulas written out, their limits, what they refuse."""

import numpy as np
import pytest

from vtscale_jax.scaling.laws import (
    LAWS,
    LOGARITHMIC,
    POWER,
    SATURATING,
    SHIFTED,
    THEORY,
    WEIGHTED_POWER,
    measured_theory,
    on_scale,
)

M = np.array([1.0, 2, 3, 8, 50, 768])
# S(M) by the names of the estimates, as the table in the docstring of `laws` has it.
WRITTEN = {
    "constant": lambda m, c: c + 0 * m,
    "power": lambda m, c, alpha: c / m**alpha,
    "logarithmic": lambda m, a, b: a + b * np.log(m),
    "saturating": lambda m, s_inf, a, b: s_inf - a / m**b,
    "shifted": lambda m, c, alpha, m0: c / (m + m0) ** alpha,
    "theory": lambda m, c, beta, n_balance: (
        c * (m * (m + n_balance) / (1 + n_balance)) ** (beta / 2)
    ),
}
COORDINATES = {
    "constant": [[1.2]],
    "power": [[3.0, -0.3], [-2.0, 0.4]],
    "logarithmic": [[50.0, 4.0], [3.0, -0.2]],
    "saturating": [[2.0, 4.0, -0.8], [4.0, 2.0, 0.5]],
    "shifted": [[3.0, -0.4, 2.0], [1.0, 0.3, -1.0]],
    "theory": [[3.0, 0.4, 4.0], [1.0, -0.2, -1.0]],
}


@pytest.mark.parametrize("name", LAWS)
def test_curve_is_its_formula(name):
    law = LAWS[name]
    u = np.array(COORDINATES[name])
    curves, estimates = law.curve(u, M), law.estimates(u)
    assert curves.shape == (len(u), len(M))
    for row, curve in enumerate(curves):
        told = {key: value[row] for key, value in estimates.items()}
        np.testing.assert_allclose(curve, WRITTEN[name](M, **told), rtol=1e-12)
        changed = {key: value * 1.01 for key, value in told.items()}
        assert not np.allclose(curve, WRITTEN[name](M, **changed), rtol=1e-4)


def test_every_law_has_a_formula_here():
    assert set(LAWS) == set(WRITTEN) == set(COORDINATES)


@pytest.mark.parametrize("name", LAWS)
def test_what_a_law_says_of_itself_fits_together(name):
    law = LAWS[name]
    u = np.array(COORDINATES[name])
    assert law.num_parameters == u.shape[1] == len(law.edges)
    assert set(law.edges) == set(law.estimates(u))
    assert set(law.positive) <= set(law.edges)
    assert law.growth is None or law.growth in law.edges
    assert law.name == name
    assert all(np.all(law.estimates(u)[key] > 0) for key in law.positive)


@pytest.mark.parametrize("name", [name for name in LAWS if LAWS[name].growth])
def test_without_growth_m_does_not_matter(name):
    law = LAWS[name]
    u = np.array(COORDINATES[name][:1])
    # Of `saturating`, a is the distance of its two ends.
    place = law.edges.index(law.growth)
    flat, bent = u.copy(), u.copy()
    flat[:, place] = u[:, 1] if name == "saturating" else 0.0
    assert abs(law.estimates(flat)[law.growth][0]) < 1e-12
    assert np.ptp(law.curve(flat, M)) < 1e-9
    assert np.ptp(law.curve(bent, M)) > 0.1


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(
    "score", [[0.0, 0, 0], [0.0, 1, 3], [-2.0, 1, 3], [5.0, 5, 5], [1e-9, 1, 1e9]]
)
def test_starts_can_always_be_computed(name, score):
    law, m = LAWS[name], np.array([1.0, 8, 64])
    starts = law.starts(np.array(score), m)
    assert starts.shape[1] == law.num_parameters
    assert np.isfinite(starts).all()
    assert np.isfinite(law.starts(np.array(score[:1]), m[:1])).all()


@pytest.mark.parametrize("n_balance", [0.1, 7.0, 400.0])
def test_theory_is_upsilon_of_constant_psi(n_balance):
    # Υ(n) = (A − B)n + Bn² with n_bal = A/B − 1 (math §4), to the power β/2.
    b = 0.1
    a = (n_balance + 1) * b
    upsilon = (a - b) * M + b * M**2
    beta = 0.37
    u = np.array([[np.log(5.0), beta, np.log(n_balance)]])
    expected = 5.0 * (upsilon / upsilon[0]) ** (beta / 2)
    np.testing.assert_allclose(THEORY.curve(u, M)[0], expected, rtol=1e-12)
    # α(n) = (β/2)·log_n((1 + n_bal)/(n + n_bal)) − β/2 of the same section.
    n = M[1:]
    alpha = 0.5 * beta * np.log((1 + n_balance) / (n + n_balance)) / np.log(n)
    alpha -= 0.5 * beta
    np.testing.assert_allclose(THEORY.curve(u, n)[0], 5.0 / n**alpha, rtol=1e-12)


def test_measured_theory_uses_upsilon_as_it_is():
    upsilon = {1: 0.5, 2: 1.3, 3: 1.1, 8: 4.0, 50: 90.0, 768: 1e4, 999: 2e4}
    law = measured_theory(upsilon)
    u = np.array([[np.log(7.0), 0.6]])
    expected = [7.0 * (upsilon[int(m)] / 0.5) ** 0.3 for m in M]
    np.testing.assert_allclose(law.curve(u, M)[0], expected, rtol=1e-12)
    assert law.estimates(u)["beta"] == 0.6
    assert law.name == "theory_measured" and law.growth == "beta"
    with pytest.raises(ValueError, match=r"Υ was not measured at M = 4, 16:.*longer"):
        law.curve(u, np.array([1.0, 4, 16]))


@pytest.mark.parametrize(
    "upsilon, said",
    [
        ({2: 1.0}, r"Υ\(1\) is not there"),
        ({1: 0.0, 2: 1.0}, r"Υ\(1\) is 0.0, expected Υ above 0"),
        ({1: 1.0, 2: -3.0}, r"Υ\(2\) is -3.0"),
        ({1: 1.0, 2: float("nan")}, r"Υ\(2\) is nan"),
    ],
)
def test_measured_theory_refuses(upsilon, said):
    with pytest.raises(ValueError, match=said):
        measured_theory(upsilon)


def test_on_scale_holds_the_ends_of_saturating_alone():
    held = on_scale(SATURATING, 100.0)
    assert [high for _, high in held.limits[:2]] == [np.log(100.0)] * 2
    assert held.limits[2] == SATURATING.limits[2]
    assert on_scale(SATURATING, np.inf) is SATURATING
    for law in (POWER, LOGARITHMIC, SHIFTED, THEORY):
        assert on_scale(law, 100.0) is law


def test_weighted_power_is_another_law_with_the_same_curve():
    u = np.array(COORDINATES["power"])
    np.testing.assert_array_equal(WEIGHTED_POWER.curve(u, M), POWER.curve(u, M))
    assert WEIGHTED_POWER != POWER and WEIGHTED_POWER.name not in LAWS
