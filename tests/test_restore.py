"""A checkpoint goes on wherever it was saved: any number of devices, any mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import test_mesh as on_meshes

from vtscale_jax import paths
from vtscale_jax.parallel import mesh as meshes
from vtscale_jax.parallel.mesh import spread, to_host
from vtscale_jax.program import shardings
from vtscale_jax.stages import get_stage
from vtscale_jax.weights.checkpoints import CheckpointError, Checkpoints
from vtscale_jax.weights.checksums import checksum

# devices -> (data, fsdp, tensor)
MESHES = {1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 2, 1), 8: (2, 2, 2)}


@functools.cache
def stepper(devices: int):
    """Program, frozen parameters, batch and compiled step on so many devices."""
    mesh = on_meshes.mesh_of(*MESHES[devices])
    program = on_meshes.program("finetune", mesh, "sharded")
    _, frozen = paths.partition(
        on_meshes.parameters("finetune"), get_stage("finetune").trains
    )
    frozen = meshes.place(frozen, shardings(program.frozen))
    batch = spread(on_meshes.batch_for("finetune"), mesh)
    return program, frozen, batch, program.compile(batch)


def stepped(devices: int, state, steps: int):
    _, frozen, batch, step = stepper(devices)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For each number of devices: the folder, the state saved there after two steps,
    and the two losses that follow."""
    found = {}
    for devices in MESHES:
        trainable, _ = paths.partition(
            on_meshes.parameters("finetune"), get_stage("finetune").trains
        )
        state, _ = stepped(devices, stepper(devices)[0].start(trainable), 2)
        folder = tmp_path_factory.mktemp(f"on{devices}")
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(state, {"step": 2}, heldout_loss=1.0)
            checkpoints.wait()
        kept = to_host(state)
        found[devices] = folder, kept, stepped(devices, state, 2)[1]
    return found


@pytest.mark.parametrize("after", MESHES)
@pytest.mark.parametrize("before", MESHES)
def test_saved_on_some_devices_and_restored_on_others(saved, before, after):
    folder, kept, losses = saved[before]
    program = stepper(after)[0]
    with Checkpoints(folder, keep=1) as checkpoints:
        restored = checkpoints.restore_latest(program.state)
    assert restored is not None and restored.step == 2
    for path, leaf in paths.flatten(restored.state).items():
        assert leaf.sharding == paths.flatten(program.state)[path].sharding
    jax.tree.map(np.testing.assert_array_equal, to_host(restored.state), kept)
    _, again = stepped(after, restored.state, 2)
    np.testing.assert_allclose(again, losses, rtol=0, atol=1e-6)


def test_another_state_goes_on_otherwise(saved):
    """The control: the losses above are not those of any state."""
    folder, _, losses = saved[1]
    with Checkpoints(folder, keep=1) as checkpoints:
        restored = checkpoints.restore_latest(stepper(1)[0].state)
    assert restored is not None
    moved = jax.tree.map(lambda leaf: leaf * 1.001, restored.state.params)
    _, again = stepped(1, restored.state._replace(params=moved), 2)
    assert np.abs(np.array(again) - losses).max() > 1e-5


def test_the_checksum_does_not_depend_on_the_mesh():
    value = {"x": np.arange(48, dtype=np.float32).reshape(8, 6), "n": np.int32(3)}
    sums = set()
    for devices in MESHES:
        mesh = on_meshes.mesh_of(*MESHES[devices])
        sums.add(checksum(spread({"x": value["x"]}, mesh)))
    assert len(sums) == 1


@pytest.mark.parametrize("change", ["bit", "place", "dtype", "name"])
def test_the_checksum_finds_what_changed(change):
    value = {"x": np.arange(48, dtype=np.float32), "y": np.zeros(5, np.int32)}
    before = checksum(jax.tree.map(jax.numpy.asarray, value))
    if change == "bit":
        value["x"].view(np.uint32)[17] ^= 1
    elif change == "place":
        value["x"][[3, 4]] = value["x"][[4, 3]]
    elif change == "dtype":
        value["y"] = value["y"].astype(np.float32)
    else:
        value["z"] = value.pop("y")
    assert checksum(jax.tree.map(jax.numpy.asarray, value)) != before


def test_a_flipped_bit_of_the_optimizer_is_found(saved, monkeypatch, capsys):
    """What the reader returns is compared with what was saved."""
    folder = saved[2][0]
    program = stepper(2)[0]
    with Checkpoints(folder, keep=1) as checkpoints:
        manager = checkpoints._manager
        read = manager.restore

        def flipped(*args, **kwargs):
            found = read(*args, **kwargs)
            flat = dict(paths.flatten(found["state"]["opt_state"]))
            path = next(p for p in flat if p.endswith("nu/projector/kernel"))
            assert float(flat[path].reshape(-1)[0]) != 0
            found["state"]["opt_state"] = jax.tree.map(
                lambda leaf: leaf * 1.0000002 if leaf.shape else leaf,
                found["state"]["opt_state"],
            )
            return found

        monkeypatch.setattr(manager, "restore", flipped)
        with pytest.raises(CheckpointError, match=r"none of the checkpoints \[2\]"):
            checkpoints.restore_latest(program.state)
    assert "its checksum is" in capsys.readouterr().err


def test_programs_say_where_everything_lies_before_anything_is_there():
    program = stepper(8)[0]
    shapes = jax.tree.leaves(program.state) + jax.tree.leaves(program.frozen)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes)
    assert dataclasses.is_dataclass(program)
