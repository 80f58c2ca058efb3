"""`model.remat=auto`: the least recomputing by which a step fits."""

import dataclasses

import jax
import pytest
from small_runs import manifest, small_config

from vtscale_jax import prepare, remat, settings
from vtscale_jax.dry_run import plan_of
from vtscale_jax.parallel.mesh import make_mesh
from vtscale_jax.parallel.plans.topologies import Topology, here
from vtscale_jax.prepare import lay_out
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


def test_a_run_notes_what_it_chose(tmp_path):
    train(
        small_config(model__remat="auto", optim__steps=1, eval__questions=0), tmp_path
    )
    assert manifest(tmp_path)["remat"] == "none"
