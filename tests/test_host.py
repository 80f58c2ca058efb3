"""What the host process sets before the first computation."""

import os
import subprocess
import sys

import pytest
from jaxlib.xla_client import generate_pjrt_gpu_plugin_options

from vtscale_jax.devices import GPU_MEMORY_SHARE
from vtscale_jax.parallel.host import HUGE_PAGES, take_gpu_memory

VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    return monkeypatch


def test_jax_takes_the_share_of_a_gpu_that_plans_count_on(environment):
    take_gpu_memory()
    assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == GPU_MEMORY_SHARE


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.filterwarnings("ignore:.*MEM_FRACTION:DeprecationWarning")
def test_a_share_that_the_user_names_stays(environment, name):
    environment.setenv(name, "0.5")
    take_gpu_memory()
    assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system():
    """In a process of its own: with freed memory kept a block of 256 MiB stays, after
    `give_back_large_blocks` it does not, and with huge pages asked for none is kept."""
    code = """
import ctypes
from vtscale_jax.parallel import host
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def left():
    block = libc.malloc(2**28)
    ctypes.memset(block, 1, 2**28)
    libc.free(block)
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 > 2**27
print(host.keep_freed_memory(), left(), host.give_back_large_blocks(), end=" ")
libc.malloc_trim(0)
print(left())
"""
    words = [sys.executable, "-c", code]
    plain = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for tunables, expected in (("", "True True True False"), (HUGE_PAGES, "False")):
        said = subprocess.run(
            words,
            env=plain | {"GLIBC_TUNABLES": tunables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert said.startswith(expected), said
