"""What the backward pass computes again (remat): as little as lets a step fit.

`model.remat=auto` is chosen here when a run is laid out. `plan --search` tries the same
choices beside meshes and batch sizes.
"""

import functools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Choice(NamedTuple):
    """A `remat`, and the bytes on each device that it needs: as `compiled`, or at least
    so many by arithmetic."""

    remat: str
    needed: int
    compiled: bool


def least_remat(
    room: int, at_least: Callable[[str], int], as_compiled: Callable[[str], int]
) -> Choice:
    """The remat that computes least again and needs at most `room` bytes on each
    device; full remat where none does.

    `at_least` gives the bytes by arithmetic: what does not fit by it is not compiled.
    """
    for remat in LEAST_REMAT_FIRST:
        needed, compiled = at_least(remat), False
        if needed <= room:
            needed, compiled = as_compiled(remat), True
        if needed <= room:
            break
    return Choice(remat, needed, compiled)


def with_least_remat(
    config: ConfigDict,
    program_of: Callable[[ConfigDict], Program],
    batch: Batch,
    *,
    frozen_bytes: int,
    say: Callable[[str], object],
    share: Share = alone,
) -> tuple[ConfigDict, Program]:
    """`config` with the `least_remat` by which the train step for `batch` fits into
    the room of all devices (`Topology.room`), and its program.

    `frozen_bytes` are those of a frozen number; `say` hears what was found. All
    processes choose the same: by the least room, and the most that any compiler asks
    for.
    """
    machine = here()
    rooms = share("the memory of the devices", [platform.node(), machine.room])
    room = _least_room(rooms)
    config = config.copy_and_resolve_references()

    @functools.cache
    def program(remat: str) -> Program:
        config.model.remat = remat
        return program_of(config)

    def at_least(remat: str) -> int:
        made, accumulation = program(remat), config.optim.accumulation
        sizes = arithmetic(made.stage, made.model, batch, frozen_bytes, accumulation)
        updates = (config.mesh.frozen, accumulation)
        return sizes.least_memory(dict(made.mesh.shape), *updates).total

    def as_compiled(remat: str) -> int:
        own = needed_bytes(program(remat), batch, machine)
        return max(share(f"the memory that remat {remat} needs", own))

    remat, needed, compiled = least_remat(room, at_least, as_compiled)
    config.model.remat = remat
    numbers = (
        f"{'' if compiled else 'at least '}{needed / GIB:.2f} GiB on each device, "
        f"{room / GIB:.2f} are free"
    )
    if needed > room:
        numbers += "; it may not fit: take a smaller data.batch_size, or more devices"
    say(f"model.remat=auto is {remat}: {numbers} for it")
    return config, program(remat)


def _least_room(rooms: list[list[Any]]) -> int:
    """The least of the rooms of (host, room); CPU devices of several processes on one
    host have its memory together."""
    hosts = [host for host, _ in rooms]
    sharing = jax.default_backend() == "cpu"
    return min(room // (hosts.count(host) if sharing else 1) for host, room in rooms)
