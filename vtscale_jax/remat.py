"""What the backward pass computes again (remat): as little as lets a step fit.

`model.remat=auto` is chosen here when a run is laid out. `plan --search` tries the same
choices beside meshes and batch sizes.
"""

import platform
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vtscale_jax.devices import GIB
from vtscale_jax.parallel.plans.plan import needed_bytes
from vtscale_jax.parallel.plans.topologies import here
from vtscale_jax.program import Program
from vtscale_jax.settings import LEAST_REMAT_FIRST
from vtscale_jax.step_cost import arithmetic
from vtscale_jax.types import Batch

# Of a name and a value, the values of all processes (`Processes.share`).
Share = Callable[[str, Any], list[Any]]


def alone(name: str, value: Any) -> list[Any]:
    """The `Share` of a single process."""
    return [value]


def with_least_remat(
    config: ConfigDict,
    program_of: Callable[[ConfigDict], Program],
    batch: Batch,
    *,
    frozen_bytes: int,
    say: Callable[[str], object],
    share: Share = alone,
) -> tuple[ConfigDict, Program]:
    """`config` with the `model.remat` that computes least again and by which the train
    step for `batch` fits into the room of all devices (`Topology.room`), and its
    program; full remat where nothing fits.

    What cannot fit by arithmetic is not compiled. `frozen_bytes` are those of a frozen
    number; `say` hears what was found. All processes choose the same: by the least
    room, and the most that any compiler asks for.
    """
    machine = here()
    rooms = share("the memory of the devices", [platform.node(), machine.room])
    room = _least_room(rooms)
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
        needed, told = sizes.least_memory(mesh, *updates)[1], "at least "
        if needed <= room:
            own = needed_bytes(program, batch, machine)
            needed, told = max(share(f"the memory that remat {remat} needs", own)), ""
        if needed <= room:
            break
    numbers = f"{told}{needed / GIB:.2f} GiB on each device, {room / GIB:.2f} are free"
    if needed > room:
        numbers += "; it may not fit: take a smaller data.batch_size, or more devices"
    say(f"model.remat=auto is {config.model.remat}: {numbers} for it")
    return config, program


def _least_room(rooms: list[list[Any]]) -> int:
    """The least of the rooms of (host, room); CPU devices of several processes on one
    host have its memory together."""
    hosts = [host for host, _ in rooms]
    sharing = jax.default_backend() == "cpu"
    return min(room // (hosts.count(host) if sharing else 1) for host, room in rooms)
