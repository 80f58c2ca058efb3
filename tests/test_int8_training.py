"""Training through a frozen language model whose kernels are int8."""

import jax
import numpy as np
import pytest
from small_runs import manifest, rows, small_config

from vtscale_jax import paths
from vtscale_jax.cost import traffic
from vtscale_jax.dry_run import plan_of
from vtscale_jax.prepare import lay_out, load
from vtscale_jax.stages import get_stage
from vtscale_jax.train import train
from vtscale_jax.trained import RunError, open_trained

STEPS = {"optim__steps": 2, "eval__questions": 0, "checkpoint__every": 2}
SHIPPED = {
    f"model__{tower}__blocks__num_layers": 4 for tower in ("vision", "fusion", "llm")
} | {"weights__llm": "embedded", "weights__init_from": "embedded"}


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "run"
    train(small_config(model__llm_int8=True, **STEPS, **SHIPPED), folder)
    return folder


def test_it_trains_as_with_floats(int8, tmp_path):
    """The shipped model on the same batches: the first loss differs by the rounding of
    the weights, and by no more."""
    train(small_config(**STEPS, **SHIPPED), tmp_path / "run")

    def losses(folder) -> list[float]:
        return [row["loss"] for row in rows(folder) if row["split"] == "train"]

    exact, near = losses(tmp_path / "run"), losses(int8)
    assert near == pytest.approx(exact, rel=0.02)
    assert near != exact
    # It is the same language model: the hash is that of the weights before rounding.
    llm = [manifest(folder)["weights"]["llm"] for folder in (tmp_path / "run", int8)]
    assert llm[0] == llm[1]


@pytest.mark.parametrize("mesh", [{}, {"mesh__fsdp": 4, "mesh__tensor": 2}])
def test_kernels_are_int8_on_every_device(mesh):
    sizes = {"mesh__data": 1, "mesh__frozen": "sharded"} if mesh else {}
    config = small_config(model__llm_int8=True, **sizes, **mesh)
    run = lay_out(config.copy_and_resolve_references())
    frozen = paths.flatten(load(run).frozen)
    abstract = paths.flatten(run.program.frozen)
    for path, leaf in frozen.items():
        assert leaf.dtype == abstract[path].dtype
        assert leaf.sharding.is_equivalent_to(abstract[path].sharding, leaf.ndim)
    kernels = {path: leaf for path, leaf in frozen.items() if "kernel_int8" in path}
    assert len(kernels) == 7
    assert all(leaf.dtype == np.int8 for leaf in kernels.values())
    assert all(np.abs(leaf).max() == 127 for leaf in kernels.values())
    if mesh:
        up = kernels["llm/blocks/up/kernel_int8"]
        assert up.sharding.shard_shape(up.shape) == (1, 128 // 4, 352 // 2)


def test_plans_count_a_byte_each():
    plans = [
        plan_of(lay_out(small_config(model__llm_int8=on).copy_and_resolve_references()))
        for on in (False, True)
    ]
    exact, near = (plan.memory for plan in plans)
    assert exact is not None and near is not None
    stage = get_stage("adapt")
    model = lay_out(small_config(model__llm_int8=True)).program.model
    llm = {p.name: p for p in traffic.count_parameters(stage, model)}["llm"]
    scales = 3 * 128 + 64 * 2 + 352 * 2  # query, out, down; key, value; gate, up
    assert llm.int8 == llm.in_blocks - scales - 2 * 128  # and two norms
    # Four bytes become one, but for the scales, which are new.
    assert exact.frozen - near.frozen == 3 * llm.int8 - 4 * scales
    less = plans[0].work.weights - plans[1].work.weights
    assert less == 2 * (3 * llm.int8 - 4 * scales)


def test_a_run_answers_with_what_it_was_trained_with(int8):
    run = open_trained(int8)
    flat = paths.flatten(run.params["llm"])
    kernels = [leaf for path, leaf in flat.items() if path.endswith("kernel_int8")]
    assert len(kernels) == 4 * 7 and run.model.llm.blocks.int8
    assert all(leaf.dtype == np.int8 for leaf in kernels)
    scales = [leaf for path, leaf in flat.items() if path.endswith("kernel_scale")]
    assert all(leaf.dtype == np.float32 for leaf in scales)
    assert jax.tree.structure(open_trained(int8, int8=True).params) == (
        jax.tree.structure(run.params)
    )


def test_runs_of_before_say_what_to_add(int8, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    text = (int8 / "config.json").read_text()
    assert '"llm_int8": true' in text
    (copy / "config.json").write_text(text.replace('"llm_int8": true,', ""))
    with pytest.raises(RunError, match='add "llm_int8": false to its "model"'):
        open_trained(copy)
