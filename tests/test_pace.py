"""Rows of a run's log about its speed: counted by a clock that the test moves."""

import jax
import pytest

from vtscale_jax.pace import CompiledStep, Limit, Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


STEP = CompiledStep(None, causal=300, whole=400)


def slow(clock: Clock, waits: list[float]):
    for i, seconds in enumerate(waits):
        clock.now += seconds
        yield i


def test_rows():
    clock = Clock()
    with Pace(Limit(1000.0, "made up"), clock) as pace:
        items = pace.waiting(slow(clock, [50.0, 0.5, 0.1]))
        assert pace.summary() == {}
        next(items)  # the wait for the first one is a part of starting
        clock.now += 1.0
        pace.did(8, STEP)
        next(items)
        clock.now += 0.5
        pace.did(8, STEP)
        row = pace.row()
        assert row["samples_per_s"] == pytest.approx(16 / 2.0)
        assert row["mfu"] == pytest.approx(600 / 2000)
        assert row["mfu_whole"] == pytest.approx(800 / 2000)
        assert row["loader_wait"] == pytest.approx(0.25)
        with pace.paused():
            clock.now += 1000
        next(items)
        clock.now += 0.9
        pace.did(8, STEP)
        row = pace.row()
        assert row["mfu"] == pytest.approx(0.3)
        assert row["loader_wait"] == pytest.approx(0.1)
        assert list(items) == []
        whole = pace.summary()
        assert whole["seconds"] == pytest.approx(3.0)
        assert whole["mfu"] == pytest.approx(900 / 3000)
        assert whole["loader_wait"] == pytest.approx(0.2)
        assert whole["samples_per_s"] == pytest.approx(8)


def test_programs_are_counted():
    with Pace(Limit(1.0, "made up"), Clock()) as pace:
        program = jax.jit(lambda x: x * 3 + 1)

        def compiled() -> int:
            pace._throughput._clock.now += 1.0
            return pace.row()["compiled_programs"]

        before = compiled()
        program(1.0)
        once = compiled()
        assert once > before
        program(2.0)
        assert compiled() == once
        program(jax.numpy.ones(3))  # another shape
        after = compiled()
        assert after > once
    jax.jit(lambda x: x * 5 + 1)(1.0)
    assert pace._compiling.programs == after
