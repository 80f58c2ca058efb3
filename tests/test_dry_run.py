"""A dry run says what a run will need, and leaves nothing behind."""

import importlib
import re

import jax
import pytest
from small_runs import manifest, small_config

from vtscale_jax.dry_run import describe, dry_run, plan_of
from vtscale_jax.parallel.plans import topologies
from vtscale_jax.prepare import lay_out
from vtscale_jax.program import Program
from vtscale_jax.train import train


def asked_for(stats) -> int:
    """Arguments, temporaries, and outputs that take no argument's place."""
    asked = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    return asked + stats.output_size_in_bytes - stats.alias_size_in_bytes


def embedded():
    return importlib.import_module("configs.m8").get_config("")


@pytest.mark.parametrize(
    "made", [small_config, pytest.param(embedded, marks=pytest.mark.long)]
)
def test_a_run_needs_what_was_predicted(made, tmp_path, monkeypatch):
    """Within 15 % of what the compiled program reports when it runs."""
    monkeypatch.chdir(tmp_path)
    config = made()
    with config.unlocked():
        config.optim.steps = 3
        config.eval.questions = 0
    plan = plan_of(lay_out(config.copy_and_resolve_references()))
    assert not list(tmp_path.iterdir())
    compiled, compile_step = [], Program.compile

    def noted(self, batch, **options):
        compiled.append(compile_step(self, batch, **options))
        return compiled[-1]

    monkeypatch.setattr(Program, "compile", noted)
    train(config, tmp_path / "run")
    monkeypatch.undo()
    needed = max(asked_for(one.memory_analysis()) for one in compiled)
    assert manifest(tmp_path / "run")["step_memory_bytes"] == needed
    assert plan.memory is not None and plan.needed == plan.memory.peak
    assert plan.needed == pytest.approx(needed, rel=0.15)
    # The control: another M needs another amount.
    with config.unlocked():
        config.num_queries = 48
    other = plan_of(lay_out(config.copy_and_resolve_references()))
    assert other.needed != pytest.approx(needed, rel=0.15)


def test_every_parameter_is_told_with_its_place():
    config = small_config(mesh__data=1, mesh__fsdp=4, mesh__tensor=2)
    run = lay_out(config.copy_and_resolve_references())
    lines = describe(run, plan_of(run))
    rows = {line.split()[0]: line for line in lines if "/" in line.split(" ")[0]}
    up = rows["vision/blocks/up/kernel"]
    assert re.fullmatch(
        r"vision/blocks/up/kernel +1×128×512  float32 +· fsdp:4 tensor:2 +yes", up
    )
    assert rows["llm/norm/scale"].split()[1:] == ["128", "float32", "copied", "no"]
    assert len(rows) == len(jax.tree.leaves((run.program.state.params,))) + len(
        jax.tree.leaves(run.program.frozen)
    )
    text = "\n".join(lines)
    assert "fits" in text and "all-gather" in text and "reduce" in text


def test_what_is_wrong_with_a_config_shows_in_a_dry_run():
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        dry_run(small_config(data__batch_size=12))


def test_the_devices_here():
    found = topologies.here()
    assert found.num_devices == 8 and found.chip.memory > 2**28
    assert found.chip.flops != found.chip.flops  # nothing is known of a CPU's peak
