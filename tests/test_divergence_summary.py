"""The summary of a measurement: numbers, words and intervals that go into its file."""

import json
import math

import numpy as np
import pytest

from vtscale_jax.divergence import fits, theory
from vtscale_jax.divergence.result import PAIR_CURVES
from vtscale_jax.divergence.summary import WITHIN, scores_fit, spread_of, summarize

NAN = math.nan
SIZE = 200
N = np.arange(1, SIZE + 1)
COUNTS = 60 - N // 4  # 10 at the end
H = 3.0


def cross(value):
    return np.r_[NAN, np.full(SIZE - 1, value)]


def measured(equal=0.5, aa=0.34, bb=0.30, ab=0.30, delta=0.05, scale=2.0):
    """Curves of constant ψ and a divergence that is scale·√Υ, symmetric."""
    curves = {
        "psi_equal": np.full(SIZE, equal),
        "psi_cross_aa": cross(aa),
        "psi_cross_bb": cross(bb),
        "psi_cross_ab": cross(ab),
        "psi_delta": cross(delta),
    }
    upsilon = spread_of(curves)
    return {**curves, "D": scale * np.sqrt(np.maximum(upsilon, 0))}


def replicates_of(curves, seed, rows=120, sd=0.004):
    """Bootstrap means of constant ψ that vary as a whole, D with them."""
    generator = np.random.default_rng(seed)
    sets = []
    for _ in range(rows):
        shifts = generator.normal(size=4) * sd
        shift = dict(zip(("equal", "aa", "bb", "ab"), shifts, strict=True))
        values = {
            key: float(curves[name][-1]) + shift[key]
            for key, name in (
                ("equal", "psi_equal"),
                ("aa", "psi_cross_aa"),
                ("bb", "psi_cross_bb"),
                ("ab", "psi_cross_ab"),
            )
        }
        delta = float(curves["psi_delta"][-1]) + sd * generator.normal()
        sets.append(measured(**values, delta=delta, scale=2 + 0.1 * generator.normal()))
    return {name: np.stack([one[name] for one in sets]) for name in PAIR_CURVES}


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_numbers_of_constant_measures():
    curves = measured()
    found = summarize(curves, COUNTS, H)
    assert (found["least_count"], found["num_replicates"], found["last_n"]) == (
        10,
        0,
        200,
    )
    symmetric, aa = found["symmetric"], found["aa"]
    # A = 0.5, B = ½(0.34 + 0.30) − 0.30 = 0.02, n_balance = 24; with ψ_AA B = 0.04
    assert symmetric["A"] == pytest.approx(0.5)
    assert symmetric["B"] == pytest.approx(0.02)
    assert symmetric["psi_within"] == pytest.approx(0.32)
    assert symmetric["n_balance"] == pytest.approx(24)
    assert aa["B"] == pytest.approx(0.04)
    assert aa["n_balance"] == pytest.approx(11.5)
    assert symmetric["lambda"] == pytest.approx(2)
    assert symmetric["relative_rmse"] < 1e-12
    assert symmetric["lambda_constant"] == pytest.approx(2)
    assert aa["relative_rmse"] > 0.01
    assert symmetric["num_points"] == symmetric["num_points_constant"] == SIZE
    assert symmetric["bound_limit"] is None
    assert symmetric["regime"] == "linear"
    assert symmetric["regime_ranges"]["linear"][1] == SIZE
    assert "n_balance is 24" in symmetric["regime_sentence"]
    assert symmetric["upsilon_nonnegative"] == [[1, SIZE]]
    # 2√Υ over √2·3·√Υ
    assert symmetric["largest_over_bound"] == pytest.approx(2 / (math.sqrt(2) * 3))
    assert symmetric["bound_exceeded"] == []
    assert symmetric["intervals"] is None and symmetric["share_b_not_positive"] is None


def test_four_forms_are_those_of_fits():
    curves = measured()
    curves["D"] = curves["D"] + np.sin(N)
    found = summarize(curves, COUNTS, H)
    for within in WITHIN:
        upsilon = spread_of(curves, within=within)
        forms = fits.fit_forms(upsilon, curves["D"], N)
        part = found[within]
        assert (part["lambda"], part["relative_rmse"]) == forms.bound
        names = ("power_scale", "power_exponent", "relative_rmse_power")
        assert tuple(part[name] for name in names) == forms.power
        assert (part["sqrt_n_scale"], part["relative_rmse_sqrt_n"]) == forms.root
        assert (part["n_scale"], part["relative_rmse_n"]) == forms.linear


def test_spread_of_takes_the_named_estimate():
    curves = measured()
    psi = (curves["psi_equal"], curves["psi_cross_aa"], curves["psi_cross_ab"])
    np.testing.assert_array_equal(spread_of(curves, within="aa"), theory.spread(*psi))
    assert not np.allclose(spread_of(curves), spread_of(curves, within="aa"))
    with pytest.raises(ValueError, match="within is 'bb'"):
        spread_of(curves, within="bb")


def test_constants_are_weighted_by_counts():
    curves = measured()
    curves["psi_equal"] = np.where(N <= 100, 0.5, 0.7)
    found = summarize(curves, COUNTS, H)["symmetric"]
    expected = np.average(curves["psi_equal"][1:], weights=COUNTS[1:])
    assert found["psi_equal"] == pytest.approx(expected)
    assert found["psi_equal"] != pytest.approx(curves["psi_equal"].mean(), abs=1e-3)


def test_n_that_few_pairs_reach_are_left_out():
    curves = measured()
    few = np.where(N <= 50, 12, 9)
    wild = {name: np.where(N <= 50, curve, 0.123) for name, curve in curves.items()}
    wild["D"] = np.where(N <= 50, curves["D"], 1e6)
    assert summarize(wild, few, H) == summarize(curves, few, H)
    assert summarize(wild, few, H)["last_n"] == 50
    found = summarize(wild, few, H, least_count=9)["symmetric"]
    assert found["relative_rmse"] > 0.1 and found["bound_exceeded"] == [[51, SIZE]]


def test_bound_that_is_passed_is_said_where():
    curves = measured()
    ceiling = math.sqrt(2) * H / 2
    curves["D"][4:7] *= ceiling * 1.1
    curves["D"][9] *= ceiling * (1 + 1e-7)  # rounding
    curves["D"][19] *= ceiling * 1.2
    found = summarize(curves, COUNTS, H)["symmetric"]
    assert found["bound_exceeded"] == [[5, 7], [20, 20]]
    assert found["largest_over_bound"] == pytest.approx(1.2)
    # √2 left out of the bound, it would be passed everywhere with h = 2.
    assert summarize(measured(), COUNTS, 2.0)["aa"]["bound_exceeded"] == []
    assert summarize(measured(), COUNTS, 1.4)["symmetric"]["bound_exceeded"]


def test_negative_excess_has_no_bound_beyond_its_limit():
    # B = −0.01: Υ ≥ 0 up to n = 1 + 0.5/0.01 = 51
    curves = measured(aa=0.29, bb=0.29, ab=0.30)
    found = summarize(curves, COUNTS, H)["symmetric"]
    assert found["bound_limit"] == pytest.approx(51)
    assert found["regime"] == "no bound beyond n = 51"
    assert found["n_balance"] is None
    assert found["upsilon_nonnegative"][0][0] == 1
    assert found["upsilon_nonnegative"][-1][1] in (50, 51)  # Υ(51) is 0 or rounding
    assert found["num_points"] in (50, 51)
    assert found["lambda"] == pytest.approx(2)


def test_constant_measures_may_lose_their_bound_earlier():
    """Υ(n) = n·A/2 > 0 for every n, while constant ψ have B < 0 and a limit."""
    curves = measured()
    steps = np.r_[1, N[1:] - 1]
    curves["psi_cross_aa"] = curves["psi_cross_bb"] = cross(0.3) - 0.25 / steps
    curves["D"] = 3 * np.sqrt(N * 0.25)
    found = summarize(curves, COUNTS, H)["symmetric"]
    limit = found["bound_limit"]
    assert 2 < limit < SIZE
    assert found["num_points"] == SIZE
    assert found["num_points_constant"] == math.floor(limit)
    assert found["lambda"] == pytest.approx(3, rel=0.01)  # Υ(1) is A, not A/2
    assert found["lambda_constant"] != pytest.approx(3, rel=0.01)


def test_no_excess_is_sublinear():
    found = summarize(measured(aa=0.3, bb=0.3, ab=0.3), COUNTS, H)["symmetric"]
    assert (found["regime"], found["n_balance"], found["B"]) == ("sublinear", None, 0)
    assert found["relative_rmse_sqrt_n"] == pytest.approx(found["relative_rmse"])


@pytest.mark.parametrize(
    "curves, counts",
    [
        (measured(equal=1.0, aa=0.3, bb=0.3, ab=0.3), COUNTS),  # identical branches
        (measured(), np.full(SIZE, 9)),  # too few pairs
        (measured(), np.where(N == 1, 50, 0)),  # a single n
    ],
)
def test_nothing_to_fit_is_none_not_a_number(curves, counts):
    found = summarize(curves, counts, H, replicates=replicates_of(curves, 0, 3, 0.0))
    part = found["symmetric"]
    assert part["lambda"] is None and part["power_exponent"] is None
    assert part["n_balance"] is None and part["intervals"]["lambda"] == [None, None]
    json.dumps(found, allow_nan=False)


def test_first_version():
    curves = measured(delta=0.05)
    inside = N + (N**2 - N) * 0.05
    curves["D"] = 1.7 * np.sqrt(inside)
    found = summarize(curves, COUNTS, H)["v1"]
    assert found["sigma"] == pytest.approx(1.7)
    assert found["relative_rmse"] < 1e-12
    assert found["psi_delta"] == pytest.approx(0.05)
    assert found["ratio_levels"] == [1.1, 1.01]
    # 0.95/(0.05·0.21) and 0.95/(0.05·0.0201)
    assert found["ratio_n"] == pytest.approx([90.476190, 945.273632], rel=1e-8)
    assert (found["gradient_level"], found["gradient_n"]) == (1e-3, 2)
    curves["psi_delta"] = np.r_[NAN, 0.05 + 1 / N[1:]]
    # 1/n − 1/(n + 1) ≤ 0.001 from n = 32 on
    assert summarize(curves, COUNTS, H)["v1"]["gradient_n"] == 32
    curves["psi_delta"] = cross(-0.001)
    found = summarize(curves, COUNTS, H)["v1"]
    assert found["ratio_n"] == [None, None] and found["psi_delta"] < 0


def test_every_number_has_its_interval():
    curves = measured()
    replicates = replicates_of(curves, 1)
    found = summarize(curves, COUNTS, H, replicates=replicates)
    assert found["num_replicates"] == 120 and found["confidence"] == 0.95
    for part in (*WITHIN, "v1"):
        intervals = found[part]["intervals"]
        numbers = {
            name
            for name, value in found[part].items()
            if isinstance(value, float) and "level" not in name and "regime" not in name
        }
        assert numbers - {"share_b_not_positive"} <= set(intervals)
        for name, interval in intervals.items():
            if name != "ratio_n":
                assert len(interval) == 2
    # Each replicate is scale·√Υ, so that its λ is its D(1)/√Υ(1).
    scales = replicates["D"][:, 0] / np.sqrt(1 - replicates["psi_equal"][:, 0])
    for name, values in (
        ("lambda", scales),
        ("psi_equal", replicates["psi_equal"][:, 0]),
        ("psi_cross", replicates["psi_cross_ab"][:, 1]),
    ):
        # Of 120 values the 3rd and the 117th: 2.5 % and 97.5 %.
        expected = np.sort(values)[[2, 116]]
        found_interval = found["symmetric"]["intervals"][name]
        np.testing.assert_allclose(found_interval, expected, rtol=1e-9)
    assert len(found["v1"]["intervals"]["ratio_n"]) == 2
    low, high = found["v1"]["intervals"]["ratio_n"][0]
    assert low < found["v1"]["ratio_n"][0] < high
    assert found["symmetric"]["share_b_not_positive"] == 0


def test_replicates_are_resampled_as_a_whole():
    """Of one row the interval of every number is that number of the row itself."""
    row = measured(equal=0.4, aa=0.36, delta=0.1, scale=3.0)
    found = summarize(
        measured(), COUNTS, H, replicates={k: v[None] for k, v in row.items()}
    )
    alone = summarize(row, COUNTS, H)
    for part in WITHIN:
        for name, interval in found[part]["intervals"].items():
            assert interval == [alone[part][name]] * 2, name
    assert found["v1"]["intervals"]["sigma"] == [alone["v1"]["sigma"]] * 2
    assert found["v1"]["intervals"]["ratio_n"] == [
        [at, at] for at in alone["v1"]["ratio_n"]
    ]


def test_excess_of_unsettled_sign():
    """Where B may be 0, n_balance has no upper end, and the words say so."""
    curves = measured(aa=0.302, bb=0.302, ab=0.30)
    replicates = replicates_of(curves, 2)
    part = summarize(curves, COUNTS, H, replicates=replicates)["symmetric"]
    low, high = part["intervals"]["B"]
    assert low < 0 < high
    share = np.mean(
        (replicates["psi_cross_aa"] + replicates["psi_cross_bb"])[:, 5] / 2
        <= replicates["psi_cross_ab"][:, 5]
    )
    assert part["share_b_not_positive"] == pytest.approx(share) and 0.1 < share < 0.6
    low, high = part["intervals"]["n_balance"]
    assert 0 < low < part["n_balance"] and high is None
    assert part["intervals"]["bound_limit"][0] < SIZE * 2
    assert part["intervals"]["bound_limit"][1] is None
    assert "not settled" in part["regime_sentence"]
    settled = summarize(measured(), COUNTS, H, replicates=replicates_of(measured(), 3))
    assert "not settled" not in settled["symmetric"]["regime_sentence"]


def test_threshold_that_some_replicates_never_reach():
    """ψ_Δ ≤ 0 has no linear part to come down to: infinite, not undefined."""
    curves = measured(delta=0.002)
    replicates = replicates_of(curves, 5)
    share = np.mean(replicates["psi_delta"][:, 1] <= 0)
    assert 0.1 < share < 0.6
    found = summarize(curves, COUNTS, H, replicates=replicates)["v1"]
    low, high = found["intervals"]["ratio_n"][0]
    psi = np.sort(replicates["psi_delta"][:, 1])[-3]  # the 3rd of 120 is the 2.5 %
    assert low == pytest.approx((1 - psi) / (psi * 0.21), rel=1e-9)
    assert high is None


def test_summary_is_plain():
    found = summarize(
        measured(), COUNTS, H, replicates=replicates_of(measured(), 4, rows=5)
    )
    kinds = {type(leaf) for leaf in leaves(found)}
    assert kinds <= {float, int, str, type(None)}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# --- scores --------------------------------------------------------------------------


def test_scores_fit():
    upsilon = spread_of(measured())
    scores = {
        m: 0.3 * float(upsilon[m - 1]) ** (0.25 / 2) * wobble
        for m, wobble in ((64, 1.01), (1, 1.0), (8, 0.99), (128, 1.0))
    }
    found = scores_fit(upsilon, scores)
    fit = fits.fit_scores(scores, {m: float(upsilon[m - 1]) for m in scores})
    assert found["beta"] == pytest.approx(fit.beta)
    assert found["beta"] == pytest.approx(0.25, abs=0.02)
    assert found["kappa_interval"] == pytest.approx(list(fit.kappa_interval))
    assert found["m"] == [1, 8, 64, 128]
    assert found["score"] == [scores[m] for m in found["m"]]
    assert found["c"] == pytest.approx(fit.kappa * 0.5 ** (fit.beta / 2))
    assert found["alpha"][0] is None
    # S(M) = c/M^α(M) is the fitted score again.
    for m, fitted, alpha in zip(
        found["m"][1:], found["fitted"][1:], found["alpha"][1:], strict=True
    ):
        assert found["c"] / m**alpha == pytest.approx(fitted)
    assert {type(leaf) for leaf in leaves(found)} <= {float, int, str, type(None)}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "scores, words",
    [
        ({1: 0.1, 2: 0.2, SIZE + 1: 0.3}, "M = 201.*n = 1…200"),
        ({0: 0.1, 2: 0.2, 3: 0.3}, "M = 0"),
        ({1: 0.1, 2: 0.2}, "scores has 2 M"),
        ({1: 0.1, 2: 0.2, 3: -1}, r"scores\[3\] is -1"),
    ],
)
def test_bad_scores_are_named(scores, words):
    with pytest.raises(ValueError, match=words):
        scores_fit(spread_of(measured()), scores)


# --- what is refused -----------------------------------------------------------------


def changed(**arrays):
    return {**measured(), **arrays}


def stacked(rows=3, **arrays):
    return {k: np.stack([v] * rows) for k, v in measured().items()} | arrays


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (({"D": np.ones(SIZE)}, COUNTS, H), {}, "curves lacks psi_equal, psi_cross_aa"),
        (
            (changed(psi_cross_ab=cross(0.1)[:-1]), COUNTS, H),
            {},
            r"curves\['psi_cross_ab'\] has shape \(199,\), expected \(200,\)",
        ),
        ((changed(psi_cross_bb=cross(1.5)), COUNTS, H), {}, "psi_cross_bb holds 1.5"),
        ((measured(), COUNTS, -1.0), {}, "largest_norm is -1"),
        ((measured(), COUNTS, NAN), {}, "largest_norm is nan"),
        ((measured(), COUNTS, H), {"least_count": 0}, "least_count is 0"),
        ((measured(), COUNTS, H), {"replicates": {}}, "replicates lacks D"),
        (
            (measured(), COUNTS, H),
            {"replicates": stacked(psi_delta=np.zeros((2, SIZE)))},
            r"replicates\['psi_delta'\] has shape \(2, 200\), expected \(3, 200\)",
        ),
        (
            (measured(), COUNTS, H),
            {"replicates": {name: np.ones((0, SIZE)) for name in PAIR_CURVES}},
            "replicates has no row",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        summarize(*arguments, **options)
