"""Curves of metrics from 0 to 1, and which of them are alike."""

import numpy as np
import pytest

from vtscale_jax.scaling.clusters import clusters, normalised
from vtscale_jax.scaling.scores import Scores, Series

M = 2 ** np.arange(7)
SHAPES = {
    "early": [0, 0.8, 0.9, 0.95, 1, 1, 1],
    "linear": np.linspace(0, 1, 7),
    "late": [0, 0, 0, 0.05, 0.1, 0.4, 1],
    "falling": np.linspace(1, 0, 7),
}


def series(metric, values, m=M, inputs="vqq"):
    return Series(inputs, metric, np.array(m), np.array(values, float))


def shaped(seed=0, copies=4):
    """Four shapes, each at several scales with a little noise."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(copies):
        for name, values in SHAPES.items():
            noisy = np.asarray(values) + 0.02 * rng.standard_normal(7)
            made.append(series(f"{name}{i}", 10.0**i * (5 + noisy)))
    return Scores("made up", tuple(made))


def test_curves_go_from_0_to_1():
    curves = normalised(Scores("s", (series("a", [3, 5, 4], [1, 2, 4]),)), "vqq")
    np.testing.assert_allclose(curves.values, [[0, 1, 0.5]])
    np.testing.assert_array_equal(curves.m, [1, 2, 4])
    curves = normalised(shaped(), "vqq")
    np.testing.assert_array_equal(curves.values.min(1), 0)
    np.testing.assert_array_equal(curves.values.max(1), 1)


def test_what_has_no_curve_is_listed():
    found = normalised(
        Scores(
            "s",
            (
                series("whole", M),
                series("same", 2.0 * M),
                series("short", M[1:3], M[1:3]),
                series("long", [*M, 9.0], [*M, 128]),
                series("flat", 0 * M + 0.1),
                series("zero", 0 * M),
                series("other", -1.0 * M, inputs="vq"),
            ),
        ),
        "vqq",
    )
    assert found.metrics == ("whole", "same", "long")
    assert found.values.shape == (3, 7)
    reasons = {one.metric: one.reason for one in found.left_out}
    assert reasons == {
        "short": "no score at M = 1, 8, 16, 32, 64",
        "flat": "flat: the same score at every M",
        "zero": "flat: the same score at every M",
    }
    assert found.notes == ("long: M = 128 not used",)


def test_shapes_are_found_again():
    found = clusters(normalised(shaped(), "vqq"))
    assert found.k == 4 and found.notes == ()
    groups = [{name[:-1] for name in found.members(label)} for label in range(4)]
    # By falling mean of the curve.
    assert groups[0] == {"early"} and groups[3] == {"late"}
    assert all(len(group) == 1 for group in groups)
    means = found.centres.mean(1)
    assert np.all(np.diff(means) <= 0)
    for label in range(4):
        own = found.curves.values[found.labels == label]
        np.testing.assert_allclose(found.centres[label], own.mean(0))


@pytest.mark.parametrize("seed", [1, 2])
def test_labels_do_not_depend_on_chance(seed):
    """Not on the seed, where the clusters are clear, nor on the order of metrics."""
    curves = normalised(shaped(), "vqq")
    first = clusters(curves)
    np.testing.assert_array_equal(first.labels, clusters(curves).labels)
    np.testing.assert_array_equal(first.labels, clusters(curves, seed=seed).labels)
    made = shaped().series
    order = np.random.default_rng(seed).permutation(len(made))
    mixed = normalised(Scores("s", tuple(made[i] for i in order)), "vqq")
    np.testing.assert_array_equal(clusters(mixed).labels, first.labels[order])


def test_few_curves_make_few_clusters():
    three = Scores("s", shaped(copies=1).series[:3])
    found = clusters(normalised(three, "vqq"))
    assert found.k == 3
    assert found.notes == ("3 in place of 4 clusters: there are 3 different curves",)
    twins = Scores("s", (series("a", M), series("b", 2.0 * M)))
    found = clusters(normalised(twins, "vqq"))
    assert found.k == 1 and found.members(0) == ("a", "b")
    assert "1 different curve" in found.notes[0]
    assert clusters(normalised(Scores("s", ()), "vqq")) is None
    with pytest.raises(ValueError, match="k is 0"):
        clusters(normalised(three, "vqq"), k=0)
