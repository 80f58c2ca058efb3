"""Order of repetitions and what they add up to; no clock is asked."""

import gc

import numpy as np
import pytest

from vtscale_jax.cost.timing import order, summary, undisturbed, upper_median


def test_summary_is_median_95th_percentile_and_least():
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found.median == 3 and found.least == 1 and found.number == 5
    assert found.p95 == pytest.approx(4.8)  # 0.95 · 4 places up: between 4 and 5
    with pytest.raises(ValueError, match="no repetitions"):
        summary([])


def test_every_round_has_every_case_once_in_an_order_of_its_own():
    cases = [1, 8, 64, 256]
    rounds = [order(cases, number, 0) for number in range(40)]
    assert all(sorted(found) == cases for found in rounds)
    assert len({tuple(found) for found in rounds}) > 10
    # No case is always early: each stands at each place sometimes.
    for place in range(4):
        assert {found[place] for found in rounds} == set(cases)


def test_the_order_of_a_round_depends_on_seed_and_number_alone():
    cases = list(range(12))
    assert order(cases, 7, 3) == order(cases, 7, 3)
    assert order(cases, 7, 3) != order(cases, 8, 3)
    assert order(cases, 7, 3) != order(cases, 7, 4)


def test_upper_median_is_the_order_statistic_of_the_binomial():
    assert upper_median([float(n) for n in range(9)]) is None  # 2⁻⁹ > 0.001
    assert upper_median([float(n) for n in range(10)]) == 9
    # P(at most 6 heads of 30) = 0.0007, of 7 it is 0.0026: the 24th of 30.
    assert upper_median([float(n) for n in reversed(range(30))]) == 23


def test_the_median_is_hardly_ever_above_its_upper_limit():
    rng = np.random.default_rng(0)
    drawn = rng.exponential(size=(4000, 30)) - np.log(2)  # whose median is 0
    below = [upper_median(list(values)) < 0 for values in drawn.tolist()]
    assert np.mean(below) < 0.004
    # Negative control: an even chance is no certainty.
    weak = [upper_median(list(values), 0.5) < 0 for values in drawn.tolist()]
    assert 0.2 < np.mean(weak) < 0.6


def test_garbage_waits_while_time_is_taken():
    assert gc.isenabled()
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), undisturbed():
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()
