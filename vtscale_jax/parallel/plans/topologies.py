"""Machines that are not here: what their devices can do, and devices to compile for.

    a100-40gb:8  a100-80gb:8  h100:8     GPUs of one host, 1 to 8
    v4-16  v5e-16  v5p-16  v6e-16        TPU slices, named as the cloud names them

`Topology.devices` are those of a machine of this kind, made by the same compilers that
run on it, so that `jax.jit(…).lower(…).compile()` is the real thing; they hold no
arrays. They need a compiler plugin each (extras `plan-gpu`, `plan-tpu`), no hardware.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from vtscale_jax.devices import GPU, GPUS, TPU, TPUS, Chip, known
from vtscale_jax.machine import device_memory
from vtscale_jax.parallel.plans.quiet import stderr_held_back

# Autotuning runs kernels, for which there is no GPU, and without it XLA's own (Triton)
# matrix products are given tile sizes that some shapes do not allow: plan with cuBLAS.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


# Shares of a device's memory (`Topology.room`).
ROOM, CPU_ROOM = 0.95, 0.5


class TopologyError(ValueError):
    """A machine that is not known, or whose compiler is not installed."""


# What `--topology all` plans for.
ALL = (
    *("a100-40gb:8", "a100-80gb:8", "h100:8"),
    *("v4-16", "v5e-16", "v5p-16", "v6e-16"),
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """`num_devices` of one chip; `shape` is how those of a TPU slice lie."""

    name: str
    chip: Chip
    num_devices: int
    shape: tuple[int, ...] = ()

    @property
    def network(self) -> float:
        """Bytes per second that a device can send.

        On a TPU slice to the neighbours that the worst placed chip has, one along each
        axis: slices this small do not close into rings, and a collective waits for its
        slowest member.
        """
        neighbours = sum(length > 1 for length in self.shape) if self.shape else 1
        return neighbours * self.chip.link

    @property
    def room(self) -> int:
        """Bytes of a device that a choice made for the user may fill: some are lost
        between blocks, and a CPU's memory is not for training alone."""
        share = CPU_ROOM if self.chip.name == "cpu" else ROOM
        return int(share * self.chip.memory)

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Options for XLA without which it would look for the hardware."""
        return dict(GPU_OPTIONS) if isinstance(self.chip, GPU) else {}

    def devices(self) -> list[Any]:
        """Devices to compile for; TopologyError when the compiler is not installed."""
        check_compiler(self)
        if isinstance(self.chip, TPU):
            name = f"{self.chip.family}:{'x'.join(map(str, self.shape))}"
            chips = {"chip_config_name": "megacore"} if self.chip.megacore else {}
            options = {"platform": "tpu", **chips}
        else:
            assert isinstance(self.chip, GPU)
            name = f"1x1x{self.num_devices}"
            target = target_config(self.chip)
            options = {"platform": "cuda", "topology": name, "target_config": target}
        with stderr_held_back():
            found = topologies.get_topology_desc(topology_name=name, **options)
        assert len(found.devices) == self.num_devices
        return found.devices


def here() -> Topology:
    """The devices of this run. Of a chip that is not in the tables only the memory is
    known, and no time can be predicted."""
    devices = jax.devices()
    kind = str(devices[0].device_kind)
    memory = device_memory(jax.local_devices()[0], jax.local_device_count())
    chip = known(kind) or Chip(kind, memory, math.nan, math.nan, math.nan)
    chip = dataclasses.replace(chip, memory=memory)
    return Topology(f"here: {len(devices)} × {kind}", chip, len(devices))


def topology(name: str) -> Topology:
    """The machine of that name; TopologyError lists the names there are."""
    gpu = re.fullmatch(r"([a-z0-9-]+):(\d+)", name)
    if gpu and gpu[1] in GPUS and 1 <= int(gpu[2]) <= 8:
        return Topology(name, GPUS[gpu[1]], int(gpu[2]))
    tpu = re.fullmatch(r"(v\d[a-z]?)-(\d+)", name)
    shapes = dict(TPUS[tpu[1]].slices) if tpu and tpu[1] in TPUS else {}
    if tpu and int(tpu[2]) in shapes:
        shape = shapes[int(tpu[2])]
        return Topology(name, TPUS[tpu[1]], math.prod(shape), shape)
    slices = [
        f"{kind}-{size}" for kind, chip in TPUS.items() for size, _ in chip.slices
    ]
    raise TopologyError(
        f"topology {name!r} is unknown; expected a host of GPUs, one of "
        f"{', '.join(GPUS)} with a colon and their number (1 to 8, as a100-40gb:8), "
        f"or a TPU slice: {', '.join(slices)}"
    )


def check_compiler(machine: Topology) -> None:
    """TopologyError, naming the command that mends it, when nothing here can compile
    for the machine."""
    if isinstance(machine.chip, TPU):
        extra, needs = "plan-tpu", {"libtpu": ("libtpu",)}
        if os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")):
            return
    else:
        extra = "plan-gpu"
        needs = {
            "jax-cuda12-plugin": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
            "nvidia-cuda-nvcc-cu12": ("nvidia.cuda_nvcc", "nvidia.cu13"),
        }
    absent = [name for name, modules in needs.items() if not any(map(_found, modules))]
    if absent:
        raise TopologyError(
            f"compiling for {machine.name} needs {' and '.join(absent)}, which "
            f"{'is' if len(absent) == 1 else 'are'} not installed: pip install "
            f"'vtscale_jax[{extra}]' (from a checkout: pip install -e '.[{extra}]'); "
            "no such hardware is needed"
        )


def _found(module: str) -> bool:
    parent = module.rpartition(".")[0]
    if parent and importlib.util.find_spec(parent) is None:
        return False
    return importlib.util.find_spec(module) is not None


def target_config(gpu: GPU) -> str:
    """XLA's `GpuTargetConfigProto` as text: the GPU as its compiler must know it.

    The versions are those of CUDA and cuDNN that this JAX is built for; with cuDNN 9
    named, attention and convolutions are still XLA's own where cuDNN is not installed.
    """
    major, minor = gpu.capability
    fields = "\n".join(f"  {name}: {value}" for name, value in gpu.config)
    return (
        f"gpu_device_info {{\n{fields}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 patch: 0 }\n"
        "runtime_version { major: 12 minor: 9 patch: 0 }\n"
        f'device_description_str: "{gpu.name}"\n'
    )
