"""What a run needs on the devices that are here, before it begins.

`train --dry_run` prints it; `python -m vtscale_jax.parallel plan` makes the same table
for machines that are not here.
"""

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from vtscale_jax import paths
from vtscale_jax.collate import blank_batch
from vtscale_jax.cost import flops, traffic
from vtscale_jax.parallel import rules
from vtscale_jax.parallel.plans import table
from vtscale_jax.parallel.plans.plan import Arithmetic, Plan, Work, make_plan
from vtscale_jax.parallel.plans.topologies import here
from vtscale_jax.prepare import Run, count, lay_out
from vtscale_jax.stages import Stage
from vtscale_jax.types import Batch
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.sizes import fill_sizes

EFFICIENCY = 0.4  # of the peak, that computing is taken to reach


def dry_run(config: ConfigDict) -> list[str]:
    """What `train` would run on these devices, as lines; nothing is written."""
    config = config.copy_and_resolve_references()
    notes = [f"from the weights: {line}" for line in fill_sizes(config)]
    run = lay_out(config)
    return [*notes, *describe(run, plan_of(run))]


def plan_of(run: Run) -> Plan:
    """The plan of a run's last phase, which has the most queries, at the largest shapes
    of its batches; its train step is compiled."""
    program, config = run.program, run.config
    spec = run.phases[-1].spec.largest()
    view_size = program.model.vision.image_size
    batch = blank_batch(
        *(spec, config.stage, view_size),
        hosts=run.shards.feeders,
        crop_dtype=run.parts.encoding.crop_dtype,
    )
    cost = arithmetic(
        program.stage,
        program.model,
        batch,
        jnp.dtype(run.dtypes.llm_params).itemsize,
        run.optim.accumulation,
    )
    return make_plan(
        config,
        program,
        batch,
        here(),
        cost.work,
        shapes=f"{spec.describe(config.stage)} (of the config's data)",
        steps=run.total_steps,
        efficiency=EFFICIENCY,
    )


def describe(run: Run, plan: Plan) -> list[str]:
    """Every parameter with its shape, dtype, place and whether it trains; then the
    plan as a table."""
    program = run.program
    rows = [["parameter", "shape", "dtype", "on each device", "trains"]]
    for tree, trains in ((program.state.params, "yes"), (program.frozen, "no")):
        for path, leaf in paths.flatten(tree).items():
            lies = rules.describe(leaf.sharding, leaf.shape)
            shape = "×".join(map(str, leaf.shape)) or "scalar"
            rows.append([path, shape, leaf.dtype.name, lies, trains])
    counts = [count(tree) for tree in (program.state.params, program.frozen)]
    return [
        *table.aligned(rows),
        "",
        f"{counts[0]:,} trainable and {counts[1]:,} frozen parameters",
        "",
        *table.lines([plan]),
    ]


def arithmetic(
    stage: Stage,
    model: ModelConfig,
    batch: Batch,
    frozen_bytes: int,
    accumulation: int,
) -> Arithmetic:
    """What a step costs, counted by `cost`, in the form that plans want it.

    `frozen_bytes` are those of one frozen number that is no int8.
    """
    parameters = _parameters(stage, model)
    trainable = sum(part.count for part in parameters if part.trains)
    frozen = sum(
        part.int8 + frozen_bytes * (part.count - part.int8)
        for part in parameters
        if not part.trains
    )
    sizes = flops.batch_sizes(batch)
    counted = flops.step_flops(
        stage, model, sizes, trainable=trainable, accumulation=accumulation
    )
    moved = traffic.step_traffic(
        parameters, model, sizes, frozen_bytes=frozen_bytes, accumulation=accumulation
    )
    work = Work(
        flops=counted.total,
        useful=counted.useful,
        weights=moved.weights,
        residuals=moved.residuals,
        updates=moved.gradients + moved.optimizer,
    )
    return Arithmetic(
        work,
        trainable=traffic.FLOAT32 * trainable,
        frozen=frozen,
        hidden=moved.hidden,
        block=moved.largest_block,
    )


@functools.cache
def _parameters(stage: Stage, model: ModelConfig) -> Any:
    """A search asks for the same model again and again."""
    return traffic.count_parameters(stage, model)
