"""Meshes and rules: sharded steps agree with unsharded ones, whatever the mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from configs import base
from vtscale_jax import paths, settings
from vtscale_jax.collate import blank_batch
from vtscale_jax.collate import collate as collate_on_host
from vtscale_jax.optim import OptimConfig
from vtscale_jax.parallel import mesh as meshes
from vtscale_jax.parallel import rules
from vtscale_jax.parallel.mesh import (
    MeshError,
    feed,
    make_mesh,
    own_shards,
    shards_of,
    spread,
)
from vtscale_jax.parallel.plans.collectives import KINDS
from vtscale_jax.parallel.plans.hlo import read_module
from vtscale_jax.program import Program, shardings
from vtscale_jax.stages import STAGES, get_stage, init_params, parameter_shapes
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Shards

LAYOUT = QueryLayout(8, 4, tiny.VOCAB)
SPEC = dataclasses.replace(tiny.SPEC, batch_size=8, crops=(24,), answers=(16,))
OPTIM = OptimConfig(steps=20, learning_rate=1e-3, weight_decay=0.01)
# (data, fsdp, tensor), how frozen parameters lie
MESHES = [
    ((8, 1, 1), "replicated"),
    ((1, 8, 1), "sharded"),
    ((2, 4, 1), "replicated"),
    ((2, 2, 2), "sharded"),
    ((1, 4, 2), "replicated"),
    ((4, 1, 2), "sharded"),
]


def mesh_of(*sizes: int):
    devices = jax.devices()[: math.prod(sizes)]
    return make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)


def model_config(**more):
    """The tiny model with two heads everywhere, so that they can be shared out."""
    config = tiny.model_config(7, **more)
    blocks = dataclasses.replace(config.fusion.blocks, num_heads=2, num_kv_heads=2)
    blocks = dataclasses.replace(blocks, head_dim=32)
    fusion = dataclasses.replace(config.fusion, blocks=blocks)
    return dataclasses.replace(config, fusion=fusion)


def batch_for(stage: str):
    rng = np.random.default_rng(0)
    align = stage == "align"
    samples = [
        tiny.sample(rng, LAYOUT, crops=crops, align=align)
        for crops in (1, 2, 3, 2, 3, 1, 2, 3)
    ]
    return collate_on_host(samples, SPEC)


def program(
    stage: str, mesh, layout: str = "replicated", *, accumulation=1, **more
) -> Program:
    return Program.of(
        get_stage(stage),
        model_config(**more),
        dataclasses.replace(OPTIM, accumulation=accumulation),
        mesh,
        frozen_dtype="float32",
        frozen_layout=layout,
    )


@functools.cache
def parameters(stage: str):
    """Perturbed, so that no parameter is at a value where it does nothing."""
    rng = np.random.default_rng(1)
    params = init_params(get_stage(stage), model_config(), 0)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.05, leaf.shape).astype("f4"),
        params,
    )


def nested_collectives(text: str) -> list[str]:
    """Those of computations that the program calls. One in a loop and one beside it can
    make CPU devices wait for each other forever; those in branches are no better known
    to be kept in order."""
    module = read_module(text)
    return [
        line.name
        for name, computation in module.computations.items()
        for line in computation.instructions.values()
        if name != module.entry and line.opcode.removesuffix("-start") in KINDS
    ]


def trained(stage: str, mesh, layout="replicated", *, steps=3, params=None, **more):
    """Losses, parameters and gradient norms of some steps on the same batch."""
    made = program(stage, mesh, layout, **more)
    trainable, frozen = paths.partition(
        parameters(stage) if params is None else params, get_stage(stage).trains
    )
    state = made.start(trainable)
    frozen = meshes.place(frozen, shardings(made.frozen))
    batch = spread(batch_for(stage), mesh)
    step, rows = made.compile(batch), []
    assert nested_collectives(step.as_text() or "") == []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(rows), state


@functools.cache
def unsharded(stage: str):
    return trained(stage, mesh_of(1, 1, 1))[0]


@pytest.mark.parametrize(
    ("stage", "sizes", "layout"),
    [("finetune", *mesh) for mesh in MESHES[:4]]
    + [pytest.param("finetune", *m, marks=pytest.mark.long) for m in MESHES[4:]]
    + [("align", *mesh) for mesh in MESHES[1::2]]
    + [pytest.param("align", *m, marks=pytest.mark.long) for m in MESHES[::2]],
)
def test_sharded_steps_agree_with_unsharded_ones(stage, sizes, layout):
    rows, state = trained(stage, mesh_of(*sizes), layout)
    np.testing.assert_allclose(rows, unsharded(stage), rtol=2e-5)
    kernel = state.params["fusion"]["blocks"]["gate"]["kernel"]
    part = kernel.addressable_shards[0].data.shape
    assert part == (2, 64 // sizes[1], 80 // sizes[2])
    moment = paths.flatten(state.opt_state)
    mu = next(v for k, v in moment.items() if k.endswith("mu/" + "fusion/embed"))
    assert mu.sharding == state.params["fusion"]["embed"].sharding


@pytest.mark.parametrize(
    "remat", ["selective", pytest.param("full", marks=pytest.mark.long)]
)
def test_remat_and_accumulation_agree_too(remat):
    plain, _ = trained("finetune", mesh_of(1, 1, 1), accumulation=2)
    more = {"accumulation": 2, "remat": remat}
    again, _ = trained("finetune", mesh_of(2, 2, 2), "sharded", **more)
    np.testing.assert_allclose(again, plain, rtol=2e-5)
    assert np.abs(plain[2] / unsharded("finetune")[2] - 1).max() > 1e-3


def test_a_weight_that_moved_shows_in_a_sharded_step():
    """The control: agreement is not a matter of course."""
    flat = dict(paths.flatten(parameters("finetune")))
    kernel = flat["fusion/blocks/down/kernel"].copy()
    kernel[1, 40:] *= 1.01  # on one device of several only
    flat["fusion/blocks/down/kernel"] = kernel
    rows, _ = trained("finetune", mesh_of(2, 2, 2), params=paths.unflatten(flat))
    assert np.abs(rows / unsharded("finetune") - 1).max() > 1e-4


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", ["embedded", "smol", "paper"])
def test_every_parameter_has_a_rule(preset, stage):
    """At full size, in no memory; those of many rows lie on all devices."""
    config = base.with_queries(256)(f"{preset},stage={stage}")
    model = settings.model_config(config, "bfloat16")
    shapes = parameter_shapes(get_stage(stage).model, model)
    lie = rules.parameter_shardings(shapes, mesh_of(1, 8, 1))
    for path, leaf in paths.flatten(shapes).items():
        sharding = paths.flatten(lie)[path]
        if leaf.size >= 2**17 and not path.endswith(("scale", "bias")):
            assert math.prod(sharding.shard_shape(leaf.shape)) * 8 == leaf.size, path


def test_a_parameter_without_a_rule_is_an_error():
    shapes = {"llm": {"adapter": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    with pytest.raises(ValueError, match=r"without a sharding rule: \['llm/adapter'\]"):
        rules.parameter_shardings(shapes, mesh_of(8, 1, 1))


def test_what_belongs_to_no_parameter_is_an_error():
    state = {"trace": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with pytest.raises(ValueError, match="trace of shape .* belongs to no parameter"):
        rules.state_shardings(state, {}, mesh_of(8, 1, 1))


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    shapes = {"llm": {"embed": jax.ShapeDtypeStruct((23, 48), jnp.float32)}}
    lie = rules.parameter_shardings(shapes, mesh_of(2, 2, 2))["llm"]["embed"]
    assert lie.spec == P(None, "fsdp")
    assert rules.describe(lie, (23, 48)) == "· fsdp:2"
    assert rules.describe(meshes.replicated(mesh_of(8, 1, 1)), (2,)) == "copied"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "mesh.data 3, mesh.fsdp 1, mesh.tensor 1 on 8 devices"),
        ((-1, -1, 1), "one may be -1"),
        ((0, 1, 1), "expected positive sizes"),
        ((-1, 3, 1), "must multiply to the number"),
        ((-1, 16, 1), "must multiply to the number"),
    ],
)
def test_sizes_that_the_devices_do_not_have(sizes, message):
    with pytest.raises(MeshError, match=message):
        make_mesh(dict(zip(meshes.AXES, sizes, strict=True)))


def test_what_is_left_goes_to_the_axis_of_minus_one():
    found = make_mesh({"data": 2, "fsdp": -1, "tensor": 2})
    assert dict(found.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_batches_that_cannot_be_cut():
    with pytest.raises(
        MeshError, match=r"data.batch_size is 20, .* multiple of 8.*=24"
    ):
        meshes.check_batch(mesh_of(2, 4, 1), 20, "data.batch_size")
    meshes.check_batch(mesh_of(1, 4, 2), 20, "data.batch_size")


def test_heads_are_not_split():
    with pytest.raises(
        MeshError, match="mesh.tensor is 4, but model.fusion.*num_heads"
    ):
        program("finetune", mesh_of(2, 1, 4))
    with pytest.raises(ValueError, match="mesh.frozen is 'both'"):
        program("finetune", mesh_of(8, 1, 1), "both")


def test_which_parts_of_a_batch_a_process_feeds():
    # Two hosts whose devices are not neighbours on the torus.
    apart = np.array([[0], [0], [1], [1], [0], [0], [1], [1]])
    assert shards_of(apart, 0) == Shards((0, 1, 4, 5), 8)
    assert shards_of(apart, 1) == Shards((2, 3, 6, 7), 8)
    # A tensor axis over two hosts: both feed the same rows.
    wide = np.array([[0, 1], [0, 1], [2, 3], [2, 3]])
    assert shards_of(wide, 1) == Shards((0, 1), 4)
    assert shards_of(wide, 3) == Shards((2, 3), 4)
    with pytest.raises(MeshError, match="shared wholly or not at all"):
        shards_of(np.array([[0, 0], [0, 1], [1, 1]]), 0)
    assert own_shards(mesh_of(2, 2, 2)) == Shards((0, 1, 2, 3), 4)


def test_a_batch_is_put_together_from_its_parts():
    mesh = mesh_of(4, 2, 1)
    whole = np.arange(32).reshape(16, 2)
    shards = Shards(tuple(range(8)), 8)
    assert np.array_equal(meshes.to_host(feed(whole, mesh, shards)), whole)


@pytest.mark.parametrize("stage", ["align", "adapt"])
def test_blank_batches_have_the_shapes_of_real_ones(stage):
    real = batch_for(stage)
    blank = blank_batch(SPEC, stage, 16)
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)
        for tree in (blank, real)
    ]
    assert shapes[0] == shapes[1]
