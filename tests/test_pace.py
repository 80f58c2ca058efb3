"""Rows of a run's log about its speed: counted by a clock that the test moves."""

import jax
import pytest
from small_runs import manifest, rows, small_config

from vtscale_jax.cost import peak
from vtscale_jax.pace import CompiledStep, CompiledSteps, Limit, Pace
from vtscale_jax.train import train


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


def test_waiting_for_other_hosts_counts():
    clock = Clock()
    with Pace(Limit(1.0, "made up"), clock) as pace:
        with pace.held_up():
            clock.now += 1.0
        clock.now += 3.0
        assert pace.row()["loader_wait"] == pytest.approx(0.25)


def test_a_run_compiles_nothing_after_each_shape_has_come(tmp_path, monkeypatch):
    """Four epochs: what is compiled after the first rows is a step for a new shape."""
    compiled, compile_step = [], CompiledSteps.compile

    def noted(self, batch):
        compiled.append(batch)
        return compile_step(self, batch)

    monkeypatch.setattr(CompiledSteps, "compile", noted)
    config = small_config(
        optim__steps=32, eval__every=4, eval__questions=0, checkpoint__every=32
    )
    train(config, tmp_path / "run")
    logged = [row for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert len(logged) == 32
    # Steps, held-out evaluations and their first checkpoint have run by then.
    late = [row["compiled_programs"] for row in logged[8:]]
    shapes = len({tuple(leaf.shape for leaf in jax.tree.leaves(b)) for b in compiled})
    assert len(compiled) == shapes
    assert late[-1] - late[0] <= shapes - 1
    speed = manifest(tmp_path / "run")["speed"]
    assert speed["compiled_programs"] >= late[-1]
    assert 0 < speed["mfu"] <= speed["mfu_whole"] < 2
    assert 0 <= speed["loader_wait"] < 1


def test_the_mfu_is_the_count_over_the_time(tmp_path):
    """By hand, of the row's own numbers: 8 samples a step."""
    train(small_config(optim__steps=3, eval__questions=0), tmp_path / "run")
    row = rows(tmp_path / "run")[0]
    flops, source = peak.product_peak("float32")
    found = manifest(tmp_path / "run")["peak"]
    assert found == {"flops": flops, "source": f"1 × {source}"}
    a_step = row["mfu"] * flops * 8 / row["samples_per_s"]
    # One layer of each tower; 24 crops of 17 tokens are the most of it.
    assert 1e8 < a_step < 1e10
