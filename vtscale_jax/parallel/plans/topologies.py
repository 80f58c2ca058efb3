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

from vtscale_jax.parallel.host import GPU_MEMORY_SHARE
from vtscale_jax.parallel.plans.quiet import stderr_held_back

GIB = 2**30

# Autotuning runs kernels, for which there is no GPU, and without it XLA's own (Triton)
# matrix products are given tile sizes that some shapes do not allow: plan with cuBLAS.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


class TopologyError(ValueError):
    """A machine that is not known, or whose compiler is not installed."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    `memory` is what a program may use, in bytes; `flops` the peak of dense bfloat16
    products per second, `bandwidth` that of its memory in bytes per second. `link` is
    what it can send to one neighbour in bytes per second, and on GPUs, which a switch
    joins, to all of them together.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float


@dataclasses.dataclass(frozen=True)
class GPU(Chip):
    """A GPU; `config` are fields of XLA's `GpuDeviceInfoProto`, as the driver reports
    them."""

    config: tuple[tuple[str, int | float], ...] = ()
    capability: tuple[int, int] = (8, 0)


@dataclasses.dataclass(frozen=True)
class TPU(Chip):
    """A TPU chip (v4: both cores as one device); `slices` are sizes, as names count
    them, and shapes in chips."""

    family: str = ""
    slices: tuple[tuple[int, tuple[int, ...]], ...] = ()
    megacore: bool = False


def _gpu_config(**values: int | float) -> tuple[tuple[str, int | float], ...]:
    same = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    return tuple({**same, **values}.items())


def _a100(memory: int, bandwidth: float) -> tuple[tuple[str, int | float], ...]:
    return _gpu_config(
        shared_memory_per_core=167936,
        shared_memory_per_block_optin=166912,
        core_count=108,
        fpus_per_core=64,
        l2_cache_size=41943040,
        clock_rate_ghz=1.41,
        memory_bandwidth=int(bandwidth),
        device_memory_size=memory,
    )


# Memory: what the driver reports to XLA for these cards (`device_memory_size` of the
# target configs that OpenXLA ships), times the share that training takes. Peaks,
# bandwidths and NVLink (one direction, all links): NVIDIA's data sheets of the SXM
# modules.
GPUS = {
    "a100-40gb": GPU(
        "NVIDIA A100-SXM4-40GB",
        memory=int(GPU_MEMORY_SHARE * 42331013120),
        flops=312e12,
        bandwidth=1555e9,
        link=300e9,
        config=_a100(42331013120, 1555e9),
    ),
    "a100-80gb": GPU(
        "NVIDIA A100-SXM4-80GB",
        memory=int(GPU_MEMORY_SHARE * 85100068864),
        flops=312e12,
        bandwidth=2039e9,
        link=300e9,
        config=_a100(85100068864, 2039e9),
    ),
    "h100": GPU(
        "NVIDIA H100 80GB HBM3",
        memory=int(GPU_MEMORY_SHARE * 84942979072),
        flops=989e12,
        bandwidth=3352e9,
        link=450e9,
        config=_gpu_config(
            shared_memory_per_core=233472,
            shared_memory_per_block_optin=232448,
            core_count=132,
            fpus_per_core=128,
            l2_cache_size=52428800,
            clock_rate_ghz=1.98,
            memory_bandwidth=int(3352e9),
            device_memory_size=84942979072,
        ),
        capability=(9, 0),
    ),
}

_CUBES = (  # v4 and v5p count cores, two to a chip
    (8, (2, 2, 1)),
    (16, (2, 2, 2)),
    (32, (2, 2, 4)),
    (64, (2, 4, 4)),
)
_SQUARES = ((4, (2, 2)), (8, (2, 4)), (16, (4, 4)), (32, (4, 8)), (64, (8, 8)))

# Memory: "available HBM" of libtpu's own message when a program does not fit, which it
# says at compile time. Peaks and bandwidths: Google's page of each TPU; a link is an
# equal share (4 or 6 links) of one direction of the bandwidth between chips.
TPUS = {
    "v4": TPU(
        "TPU v4",
        memory=int(30.75 * GIB),
        flops=275e12,
        bandwidth=1200e9,
        link=50e9,
        family="v4",
        slices=_CUBES,
        megacore=True,
    ),
    "v5p": TPU(
        "TPU v5p",
        memory=int(95.73 * GIB),
        flops=459e12,
        bandwidth=2765e9,
        link=100e9,
        family="v5p",
        slices=_CUBES,
    ),
    "v5e": TPU(
        "TPU v5e",
        memory=int(15.75 * GIB),
        flops=197e12,
        bandwidth=819e9,
        link=50e9,
        family="v5e",
        slices=_SQUARES,
    ),
    "v6e": TPU(
        "TPU v6e",
        memory=int(31.24 * GIB),
        flops=918e12,
        bandwidth=1638e9,
        link=100e9,
        family="v6e",
        slices=_SQUARES,
    ),
}

# What JAX calls some of them.
_KINDS = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}

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
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        memory = int(stats["bytes_limit"])
    else:  # a CPU: its share of the machine's
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = pages // jax.local_device_count()
    known = {chip.name: chip for chip in (*GPUS.values(), *TPUS.values())}
    chip = known.get(_KINDS.get(kind, kind))
    if chip is None:
        chip = Chip(kind, memory, math.nan, math.nan, math.nan)
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
