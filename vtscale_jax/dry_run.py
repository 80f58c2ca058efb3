"""What a run needs on the devices that are here, before it begins.

`train --dry_run` prints it; `python -m vtscale_jax.parallel plan` makes the same table
for machines that are not here.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from vtscale_jax import paths
from vtscale_jax.parallel import rules
from vtscale_jax.parallel.plans import table
from vtscale_jax.parallel.plans.plan import Plan, make_plan
from vtscale_jax.parallel.plans.topologies import here
from vtscale_jax.prepare import Run, count, largest_batch, lay_out
from vtscale_jax.step_cost import arithmetic
from vtscale_jax.weights.sizes import fill_sizes

EFFICIENCY = 0.4  # of the peak, that computing is taken to reach


def dry_run(config: ConfigDict) -> list[str]:
    """What `train` would run on these devices, as lines; nothing is written."""
    config = config.copy_and_resolve_references()
    notes = [f"from the weights: {line}" for line in fill_sizes(config)]
    run = lay_out(config, notes.append)
    return [*notes, *describe(run, plan_of(run))]


def plan_of(run: Run) -> Plan:
    """The plan of a run's last phase, which has the most queries, at the largest shapes
    of its batches; its train step is compiled."""
    program, config = run.program, run.config
    spec = run.phases[-1].spec.largest()
    batch = largest_batch(config, program.model, run.parts, run.phases, run.shards)
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
