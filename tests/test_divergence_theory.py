"""Theory of the divergence: closed forms against numerics, limits, worked numbers."""

import inspect
import math
import re

import numpy as np
import pytest

from vtscale_jax.divergence import first_version, theory

NAN = math.nan
N = np.arange(1, 401)


def curve(value, size=400):
    """A cross measure that is constant, undefined at n = 1."""
    return np.r_[NAN, np.full(size - 1, value)]


def random_psi(seed, size=40):
    equal, within, cross = np.random.default_rng(seed).uniform(-1, 1, (3, size))
    within[0] = cross[0] = NAN
    return equal, within, cross


# --- Υ and the bound -----------------------------------------------------------------


def test_spread_by_hand():
    found = theory.spread([0.5, 0.5, 0.25], [NAN, 0.4, 0.6], [NAN, 0.3, 0.1])
    # 1·0.5; 2·0.5 + 2·0.1; 3·0.75 + 6·0.5
    np.testing.assert_allclose(found, [0.5, 1.2, 5.25], rtol=1e-15)
    assert found.dtype == np.float64


def test_spread_is_the_sum_over_positions():
    """Υ(n) counts 1 − ψ_equal once for each i and ψ_AA − ψ_AB for each i ≠ j."""
    equal, within, cross = random_psi(0)
    summed = [
        sum(
            1 - equal[n - 1] if i == j else within[n - 1] - cross[n - 1]
            for i in range(n)
            for j in range(n)
        )
        for n in range(1, 41)
    ]
    np.testing.assert_allclose(theory.spread(equal, within, cross), summed, rtol=1e-12)


def test_signed_mean_spread_is_the_exact_divergence():
    """Unit states, signed means: mean D² = 2·Υ with the symmetric ψ_within (§5). A
    sign turned, or ½ left out, breaks it."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 7, 12, 5))
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))

    def mean_cosine(x, y, n):
        gram = np.einsum("pid,pjd->pij", x[:, :n], y[:, :n])
        return gram[:, ~np.eye(n, dtype=bool)].mean() if n > 1 else NAN

    ends = range(1, 13)
    squared = np.array([(((a - b)[:, :n].sum(1)) ** 2).sum(-1).mean() for n in ends])
    equal = np.array([np.einsum("pid,pid->pi", a, b)[:, :n].mean() for n in ends])
    aa, bb, ab = (
        np.array([mean_cosine(x, y, n) for n in ends])
        for x, y in ((a, a), (b, b), (a, b))
    )
    np.testing.assert_allclose(
        2 * theory.spread(equal, (aa + bb) / 2, ab), squared, rtol=1e-12
    )
    for wrong in (theory.spread(equal, aa + bb, ab), theory.spread(equal, ab, aa)):
        assert not np.allclose(2 * wrong, squared, rtol=1e-2)
    # And E[D] is below its bound, by Jensen.
    mean = [np.linalg.norm((a - b)[:, :n].sum(1), axis=-1).mean() for n in ends]
    ceiling = theory.bound(theory.spread(equal, (aa + bb) / 2, ab), largest_norm=1)
    assert np.all(mean <= ceiling * (1 + 1e-12))
    np.testing.assert_allclose(ceiling, np.sqrt(squared), rtol=1e-12)


def test_constant_spread_is_that_of_constant_curves():
    curves = theory.spread(np.full(400, 0.3), curve(0.25), curve(0.2))
    np.testing.assert_allclose(theory.constant_spread(N, 0.3, 0.25, 0.2), curves)
    # (A − B)·n + B·n² with A = 0.7 and B = 0.05
    np.testing.assert_allclose(curves, 0.65 * N + 0.05 * N**2)
    assert theory.constant_spread(1, 0.3, NAN, NAN) == pytest.approx(0.7)


def test_spread_takes_many_curves_at_once():
    sets = [random_psi(seed) for seed in range(3)]
    stacked = theory.spread(*(np.stack(each) for each in zip(*sets, strict=True)))
    for row, psi in zip(stacked, sets, strict=True):
        np.testing.assert_array_equal(row, theory.spread(*psi))


def test_identical_branches_do_not_part():
    upsilon = theory.spread(np.ones(5), curve(0.4, 5), curve(0.4, 5))
    np.testing.assert_array_equal(upsilon, np.zeros(5))
    assert theory.regime(1, 0.4, 0.4, longest=5).label == "no divergence"
    # A cosine of float32 passes 1 by its rounding; Υ(1) is 0 then, not negative.
    assert theory.spread([1 + 1e-7], [NAN], [NAN])[0] == 0


def test_bound_by_hand():
    found = theory.bound([2, 8, 0, -1, NAN], largest_norm=3)
    np.testing.assert_allclose(found, [6, 12, 0, NAN, NAN], rtol=1e-15)


@pytest.mark.parametrize("within", [0.2, 0.35, 0.399, 0.1])
def test_limit_is_where_the_spread_turns_negative(within):
    limit = float(theory.bound_limit(0.3, within, 0.4))
    n = np.arange(1, 2000)
    positive = theory.constant_spread(n, 0.3, within, 0.4) >= 0
    last = int(n[positive][-1])
    assert positive[:last].all() and not positive[last:].any()
    assert last <= limit * (1 + 1e-12) and limit < last + 1
    at_limit = theory.constant_spread(limit, 0.3, within, 0.4)
    assert at_limit == pytest.approx(0, abs=1e-9)
    # Without the 1, or with A for 1 − ψ_equal taken as ψ_equal, it is another n.
    assert abs(theory.constant_spread(limit - 1, 0.3, within, 0.4)) > 1e-3


def test_no_limit_when_within_is_at_least_cross():
    limits = theory.bound_limit(0.3, [0.4, 0.5, NAN], [0.4, 0.4, 0.4])
    np.testing.assert_array_equal(limits, [math.inf, math.inf, NAN])
    assert theory.bound_limit(1, 0.1, 0.2) == 1


# --- balance and regimes -------------------------------------------------------------


def test_balance_by_hand():
    # A = 0.6, B = 0.02: n_balance = 29; ρ(58) = 1/2
    assert theory.n_balance(0.4, 0.32, 0.3) == pytest.approx(29)
    assert theory.balance(58, 0.4, 0.32, 0.3) == pytest.approx(0.5)


def test_balance_is_the_quotient_of_the_terms():
    n, a, b = 17, 0.6, 0.02
    assert theory.balance(n, 0.4, 0.32, 0.3) == pytest.approx(
        (a - b) * n / (b * n**2), rel=1e-10
    )
    # At n_balance both terms are equal, so Υ is twice the quadratic one.
    middle = theory.n_balance(0.4, 0.32, 0.3)
    assert theory.constant_spread(middle, 0.4, 0.32, 0.3) == pytest.approx(
        2 * b * middle**2, rel=1e-10
    )


def test_balance_of_curves_is_elementwise():
    equal, within, cross = random_psi(2)
    n = np.arange(1, 41)
    found = theory.balance(n, equal, within, cross)
    assert math.isnan(found[0])
    for i in (1, 7, 39):
        one = theory.balance(n[i], equal[i], within[i], cross[i])
        assert found[i] == one


def test_balance_at_its_edges():
    assert theory.n_balance(0.4, 0.3, 0.3) == math.inf  # B = 0
    assert math.isnan(theory.n_balance(1, 0.3, 0.3))  # A = B = 0
    assert theory.n_balance(1, 0.4, 0.3) == -1  # A = 0
    assert theory.n_balance(0.5, 0.9, 0.3) < 0  # B > A
    # B < 0: the limit of the bound is −n_balance.
    limit = theory.bound_limit(0.4, 0.28, 0.3)
    assert theory.n_balance(0.4, 0.28, 0.3) == pytest.approx(-limit)


def test_regime_without_excess_is_sublinear_for_all_n():
    found = theory.regime(0.4, 0.3, 0.3, longest=10**6)
    assert (found.label, found.ranges) == ("sublinear", {"sublinear": (1, 10**6)})
    assert found.n_balance == math.inf and "every n" in found.sentence


def test_regimes_by_n():
    # A = 1/2, B = 1/64, n_balance = 31: sublinear below 10.3, linear above 93
    psi = (1 / 2, 18 / 64, 17 / 64)
    found = theory.regime(*psi, longest=400)
    assert found.ranges == {
        "sublinear": (1, 10),
        "transition": (11, 93),
        "linear": (94, 400),
    }
    assert found.label == "linear" and found.n_balance == 31
    assert theory.regime(*psi, longest=93).label == "transition"
    assert theory.regime(*psi, longest=10).label == "sublinear"
    narrow = theory.regime(*psi, longest=400, border=1)
    assert narrow.ranges == {
        "sublinear": (1, 30),
        "transition": (31, 31),
        "linear": (32, 400),
    }


def test_regimes_are_those_of_the_growth_itself():
    """The local exponent of √Υ is within the border's error of ½ and of 1."""

    def growth(n):
        ends = theory.constant_spread([n * 0.999, n * 1.001], 0.4, 0.3002, 0.3)
        return np.log(ends[1] / ends[0]) / 2 / np.log(1.001 / 0.999)

    ranges = theory.regime(0.4, 0.3002, 0.3, longest=10**6).ranges
    # ½ + ½/(1 + ρ) with ρ = 3 and ρ = 1/3
    assert growth(ranges["sublinear"][1]) == pytest.approx(0.625, abs=1e-3)
    assert growth(ranges["linear"][0]) == pytest.approx(0.875, abs=1e-3)
    assert growth(10) < 0.51 and growth(10**6) > 0.99


def test_regime_is_linear_from_the_start_when_b_is_large():
    found = theory.regime(0.8, 0.7, 0.3, longest=50)
    assert (found.label, found.ranges) == ("linear", {"linear": (1, 50)})
    assert "from the start" in found.sentence


@pytest.mark.parametrize(
    "longest, ranges, word",
    [
        (20, {"sublinear": (1, 4), "no bound": (5, 20)}, "beyond that"),
        (4, {"sublinear": (1, 4)}, "just there"),
        (3, {"sublinear": (1, 3)}, "would end there, beyond what was measured (n ≤ 3)"),
    ],
)
def test_regime_of_negative_excess_ends(longest, ranges, word):
    # 1 + 0.3/0.1 = 4, but in floating point a last bit less
    assert theory.bound_limit(0.7, 0.3, 0.4) < 4
    found = theory.regime(0.7, 0.3, 0.4, longest=longest)
    assert found.label == "no bound beyond n = 4"
    assert found.ranges == ranges and word in found.sentence
    # Only where it was measured is it said to be so.
    assert ("Υ is negative" in found.sentence) == (longest >= 4)


@pytest.mark.parametrize(
    "psi, longest, words",
    [
        # A = 1/2; n_balance = A/B − 1 = 15, with B = 1/32
        (
            (1 / 2, 9 / 32, 8 / 32),
            256,
            "n_balance is 15: the bound grows like √n for n ≤ 4, like n for n ≥ 46; at "
            "n = 256, the last one, this is linear.",
        ),
        # B = 0.3: n_balance = 2/3, and no n is below a third of it
        (
            (0.5, 0.5, 0.2),
            256,
            "n_balance is 0.6667: the bound grows like n for n ≥ 3; at n = 256, the "
            "last one, this is linear.",
        ),
        # B = 5/12: n_balance = 0.2, and every n is above three times it
        (
            (0.5, 5 / 12, 0.0),
            256,
            "n_balance is 0.2: the bound grows like n; at n = 256, the last one, this "
            "is linear.",
        ),
        # B = 2⁻¹⁵: n_balance = 2¹⁴ − 1
        (
            (1 / 2, 2**-15, 0.0),
            4096,
            "n_balance is 16,383: the bound grows like √n for n ≤ 5,460, like n for n "
            "≥ 49,150; at n = 4,096, the last one, this is sublinear.",
        ),
    ],
)
def test_regimes_are_said_of_n_that_exist(psi, longest, words):
    found = theory.regime(*psi, longest=longest)
    assert found.sentence == words
    # The same n as in the ranges, where these are not cut off at the longest n.
    whole = theory.regime(*psi, longest=10**6).ranges
    assert (f"n ≤ {whole.get('sublinear', (0, 0))[1]:,}," in words) == (
        "sublinear" in whole
    )
    assert f"n ≥ {whole['linear'][0]:,};" in words or whole["linear"][0] == 1


# --- scores and exponents ------------------------------------------------------------


@pytest.mark.parametrize("within", [0.3, 0.32, 0.9, 0.2999])
@pytest.mark.parametrize("beta", [0.4, 2.0, -0.3])
def test_exponent_reproduces_the_score(within, beta):
    """S(n) = κ(√Υ)^β = c / n^α(n), for both forms of α and every n > 1."""
    upsilon = theory.constant_spread(N, 0.4, within, 0.3)
    direct = theory.score(upsilon, kappa=1.7, beta=beta)
    c = theory.score_at_one(0.4, kappa=1.7, beta=beta)
    general = theory.exponent(upsilon, beta=beta)
    closed = theory.constant_exponent(
        N, n_balance=theory.n_balance(0.4, within, 0.3), beta=beta
    )
    assert direct[0] == pytest.approx(c) and math.isnan(general[0])
    np.testing.assert_allclose(general[1:], closed[1:], rtol=1e-9)
    np.testing.assert_allclose((c / N**closed)[1:], direct[1:], rtol=1e-9)


def test_exponent_by_hand():
    # Υ = 1, 4: log_2 4 = 2, α(2) = −β
    np.testing.assert_allclose(theory.exponent([1, 4], beta=0.6), [NAN, -0.6])
    # n_balance = 1, n = 2: (β/2)·log_2(2/3) − β/2
    found = theory.constant_exponent(2, n_balance=1, beta=0.6)
    assert found == pytest.approx(0.3 * math.log2(2 / 3) - 0.3)


def test_constant_exponent_without_excess():
    found = theory.constant_exponent(N, n_balance=math.inf, beta=0.6)
    np.testing.assert_allclose(found, np.full(len(N), -0.3), rtol=1e-15)


@pytest.mark.parametrize("middle", [0.5, 3.0, 90.0, 1e6])
def test_constant_exponent_falls_between_its_limits(middle):
    n = np.concatenate([1 + np.logspace(-9, 0, 30), np.logspace(0.5, 300, 200)])
    found = theory.constant_exponent(n, n_balance=middle, beta=0.8)
    assert np.all(np.diff(found) < 0)
    start = theory.constant_exponent(1, n_balance=middle, beta=0.8)
    assert start == pytest.approx(-0.4 * (1 + 1 / (1 + middle)), rel=1e-15)
    # The limit for n → 1 is approached, not jumped at.
    assert found[0] == pytest.approx(float(start), rel=1e-7)
    # and −β for n → ∞, as slowly as log(1 + n_balance)/log n
    slack = 0.4 * math.log(1 + middle) / math.log(1e300)
    assert found[-1] == pytest.approx(-0.8 + slack, rel=1e-9)
    assert found[-1] > -0.8


def test_exponent_is_undefined_without_a_spread():
    found = theory.exponent([0.5, 0.2, -0.1], beta=1)
    assert np.isfinite(found[1]) and math.isnan(found[2])
    assert np.isnan(theory.exponent([0.0, 0.2], beta=1)).all()
    assert math.isnan(theory.constant_exponent(3, n_balance=-1, beta=1))
    past = theory.constant_exponent([2, 3.9, 4, 9], n_balance=-4, beta=1)
    np.testing.assert_array_equal(np.isnan(past), [False, False, True, True])


def test_score_at_its_edges():
    np.testing.assert_array_equal(
        theory.score([4, 0, -1, NAN], kappa=2, beta=1), [4, 0, NAN, NAN]
    )
    assert theory.score(0, kappa=2, beta=-1) == math.inf
    assert theory.score_at_one(1, kappa=2, beta=1) == 0
    assert theory.score_at_one(0.75, kappa=2, beta=2) == pytest.approx(0.5)


def test_expected_positive_cosine():
    np.testing.assert_allclose(
        theory.expected_positive_cosine([1, 2, 3]), [1 / 2, 1 / math.pi, 1 / 4]
    )
    generator = np.random.default_rng(3)
    for d in (4, 17):
        x = generator.normal(size=(200_000, d))
        drawn = np.maximum(x[:, 0] / np.linalg.norm(x, axis=1), 0)
        error = drawn.std() / math.sqrt(len(drawn))
        expected = float(theory.expected_positive_cosine(d))
        assert abs(drawn.mean() - expected) < 4 * error < expected / 50
    # 1/√(2πd) for large d: no cancellation of large logarithms
    found = theory.expected_positive_cosine(10**8)
    assert found == pytest.approx(1 / math.sqrt(2 * math.pi * 1e8), rel=1e-8)


# --- the first version ---------------------------------------------------------------


def test_first_version_by_hand():
    psi = [NAN, 0.5, 0.25]
    # 1; 2 + 2·0.5; 3 + 6·0.25
    np.testing.assert_allclose(first_version.delta_spread(psi), [1, 3, 4.5])
    np.testing.assert_allclose(
        first_version.delta_bound(psi, sigma=2), [2, 2 * 3**0.5, 2 * 4.5**0.5]
    )
    assert math.isnan(first_version.delta_bound([NAN, -1, -1], sigma=1)[2])
    # n = 4, ψ = 0.25: √(4 + 12/4)/(4/2)
    assert first_version.linear_ratio(4, 0.25) == pytest.approx(math.sqrt(7) / 2)
    assert first_version.ratio_threshold(0.5, ratio=math.sqrt(2)) == pytest.approx(1)


@pytest.mark.parametrize("psi", [0.003, 0.2, 0.9])
@pytest.mark.parametrize("ratio", [1.01, 1.1, 2.0])
def test_first_threshold_is_where_the_ratio_is_reached(psi, ratio):
    at = float(first_version.ratio_threshold(psi, ratio=ratio))
    plain = math.sqrt(at + (at * at - at) * psi) / (at * math.sqrt(psi))
    assert plain == pytest.approx(ratio, rel=1e-9)
    if at >= 1:
        assert first_version.linear_ratio(at, psi) == pytest.approx(ratio, rel=1e-9)


def test_ratio_without_a_linear_part():
    found = first_version.linear_ratio([3, 3, 3], [0, -0.1, 1])
    np.testing.assert_array_equal(found, [math.inf, NAN, 1])
    found = first_version.ratio_threshold([0, -0.1, 1], ratio=1.1)
    np.testing.assert_array_equal(found, [math.inf, NAN, 0])


@pytest.mark.parametrize(
    "psi, expected",
    [
        ([NAN, 0.5, 0.3, 0.3, 0.3], 3),
        ([NAN, 0.5, 0.5, 0.3, 0.3], 4),  # one small step before is not enough
        ([NAN, 0.3, 0.3, 0.3], 2),
        ([NAN, 0.3, 0.3, 0.5], None),
        ([NAN, 0.5, 0.3, 0.305, 0.3, NAN, NAN], 3),
        ([NAN, 0.3, NAN, 0.3, 0.3], 4),
        ([NAN, 0.3], None),
        ([NAN, NAN], None),
        ([NAN], None),
    ],
)
def test_second_threshold(psi, expected):
    assert first_version.gradient_threshold(psi, level=0.01) == expected


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: theory.spread([1.2], [NAN], [NAN]), "psi_equal holds 1.2"),
        (lambda: theory.spread([0.2], [-1.1], [NAN]), "psi_within holds -1.1"),
        (lambda: theory.n_balance(0.1, 0.2, math.inf), "psi_cross holds inf"),
        (
            lambda: theory.spread([0.1, 0.1], [NAN, 0.2], [NAN]),
            r"psi_cross has shape \(1,\), expected \(2,\) as psi_equal",
        ),
        (lambda: theory.spread(0.1, 0.2, 0.3), "use constant_spread"),
        (lambda: theory.balance([1, 2], [0.1] * 3, 0.2, 0.1), r"n_balance has shape"),
        (lambda: theory.constant_spread([1, 0], 0.1, 0.2, 0.1), "n holds 0"),
        (lambda: theory.constant_spread(math.inf, 0.1, 0.2, 0.1), "n holds inf"),
        (lambda: theory.bound([1.0], largest_norm=NAN), "largest_norm is nan"),
        (lambda: theory.bound([1.0], largest_norm=-1), "largest_norm is -1"),
        (lambda: theory.exponent([1, 2], beta=NAN), "beta is nan"),
        (lambda: theory.exponent(2.0, beta=1), "upsilon has shape"),
        (
            lambda: theory.constant_exponent(2, n_balance=3, beta=math.inf),
            "beta is inf",
        ),
        (lambda: theory.score([1], kappa=0, beta=1), "kappa is 0"),
        (lambda: theory.score([1], kappa=1, beta=NAN), "beta is nan"),
        (lambda: theory.expected_positive_cosine(0), "d is 0"),
        (lambda: theory.expected_positive_cosine(2.5), "d is 2.5"),
        (lambda: theory.regime(0.1, 0.2, 0.1, longest=0), "longest is 0"),
        (lambda: theory.regime(0.1, NAN, 0.1, longest=5), "psi_within is nan"),
        (lambda: theory.regime(0.1, 0.2, 0.1, longest=5, border=0.5), "border is 0.5"),
        (lambda: first_version.delta_spread(0.1), "psi_delta has shape"),
        (lambda: first_version.delta_bound([0.1], sigma=NAN), "sigma is nan"),
        (lambda: first_version.linear_ratio(0.5, 0.1), "n holds values below 1"),
        (lambda: first_version.ratio_threshold(0.1, ratio=1), "ratio is 1"),
        (lambda: first_version.ratio_threshold(2, ratio=2), "psi_delta holds 2"),
        (lambda: first_version.gradient_threshold([0.1], level=-1), "level is -1"),
        (lambda: first_version.gradient_threshold(0.1, level=1), "one curve"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


PLAIN = {"one_shape", "finite"}  # of arguments, not of the paper


@pytest.mark.parametrize("module", [theory, first_version])
def test_every_formula_says_where_it_stands(module):
    source = r"\beqs?\. \d|§\d|App\. A\.\d|constraint 39"
    found = {
        name: bool(re.search(source, inspect.getdoc(value) or ""))
        for name, value in vars(module).items()
        if inspect.isfunction(value) or isinstance(value, type)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(found) > 4
    assert {name for name, there in found.items() if not there} == PLAIN & set(found)
