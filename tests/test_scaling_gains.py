"""What fusing the question adds: differences of series, paired by metric and M."""

import numpy as np
import pytest

from vtscale_jax.scaling.gains import INDEPENDENT, PAIRED, gains, standard_errors
from vtscale_jax.scaling.scores import Scores, Series


def series(inputs, m, score, metric="read", **more):
    return Series(inputs, metric, np.array(m), np.array(score, float), **more)


def scores(*all_series):
    return Scores("made up", all_series)


def test_differences_are_of_equal_metric_and_m():
    found = gains(
        scores(
            series("vqq", [1, 4, 16], [30, 50, 44]),
            series("vq", [1, 4, 16], [20, 40, 55]),
            series("vqq", [1, 4], [7, 8], metric="count"),
            series("vq", [1, 4], [5, 10], metric="count"),
        ),
        *("vqq", "vq"),
    )
    read, count = found.gains
    assert (read.metric, read.more, read.less) == ("read", "vqq", "vq")
    np.testing.assert_array_equal(read.m, [1, 4, 16])
    np.testing.assert_array_equal(read.absolute, [10, 10, -11])
    np.testing.assert_allclose(read.relative, [0.5, 0.25, -0.2])
    assert read.absolute_range == (-11, 10)
    assert read.relative_range == pytest.approx((-0.2, 0.5))
    np.testing.assert_array_equal(count.absolute, [2, -2])
    assert found.unpaired == () and read.stderr is None and read.errors is None
    # The other way round the base is the other score.
    pair = scores(series("vqq", [1], [30]), series("vq", [1], [20]))
    (back,) = gains(pair, "vq", "vqq").gains
    assert back.relative == pytest.approx([-1 / 3])


def test_missing_partners_are_listed_and_not_guessed():
    found = gains(
        scores(
            series("vqq", [1, 2, 4], [1, 2, 3]),
            series("vq", [2, 4, 8], [1, 1, 1]),
            series("vqq", [1], [5], metric="alone"),
            series("vq", [1, 2], [5, 6], metric="other"),
            series("vq_ft", [1], [5], metric="neither"),
            series("vqq", [1], [5], metric="apart"),
            series("vq", [2], [5], metric="apart"),
        ),
        *("vqq", "vq"),
    )
    (read,) = found.gains
    np.testing.assert_array_equal(read.m, [2, 4])
    np.testing.assert_array_equal(read.absolute, [1, 2])
    assert [one.sentence for one in found.unpaired] == [
        "read: vqq but no vq at M = 1",
        "read: vq but no vqq at M = 8",
        "alone: vqq but no vq at M = 1",
        "other: vq but no vqq at M = 1, 2",
        "apart: vqq but no vq at M = 1",
        "apart: vq but no vqq at M = 2",
    ]


def test_nothing_is_divided_by_what_is_not_positive():
    (gain,) = gains(
        scores(series("a", [1, 2, 4], [3, 3, 3]), series("b", [1, 2, 4], [0, -1, 2])),
        *("a", "b"),
    ).gains
    np.testing.assert_array_equal(gain.absolute, [3, 4, 1])
    np.testing.assert_array_equal(gain.relative, [np.nan, np.nan, 0.5])
    assert gain.relative_range == (0.5, 0.5)
    (none,) = gains(
        scores(series("a", [1], [3]), series("b", [1], [0])), "a", "b"
    ).gains
    assert none.relative_range is None


def items(inputs, rows, ids, upper=100.0):
    rows = np.array(rows, float)
    m = 2 ** np.arange(len(rows))
    return Series(
        *(inputs, "read", m, rows.mean(1) * upper, upper),
        n_items=np.full(len(rows), rows.shape[1]),
        items=rows,
        item_ids=tuple(ids),
    )


def test_errors_of_paired_items():
    rng = np.random.default_rng(0)
    ids = [f"q{i}" for i in range(400)]
    skill = rng.random(400)
    less = (rng.random((2, 400)) < skill).astype(float)
    more = np.maximum(less, rng.random((2, 400)) < 0.1)
    one, other = items("vqq", more, ids), items("vq", less, ids)
    (gain,) = gains(scores(one, other), "vqq", "vq").gains
    expected = 100 * (more - less).std(1, ddof=1) / 20
    np.testing.assert_allclose(gain.stderr, expected)
    assert gain.errors == PAIRED
    # The order of the questions is no matter: their names are.
    order = rng.permutation(400)
    moved = items("vq", less[:, order], [ids[i] for i in order])
    (again,) = gains(scores(one, moved), "vqq", "vq").gains
    np.testing.assert_allclose(again.stderr, expected)
    # Without names, or with others, both errors count: more than those of pairs.
    for bare in (moved._replace(item_ids=None), items("vq", less, ids[1:] + ["new"])):
        (apart,) = gains(scores(one, bare), "vqq", "vq").gains
        assert apart.errors == INDEPENDENT
        np.testing.assert_allclose(
            apart.stderr, np.hypot(standard_errors(one), standard_errors(bare))
        )
        assert np.all(apart.stderr > 1.5 * expected)


def test_errors_without_items():
    given = series("a", [1, 2], [50, 60], stderr=np.array([3.0, 4.0]))
    counted = series("b", [1, 2], [50, 80], n_items=np.array([100, 25]), upper=100.0)
    np.testing.assert_allclose(standard_errors(counted), [5, 8])
    (gain,) = gains(scores(given, counted), "a", "b").gains
    np.testing.assert_allclose(gain.stderr, [34**0.5, 80**0.5])
    assert gain.errors == INDEPENDENT
    bare = series("b", [1, 2], [50, 80], n_items=np.array([100, 25]))  # no scale
    assert standard_errors(bare) is None
    (gain,) = gains(scores(given, bare), "a", "b").gains
    assert gain.stderr is None and gain.errors is None
