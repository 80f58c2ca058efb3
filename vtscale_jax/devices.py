"""What accelerators can do: peaks, memory and bandwidth, from their data sheets.

Plans, utilisation (MFU) and the audit of timings all read this table; a device that is
not in it (a CPU, say) is measured (`cost.peak`).
"""

import dataclasses

GIB = 2**30
# Of a GPU's memory, what training takes (`parallel.host` has JAX take it); what is left
# must hold the CUDA context and NCCL's buffers, 1 to 2 GiB. JAX by itself takes three
# quarters.
GPU_MEMORY_SHARE = 0.95


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

    @property
    def cache(self) -> int:
        """Bytes of the last cache before the memory."""
        return 0


@dataclasses.dataclass(frozen=True)
class GPU(Chip):
    """A GPU; `config` are fields of XLA's `GpuDeviceInfoProto`, as the driver reports
    them."""

    config: tuple[tuple[str, int | float], ...] = ()
    capability: tuple[int, int] = (8, 0)

    @property
    def cache(self) -> int:
        """Bytes of the level-2 cache."""
        return int(dict(self.config).get("l2_cache_size", 0))


@dataclasses.dataclass(frozen=True)
class TPU(Chip):
    """A TPU chip (v4: both cores as one device); `slices` are sizes, as names count
    them, and shapes in chips."""

    family: str = ""
    slices: tuple[tuple[int, tuple[int, ...]], ...] = ()
    megacore: bool = False


# Fields of `GpuDeviceInfoProto`: what all these GPUs have alike, and each family.
_ALL = {
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
_AMPERE = _ALL | {
    "shared_memory_per_core": 167936,
    "shared_memory_per_block_optin": 166912,
    "core_count": 108,
    "fpus_per_core": 64,
    "l2_cache_size": 41943040,
    "clock_rate_ghz": 1.41,
}
_HOPPER = _ALL | {
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
}


def _gpu(
    name: str,
    family: dict[str, int | float],
    capability: tuple[int, int],
    memory: int,
    **rates: float,
) -> GPU:
    own = {"memory_bandwidth": int(rates["bandwidth"]), "device_memory_size": memory}
    return GPU(
        name,
        memory=int(GPU_MEMORY_SHARE * memory),
        **rates,
        config=tuple((family | own).items()),
        capability=capability,
    )


def _a100(name: str, memory: int, bandwidth: float) -> GPU:
    rates = {"flops": 312e12, "bandwidth": bandwidth, "link": 300e9}
    return _gpu(name, _AMPERE, (8, 0), memory, **rates)


def _hopper(name: str, memory: int, bandwidth: float) -> GPU:
    rates = {"flops": 989e12, "bandwidth": bandwidth, "link": 450e9}
    return _gpu(name, _HOPPER, (9, 0), memory, **rates)


# Memory: what the driver reports to XLA for these cards (`device_memory_size` of the
# target configs that OpenXLA ships; H200: the total that frameworks print, 139.81 GiB),
# times the share that training takes. Peaks,
# bandwidths and NVLink (one direction, all links): NVIDIA's data sheets of the SXM
# modules.
GPUS = {
    "a100-40gb": _a100("NVIDIA A100-SXM4-40GB", 42331013120, 1555e9),
    "a100-80gb": _a100("NVIDIA A100-SXM4-80GB", 85100068864, 2039e9),
    "h100": _hopper("NVIDIA H100 80GB HBM3", 84942979072, 3352e9),
    "h200": _hopper("NVIDIA H200", 150120431616, 4800e9),
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
KINDS = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}


def known(device_kind: str) -> Chip | None:
    """The chip that JAX calls by this kind; None when it is not in the tables."""
    by_name = {chip.name: chip for chip in (*GPUS.values(), *TPUS.values())}
    return by_name.get(KINDS.get(device_kind, device_kind))
