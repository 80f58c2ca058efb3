"""How much memory this process holds, and how far it grows, as Linux counts it."""

import ctypes
from pathlib import Path


def resident(field: str = "VmRSS") -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def settle() -> int:
    """Gives freed memory back and forgets the peak so far; bytes that are still held.

    glibc only: another malloc keeps what it likes, and growth comes out too small.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    return resident()
