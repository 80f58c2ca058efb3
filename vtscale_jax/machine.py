"""What this machine says of itself: its processor, its memory, a device's share."""

import os
import platform
from pathlib import Path
from typing import Any


def processor_lines(*fields: str) -> list[str]:
    """The lines of /proc/cpuinfo that begin with one of `fields`, each once and in
    order; none where there is no such file (it is Linux's)."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return sorted({line for line in lines if line.startswith(fields)})


def processor() -> str:
    """The processor's name, or its architecture where nobody says it."""
    names = [line.partition(":")[2].strip() for line in processor_lines("model name")]
    return next(filter(None, names), platform.machine())


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """The memory of the machine, or of the container that this process runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # Linux's control groups, version 2
    said = limit.read_text().strip() if limit.is_file() else "max"
    return machine if said == "max" else min(machine, int(said))


def device_memory(device: Any, sharing: int = 1) -> int:
    """Bytes that a JAX device may use: as it says, or an equal share of the machine's
    where it does not (a CPU; `sharing` devices have it together)."""
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", memory_bytes() // sharing))


def device_peak(device: Any) -> int | None:
    """The most bytes that a JAX device has held at once, where it tells (GPU, TPU)."""
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else int(peak)
