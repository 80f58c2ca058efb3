"""What the backward pass computes again (remat): as little as lets a step fit.

`model.remat=auto` is chosen here when a run is laid out. `plan --search` tries the same
choices beside meshes and batch sizes.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from vtscale_jax.devices import GIB
from vtscale_jax.parallel.plans.plan import needed_bytes
from vtscale_jax.parallel.plans.topologies import here
from vtscale_jax.program import Program
from vtscale_jax.settings import LEAST_REMAT_FIRST
from vtscale_jax.step_cost import arithmetic
from vtscale_jax.types import Batch


def with_least_remat(
    config: ConfigDict,
    program_of: Callable[[ConfigDict], Program],
    batch: Batch,
    *,
    frozen_bytes: int,
    say: Callable[[str], object],
) -> tuple[ConfigDict, Program]:
    """`config` with the `model.remat` that computes least again and by which the train
    step for `batch` fits into the room of these devices (`Topology.room`), and its
    program; full remat where nothing fits.

    What cannot fit by arithmetic is not compiled. `frozen_bytes` are those of a frozen
    number; `say` hears what was found.
    """
    machine = here()
    config = config.copy_and_resolve_references()
    for remat in LEAST_REMAT_FIRST:
        config.model.remat = remat
        program = program_of(config)
        sizes = arithmetic(
            *(program.stage, program.model, batch, frozen_bytes),
            config.optim.accumulation,
        )
        mesh = dict(program.mesh.shape)
        updates = (config.mesh.frozen, config.optim.accumulation)
        needed = sizes.least_memory(mesh, *updates)[1]
        if needed <= machine.room:
            needed = needed_bytes(program, batch, machine)
        if needed <= machine.room:
            break
    fits = f"{needed / GIB:.2f} of {machine.chip.memory / GIB:.2f} GiB"
    say(f"model.remat=auto is {config.model.remat}: {fits} on each device")
    return config, program
