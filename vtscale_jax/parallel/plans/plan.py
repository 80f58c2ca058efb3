"""Does it fit, and how long does it take? A run's real train step compiled for devices
that need not be there.

What a device must hold is what the compiler says: the arguments (weights, optimizer
state, batch) and one block of temporaries. What a step computes and moves comes from
arithmetic (`Work`, made by `cost`), since compilers count the body of a loop once; what
it sends comes from the compiled program (`collectives`).
"""

import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vtscale_jax.devices import TPU
from vtscale_jax.parallel.plans import collectives
from vtscale_jax.parallel.plans.topologies import Topology
from vtscale_jax.program import Program
from vtscale_jax.types import Batch


class PlanError(ValueError):
    """A step that cannot be planned."""


class Work(NamedTuple):
    """What one step computes and must move, over all devices.

    `flops` are operations and `useful` those of them that remat does not repeat.
    Bytes: `weights` read by each device that computes with them, `residuals` written
    and read between the passes, `updates` moved for gradients and optimizer.
    """

    flops: int
    useful: int
    weights: int
    residuals: int
    updates: int


class Arithmetic(NamedTuple):
    """The work of a step, and sizes from which the rest can be guessed.

    `trainable` and `frozen` are bytes of one copy of these parameters. Over the whole
    batch, `hidden` and `block` are `StepTraffic`'s `hidden` and `largest_block`.
    """

    work: Work
    trainable: int
    frozen: int
    hidden: int
    block: int

    def least_memory(
        self, mesh: Mapping[str, int], frozen_layout: str, accumulation: int
    ) -> "LeastMemory":
        """What any program for this needs on each device."""
        cut = mesh["fsdp"] * mesh["tensor"]
        copies = 4 + (accumulation > 1)  # parameter, gradient, two moments, mean
        frozen = self.frozen / (cut if frozen_layout == "sharded" else 1)
        state = copies * self.trainable / cut + frozen
        kept = self.work.residuals / 2 + self.block
        return LeastMemory(round(state), round(state + kept / math.prod(mesh.values())))


class LeastMemory(NamedTuple):
    """Bytes on each device: of parameters, gradients and optimizer, which do not depend
    on the batch; in `total` with what is kept between the passes and one block's
    backward pass."""

    state: int
    total: int


class Memory(NamedTuple):
    """Bytes on each device.

    `batch` has what layouts pad arguments with. `gradients` are a part of the
    program's temporaries that arithmetic knows, `activations` are the rest of them, and
    `program` is its code.
    """

    frozen: int
    trainable: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    program: int

    @property
    def peak(self) -> int:
        """Everything together."""
        return sum(self)


class Seconds(NamedTuple):
    """Of one step: computing at the stated efficiency, memory and network at their
    peak."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """What is predicted: memory is read while computing goes on, and sending is
        taken to wait for both, though compilers overlap some of it."""
        return max(self.compute, self.memory) + self.network


class Plan(NamedTuple):
    """What is known of a run on a machine before it begins.

    `memory` and `sent` are None when the compiler itself found that the program does
    not fit; `needed` is then its own number. `steps` counts batches of the recipe.
    """

    config: str
    machine: Topology
    mesh: dict[str, int]
    frozen_layout: str
    batch_size: int
    accumulation: int
    remat: str
    shapes: str
    needed: int
    memory: Memory | None
    sent: dict[str, collectives.Total] | None
    work: Work
    seconds: Seconds
    efficiency: float
    steps: int
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether each device has the memory."""
        return self.needed <= self.machine.chip.memory

    @property
    def rows(self) -> int:
        """Rows of a batch on each device that has some of its own."""
        return self.batch_size // (self.mesh["data"] * self.mesh["fsdp"])

    @property
    def days(self) -> float:
        """The whole recipe."""
        return self.steps * self.seconds.step / 86400

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to add to the command so that `train` runs this."""
        fields = {
            "data.batch_size": self.batch_size,
            "optim.accumulation": self.accumulation,
            "model.remat": self.remat,
            **{f"mesh.{axis}": size for axis, size in self.mesh.items()},
            "mesh.frozen": self.frozen_layout,
        }
        return tuple(f"--config.{name}={value}" for name, value in fields.items())


def make_plan(
    config: ConfigDict,
    program: Program,
    batch: Batch,
    machine: Topology,
    work: Work,
    *,
    shapes: str,
    steps: int,
    efficiency: float,
) -> Plan:
    """Compiles the train step of `program` for batches like `batch` and says what is
    known of it. `machine` is what the mesh of the program lies on.

    PlanError when the compiler refuses the program for another reason than its size.
    """
    started = time.monotonic()
    try:
        compiled, text = _compiled(program, batch, machine)
    except jax.errors.JaxRuntimeError as error:
        needed, memory, sent, network = _asked_for(error, machine), None, None, 0
    else:
        memory = measure(program, compiled)
        found = collectives.collectives(text)
        needed, sent = memory.peak, collectives.by_kind(found)
        network = collectives.total_sent(found)
    mesh = dict(program.mesh.shape)
    return Plan(
        config=config.name,
        machine=machine,
        mesh=mesh,
        frozen_layout=config.mesh.frozen,
        batch_size=config.data.batch_size,
        accumulation=config.optim.accumulation,
        remat=config.model.remat,
        shapes=shapes,
        needed=needed,
        memory=memory,
        sent=sent,
        work=work,
        seconds=predict(work, machine, mesh, network, efficiency),
        efficiency=efficiency,
        steps=steps,
        compile_seconds=time.monotonic() - started,
    )


def _compiled(program: Program, batch: Batch, machine: Topology) -> tuple[Any, str]:
    """The compiled train step and its text.

    A TPU compiler writes the text itself: `as_text` has jaxlib read the program, which
    fails on instructions that only a newer compiler knows.
    """
    options = machine.compiler_options
    if not isinstance(machine.chip, TPU):
        compiled = program.compile(batch, **options)
        return compiled, compiled.as_text() or ""
    with tempfile.TemporaryDirectory() as folder:
        options |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = program.compile(batch, **options)
        files = list(Path(folder).glob("*train_step*.after_codegen.txt"))
        if len(files) != 1:
            raise PlanError(
                f"the compiler for {machine.name} wrote {len(files)} texts of the "
                "train step, expected one: try the libtpu that jax[tpu] asks for"
            )
        return compiled, files[0].read_text()


def predict(
    work: Work, machine: Topology, mesh: dict[str, int], sent: int, efficiency: float
) -> Seconds:
    """What a step takes by arithmetic; `sent` are bytes that a device sends.

    Operations and residuals are shared out evenly. Each device reads the weights that
    its part of a layer multiplies with: all of them, but for the tensor axis. Updates
    are shared out with the parameters.
    """
    chip, devices = machine.chip, math.prod(mesh.values())
    moved = (
        work.weights / mesh["tensor"]
        + work.residuals / devices
        + work.updates / (mesh["fsdp"] * mesh["tensor"])
    )
    return Seconds(
        compute=work.flops / devices / (efficiency * chip.flops),
        memory=moved / chip.bandwidth,
        network=sent / machine.network,
    )


def needed_bytes(program: Program, batch: Batch, machine: Topology) -> int:
    """What each of the devices at hand needs for steps over batches like `batch`; the
    step is compiled. PlanError as in `make_plan`."""
    try:
        compiled = program.compile(batch)
    except jax.errors.JaxRuntimeError as error:
        return _asked_for(error, machine)
    return measure(program, compiled).peak


def measure(program: Program, compiled: Any) -> Memory:
    """The memory of a compiled train step, on each device."""
    stats = compiled.memory_analysis()
    frozen, trainable, optimizer = (
        bytes_per_device(tree)
        for tree in (program.frozen, program.state.params, program.state.opt_state)
    )
    # Outputs that take the place of arguments are there already.
    temporaries = stats.temp_size_in_bytes
    temporaries += stats.output_size_in_bytes - stats.alias_size_in_bytes
    gradients = min(trainable, temporaries)
    return Memory(
        frozen,
        trainable,
        optimizer,
        batch=stats.argument_size_in_bytes - frozen - trainable - optimizer,
        gradients=gradients,
        activations=temporaries - gradients,
        program=stats.generated_code_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


# XLA's word for what does not fit, and how its TPU compilers say how much it is.
FULL = "RESOURCE_EXHAUSTED"
ASKED = re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM|Used ([\d.]+)([KMG]) of")


def _asked_for(error: Exception, machine: Topology) -> int:
    """The bytes that a compiler says a program needs when it does not fit, or one more
    than there are where it names none; PlanError for another reason."""
    if FULL not in str(error):
        raise PlanError(
            f"the compiler for {machine.name} refused the train step: "
            f"{str(error).splitlines()[0]}\nThis is no lack of memory; --traceback "
            "shows all of it"
        ) from error
    found = ASKED.search(str(error))
    if not found:
        return machine.chip.memory + 1
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 1024 ** ("KMG".index(unit) + 1))
