"""What the device at hand can do at most: operations and bytes per second.

    of_device("bfloat16")    from its data sheet where that is known, measured otherwise

A measured peak is the best of several products and streams, timed on the spot: what the
machine has been seen to do, so a program that is said to do more has not been timed
well. Measure with the machine otherwise idle; another busy program lowers it.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax import machine
from vtscale_jax.devices import Chip, known

SHEET, MEASURED = "data sheet", "measured"
SMALLEST, LARGEST = 512, 8192  # sides of the matrices that are multiplied
STREAM_BYTES = 2**28
LONG_S = 0.02  # one product that takes longer than this is large enough
PROBE_S = 0.15  # for each kind of work
BATCH_S = 0.02  # of runs that are waited for together


class Peak(NamedTuple):
    """The limits of one device.

    `flops` are operations per second of matrix products in the dtype that was asked
    for, `bandwidth` bytes per second between memory and cores, `cache` the bytes of the
    last cache before the memory (0: not known), `memory` its bytes. `source` says where
    the first two are from: "data sheet" or "measured".
    """

    name: str
    flops: float
    bandwidth: float
    cache: int
    memory: int
    source: str

    def describe(self) -> str:
        """One line: 312 TFLOP/s and 1,555 GB/s by the data sheet of …"""
        rates = f"{_rate(self.flops)}FLOP/s and {self.bandwidth / 1e9:,.0f} GB/s"
        by = "measured on" if self.source == MEASURED else "by the data sheet of"
        return f"{rates}, {by} {self.name}"


def stated(chip: Chip) -> Peak:
    """The peak of a device by its data sheet: dense bfloat16 products."""
    return Peak(
        chip.name, chip.flops, chip.bandwidth, chip.cache, int(chip.memory), SHEET
    )


def product_peak(dtype: str) -> tuple[float, str]:
    """Operations per second of the first device by `of_device`'s rule, and in words
    where the number is from."""
    chip = known(str(jax.local_devices()[0].device_kind))
    if chip is not None and dtype == "bfloat16":
        return chip.flops, f"{_rate(chip.flops)}FLOP/s ({SHEET}, {chip.name})"
    speed = _product_speed_once(dtype)
    return speed, f"{_rate(speed)}FLOP/s ({MEASURED}, products in {dtype})"


@functools.cache  # of a process: runs that follow each other are told one number
def _product_speed_once(dtype: str) -> float:
    return product_speed(dtype)


def of_device(dtype: str) -> Peak:
    """The peak of the first device of this process.

    Stated where the device is in `devices` and `dtype` is bfloat16, for which data
    sheets give it; measured otherwise, which takes about a second.
    """
    chip = known(str(jax.local_devices()[0].device_kind))
    if chip is not None and dtype == "bfloat16":
        return stated(chip)
    return measured(dtype)


def measured(dtype: str) -> Peak:
    """The peak of the first device, timed on the spot."""
    device = jax.local_devices()[0]
    chip = known(str(device.device_kind))
    return Peak(
        str(device.device_kind) if device.platform != "cpu" else processor(),
        product_speed(dtype),
        stream_speed(),
        chip.cache if chip else _cache_bytes() if device.platform == "cpu" else 0,
        machine.device_memory(device),
        MEASURED,
    )


def product_speed(dtype: str) -> float:
    """Operations per second of products of square matrices, the best over their sizes:
    from 512 on, doubled until one product takes a fiftieth of a second."""
    product = jax.jit(lambda x, y: x @ y)
    # Random, since a chip draws less power for equal numbers and runs faster; and
    # scaled, so that products of products stay finite.
    tile = np.random.default_rng(0).standard_normal((SMALLEST, SMALLEST), np.float32)
    best, side = 0.0, SMALLEST
    while side <= LARGEST:
        times = side // SMALLEST
        y = jnp.tile(jnp.asarray(tile * (SMALLEST**0.5 / side), dtype), (times, times))
        x = y
        seconds = fastest(lambda x, y=y: product(x, y), x)
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONG_S:
            break
        side *= 2
    return best


def stream_speed() -> float:
    """Bytes per second that are read, or read and written, by the best of three simple
    programs over 256 MiB: a copy, a sum, and a product of a matrix and a vector."""
    numbers = STREAM_BYTES // 4
    x = jnp.ones((numbers // 1024, 1024), jnp.float32)
    vector = jnp.ones(1024, jnp.float32)
    programs: tuple[tuple[Callable[[Any], Any], int], ...] = (
        (jax.jit(lambda x: x + 1), 2 * STREAM_BYTES),
        (jax.jit(lambda x: jnp.sum(x)), STREAM_BYTES),
        (jax.jit(lambda x: x @ vector), STREAM_BYTES),
    )
    rates = []
    for program, moved in programs:
        seconds = fastest(lambda _, program=program: program(x), x)
        rates.append(moved / seconds)
    return max(rates)


def fastest(program: Callable[[Any], Any], x: Any) -> float:
    """Seconds of one run of `program`, the best of what there is time for. What it
    returns is its next argument.

    After one run to compile it and one to see how long it takes, so many runs are
    waited for together that waiting itself weighs nothing.
    """
    x = jax.block_until_ready(program(x))
    started = time.perf_counter()
    x = jax.block_until_ready(program(x))
    best = time.perf_counter() - started
    together = max(1, math.ceil(BATCH_S / best)) if best > 0 else 1
    begun = time.perf_counter()
    while time.perf_counter() - begun < PROBE_S:
        started = time.perf_counter()
        for _ in range(together):
            x = program(x)
        x = jax.block_until_ready(x)
        best = min(best, (time.perf_counter() - started) / together)
    return best


def processor() -> str:
    """The processor and how many of its cores there are."""
    return f"{machine.processor()}, {machine.num_cores()} cores"


def _cache_bytes() -> int:
    """All levels' largest cache of the first core, where Linux says so; else 0."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]])
    return max(sizes, default=0)


def _rate(number: float) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:,.0f} {prefix}"
    return f"{number / 1e6:,.1f} M"
