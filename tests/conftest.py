"""What every test shares: eight virtual CPU devices, and where the goldens lie.

The device count is read once, when JAX starts, so it is set here before anything
imports JAX. Child processes inherit it.
"""

import gc
import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from type_checks import check_arrays_only
from xla_flags import xla_flags

NUM_DEVICES = 8

jaxtyping.jaxtyped = check_arrays_only(jaxtyping.jaxtyped)

if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before tests/conftest.py, so the virtual devices cannot be "
        "set; remove the plugin or option that imports it."
    )
os.environ["JAX_PLATFORMS"] = "cpu"
# No test needs the network, and one that tries must fail everywhere alike.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(NUM_DEVICES)}".strip()
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs in pytest's cache, so that a second run is faster."""
    # `-p no:cacheprovider` leaves no cache; then nothing is kept.
    cache = getattr(config, "cache", None)
    if cache is None:
        return
    import jax  # only now, with the devices set

    # JAX writes entries without a lock: one folder per worker, and none for child
    # processes, which some tests kill.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    folder = cache.mkdir(f"jax-{_processor()}-{worker}")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each core that has 5 GB of memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // (5 * 10**9)))


def pytest_collection_finish() -> None:
    """What stays until the end is left out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Long tests are asked for by name."""
    about = "also run the tests that take minutes, of kinds that others show in short"
    parser.addoption("--long", action="store_true", help=about)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Skip long tests unless asked for, and parity tests where torch is not installed;
    the summary says why. Files with slow tests come first, so that no worker is left
    alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip("takes minutes: pytest --long"))
    if importlib.util.find_spec("torch") is not None:
        return
    for item in items:
        if item.get_closest_marker("parity"):
            item.add_marker(pytest.mark.skip("needs torch: pip install -e '.[parity]'"))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file() -> Iterator[None]:
    """Compiled programs are let go after each file; those of all files take 10 GB."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the small golden files that travel with the tests."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """Root of the repository."""
    return Path(__file__).parents[1]


def _processor() -> str:
    # Compiled CPU programs hold instructions of the processor they were made on, so
    # another processor gets another folder.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = {line for line in lines if line.startswith(("flags", "model name"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(flags)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
