"""What the host process needs before the first computation."""

import ctypes
import os
import resource
import sys

from vtscale_jax.devices import GPU_MEMORY_SHARE

_GPU_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_M_MMAP_THRESHOLD = -3
# Has glibc (2.35 or later) ask for pages of 2 MiB; read when a process starts.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
LARGE = 2**30  # bytes of a step's temporaries that the heap is no good place for


def keep_freed_memory(*, in_huge_pages: bool = False) -> bool:
    """Makes malloc keep freed memory instead of returning it to the system.

    XLA's CPU backend allocates and frees its temporaries in every step; glibc returns
    large ones at once, so that each step pays for its page faults anew
    (`benchmarks/allocator.py` measures what keeping them is worth). For CPU training on
    Linux with glibc; elsewhere it does nothing and returns False, and so it does where
    the environment asks for huge pages, of which few are faulted in (unless
    `in_huge_pages`). Call it at the start of a program, before threads exist.
    """
    if not _has_glibc() or (has_huge_pages() and not in_huge_pages):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_MAX, 0),  # no separate mapping for large blocks
        (_M_TRIM_THRESHOLD, 2**31 - 1),  # never shrink the heap
        (_M_TOP_PAD, 64 * 2**20),  # grow it in steps of 64 MiB
        (_M_ARENA_MAX, 1),  # one heap: a thread's own arena cannot grow beyond 64 MiB
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_large_blocks() -> bool:
    """After `keep_freed_memory`: blocks of 32 MiB or more are returned again.

    For steps with temporaries of more than `LARGE`. A heap that keeps so large a block
    grows to two or three times of it: a small allocation in its place, or a step that
    begins before the last one's block is free, and the next does not fit.
    """
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 2**16), (_M_MMAP_THRESHOLD, 2**25))
    return all(mallopt(name, value) == 1 for name, value in settings)


def has_huge_pages() -> bool:
    """Whether the environment asks malloc for huge pages."""
    return HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", "")


def _has_glibc() -> bool:
    return sys.platform.startswith("linux") and "glibc" in _libc_version()


def take_gpu_memory() -> None:
    """Lets JAX use `GPU_MEMORY_SHARE` of each GPU, as plans count on, unless the
    environment names another share. For programs that have the GPU to themselves; call
    it before JAX has any device."""
    if not any(os.environ.get(name) for name in _GPU_VARIABLES):
        os.environ[_GPU_VARIABLES[0]] = str(GPU_MEMORY_SHARE)


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far (Linux and macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _libc_version() -> str:
    names = getattr(os, "confstr_names", {})
    return (
        os.confstr("CS_GNU_LIBC_VERSION") or ""
        if "CS_GNU_LIBC_VERSION" in names
        else ""
    )
