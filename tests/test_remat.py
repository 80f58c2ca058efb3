"""`model.remat=auto`: the least recomputing by which a step fits."""

import dataclasses

import jax
import pytest
from small_runs import manifest, small_config

from vtscale_jax import prepare, remat, settings
from vtscale_jax.dry_run import plan_of
from vtscale_jax.parallel.mesh import make_mesh
from vtscale_jax.parallel.plans import plan
from vtscale_jax.parallel.plans.topologies import Topology, here
from vtscale_jax.prepare import lay_out
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.settings import LEAST_REMAT_FIRST
from vtscale_jax.train import train

SIZES = {
    **{f"model__{tower}__blocks__num_layers": 4 for tower in ("vision", "fusion")},
    **{"model__llm__blocks__num_layers": 4, "data__batch_size": 16},
}


def config_of(value: str):
    return small_config(
        **{"model__remat": value, **SIZES}
    ).copy_and_resolve_references()


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """On several CPU devices blocks are no loop, and the compiler finds out that it
    computes again what it has."""
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(prepare, "make_mesh", lambda sizes: make_mesh(sizes, one))
        yield


def with_room(monkeypatch, room: int) -> None:
    """Devices with so many bytes that may be filled."""
    chip = dataclasses.replace(here().chip, memory=2 * room)  # a CPU: half of it
    machine = Topology("here", chip, 8)
    assert machine.room == room
    monkeypatch.setattr(remat, "here", lambda: machine)


@pytest.fixture(scope="module")
def needed(one_device) -> dict[str, int]:
    """Bytes by choice, as a dry run of each has them."""
    return {
        value: plan_of(lay_out(config_of(value))).needed for value in LEAST_REMAT_FIRST
    }


def test_each_choice_holds_less_than_the_one_before(needed):
    bytes_needed = list(needed.values())
    assert bytes_needed == sorted(bytes_needed, reverse=True)
    assert bytes_needed[0] > 1.5 * bytes_needed[-1]


@pytest.mark.parametrize("value", LEAST_REMAT_FIRST)
def test_the_first_that_fits_is_chosen(value, needed, monkeypatch):
    with_room(monkeypatch, needed[value])
    said: list[str] = []
    run = lay_out(config_of("auto"), said.append)
    first = next(v for v in LEAST_REMAT_FIRST if needed[v] <= needed[value])
    assert run.config.model.remat == first
    kinds = settings.resolve_remat(run.config)
    assert run.program.model.vision.blocks.remat == kinds["vision"]
    assert run.program.model.llm.blocks.remat == kinds["llm"]
    (line,) = said
    assert line.startswith(f"model.remat=auto is {first}: ")


def test_where_nothing_fits_it_is_full_remat(monkeypatch):
    with_room(monkeypatch, 2**20)
    compiled = []
    monkeypatch.setattr(remat, "needed_bytes", lambda *_: compiled.append(1) or 2**30)
    run = lay_out(config_of("auto"), lambda _: None)
    assert run.config.model.remat == "full"
    assert not compiled  # arithmetic knows


def test_all_processes_choose_by_the_least_room(needed, monkeypatch):
    with_room(monkeypatch, needed["none"])
    asked: list[str] = []

    def share(name: str, value):
        asked.append(name)
        other = ["other", needed["full"]] if isinstance(value, list) else value
        return [value, other]

    run = lay_out(config_of("auto"), lambda _: None, share)
    assert run.config.model.remat == "full"
    assert len(set(asked)) == len(asked)  # each meeting has a name of its own
    # Two processes on one host have its memory together.
    rooms = [["one", 100], ["one", 100], ["two", 80]]
    assert remat._least_room(rooms) == 50


def test_a_compiler_that_runs_out_of_memory_is_told_from_one_that_fails():
    machine = here()
    for text, number in (
        ("RESOURCE_EXHAUSTED: x (17.50G) exceeds available HBM", 17.5 * 2**30),
        ("RESOURCE_EXHAUSTED: hbm. Used 21.5G of 15.48G hbm.", 21.5 * 2**30),
        ("RESOURCE_EXHAUSTED: Out of memory", machine.chip.memory + 1),
    ):
        assert plan._asked_for(RuntimeError(text), machine) == number
    with pytest.raises(plan.PlanError, match="refused the train step: INTERNAL"):
        plan._asked_for(RuntimeError("INTERNAL: no tiles"), machine)


def test_runs_of_before_are_read(tmp_path):
    """They say True and False; their folders go on with any choice."""
    for old, kind in ((True, "full"), (False, "none")):
        config = config_of("none")
        with config.ignore_type():
            config.model.remat = old
        assert set(settings.resolve_remat(config).values()) == {kind}
    fields = config_of("none").to_dict()
    fields["model"]["remat"] = True
    folder = RunFolder(tmp_path)
    with folder.claimed(fields):
        pass
    folder.check(config_of("selective,vision").to_dict())


def test_a_run_notes_what_it_chose(tmp_path):
    train(
        small_config(model__remat="auto", optim__steps=1, eval__questions=0), tmp_path
    )
    assert manifest(tmp_path)["remat"] == "none"
