"""Means with their uncertainty: whatever the order, and covering what they should."""

import numpy as np
import pytest

from vtscale_jax.divergence import null
from vtscale_jax.divergence.estimate import Estimate, EstimateError, derived, interval
from vtscale_jax.divergence.result import CURVES, PAIR_CURVES

N, R = 12, 200


def pairs(number: int, seed: int = 0):
    """Rows and curves of made-up pairs of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, N + 1, number)
    curves = {}
    for name in PAIR_CURVES:
        value = rng.gamma(2.0, size=(number, N)) * np.arange(1, N + 1)
        value[np.arange(N) >= lengths[:, None]] = np.nan
        if "cross" in name or name == "psi_delta":
            value[:, 0] = np.nan
        curves[name] = value
    return np.arange(number) + 1, derived(curves), lengths


def together(rows, values, cuts, seed=0):
    estimate = Estimate.empty(N, replicates=R, seed=seed)
    for part in np.split(np.arange(len(rows)), cuts):
        estimate = estimate.add(rows[part], values[:, part])
    return estimate


def test_derived_curves():
    _, values, _ = pairs(5)
    named = dict(zip(CURVES, values, strict=True))
    within = (named["psi_cross_aa"] + named["psi_cross_bb"]) / 2
    np.testing.assert_array_equal(named["psi_cross_symmetric"], within)
    np.testing.assert_array_equal(named["psi_excess"], within - named["psi_cross_ab"])


def test_moments_are_those_of_all_pairs():
    rows, values, lengths = pairs(60)
    estimate = together(rows, values, [7, 8, 31])
    bands = estimate.bands()
    counts = [(lengths >= n).sum() for n in range(1, N + 1)]
    np.testing.assert_array_equal(estimate.counts(), counts)
    for name, value in zip(CURVES, values, strict=True):
        for n in range(N):
            known = value[~np.isnan(value[:, n]), n]
            band = bands[name]
            if len(known) == 0:
                assert np.isnan([part[n] for part in band]).all()
                continue
            expected = [known.mean(), known.std(ddof=1), known.min(), known.max()]
            found = [band.mean[n], band.sd[n], band.least[n], band.largest[n]]
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [30], [10, 20, 21, 50]])
def test_any_division_gives_the_same(cuts):
    """In order, in parts that are merged later, and in parts merged backwards."""
    rows, values, _ = pairs(60)
    whole = together(rows, values, [])
    merged = Estimate.empty(N, replicates=R)
    backwards = Estimate.empty(N, replicates=R)
    parts = [
        together(rows[part], values[:, part], [])
        for part in np.split(np.arange(60), cuts)
    ]
    for part in parts:
        merged = merged.merge(part)
    for part in parts[::-1]:
        backwards = part.merge(backwards)
    for other in (together(rows, values, cuts), merged, backwards):
        for field in ("count", "mean", "m2", "least", "largest", "weights", "sums"):
            np.testing.assert_allclose(
                *(getattr(one, field) for one in (other, whole)),
                rtol=1e-12,
                atol=1e-10,
                err_msg=field,
            )
    # The same parts in the same order: the same bits.
    again = together(rows, values, cuts)
    assert np.array_equal(again.sums, together(rows, values, cuts).sums)
    # The control: one pair less.
    fewer = together(rows[1:], values[:, 1:], [])
    assert not np.allclose(fewer.mean, whole.mean, rtol=1e-6)


def test_weights_are_of_the_row_and_the_seed():
    rows, values, _ = pairs(20)
    whole = together(rows, values, [])
    shuffled = np.random.default_rng(0).permutation(20)
    other = together(rows[shuffled], values[:, shuffled], [])
    np.testing.assert_allclose(other.sums, whole.sums, rtol=1e-12, atol=1e-10)
    assert not np.allclose(together(rows, values, [], seed=1).sums, whole.sums)
    renumbered = together(rows + 20, values, [])
    assert not np.allclose(renumbered.sums, whole.sums)


def test_intervals_cover():
    """The 95 % interval of a mean of 80 skewed values holds the true mean about as
    often; that of a tenth of the width does not."""
    held, narrow = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = np.full((1, 80, 2), np.nan)
        values[0, :, 0] = rng.exponential(size=80)
        estimate = Estimate.empty(2, names=("x",), replicates=400, seed=seed)
        band = estimate.add(np.arange(80), values).bands()["x"]
        low, high, mean = band.low[0], band.high[0], band.mean[0]
        held.append(low <= 1 <= high)
        narrow.append(abs(1 - mean) <= (high - low) / 20)
    assert 0.89 <= np.mean(held) <= 0.98
    assert np.mean(narrow) < 0.4


def test_interval_of_nothing_is_nan():
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 3.0]]))
    assert np.isnan([low[0], high[0]]).all() and 1 <= low[1] < high[1] <= 3


def test_what_cannot_be_joined():
    rows, values, _ = pairs(4)
    with pytest.raises(EstimateError, match="differ in seed"):
        together(rows, values, []).merge(together(rows, values, [], seed=1))
    with pytest.raises(EstimateError, match=r"expected \(8, 4, at most 11\)"):
        Estimate.empty(N - 1).add(rows, values)


def curves_about(mean, number, seed):
    """Curves that go together over n, about a mean."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(1, number, N)).cumsum(axis=2)
    return mean + steps / np.sqrt(np.arange(1, N + 1))


def sup(values, seed):
    estimate = Estimate.empty(N, names=("x",), replicates=R, seed=seed)
    estimate = estimate.add(np.arange(values.shape[1]), values)
    (band,), (replicates,) = (
        estimate.bands().values(),
        estimate.replicates().values(),
    )
    return null.sup_test(band.mean, replicates, estimate.counts())


def test_the_sup_test_holds_its_level():
    found = [sup(curves_about(0.0, 60, seed), seed).differs for seed in range(200)]
    assert np.mean(found) < 0.13  # 5 %, a little more for 60 pairs
    shifted = np.zeros(N)
    shifted[7] = 0.8
    found = [sup(curves_about(shifted, 60, seed), seed) for seed in range(50)]
    assert np.mean([one.differs for one in found]) > 0.9
    assert np.mean([one.at == 8 for one in found]) > 0.8


def test_the_sup_test_holds_its_level_where_pairs_thin_out():
    """Few long pairs have errors that the bootstrap underrates."""
    found = []
    for seed in range(200):
        values = curves_about(0.0, 120, seed)
        ends = np.random.default_rng(seed).integers(2, N + 1, 120)
        values[0][np.arange(N) >= ends[:, None]] = np.nan
        found.append(sup(values, seed).differs)
    assert np.mean(found) < 0.11


def test_the_sup_test_needs_pairs():
    assert sup(curves_about(0.0, 29, 0), 0) is None
    assert sup(curves_about(0.0, 30, 0), 0) is not None
    assert null.describe(None) is None


def test_maxima_are_not_tested():
    """Between branches they are of twice as many pairs, hence larger by chance."""
    null.check("max", 0)
    null.check("mean", 4)
    with pytest.raises(null.NullError, match="twice as many pairs"):
        null.check("max", 1)


def test_exchanges_depend_on_row_and_seed_only():
    rows = np.array([5, 9, 2])
    found = null.swaps(rows, 40, 3, seed=1)
    assert found.shape == (3, 3, 40) and 0.35 < found.mean() < 0.65
    np.testing.assert_array_equal(
        null.swaps(rows[1:2], 40, 3, seed=1)[:, 0], found[:, 1]
    )
    np.testing.assert_array_equal(null.swaps(rows, 64, 3, seed=1)[:, :, :40], found)
    assert not np.array_equal(null.swaps(rows, 40, 3, seed=2), found)
