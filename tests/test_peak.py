"""What a device can do: stated, or measured on the spot."""

import jax
import pytest

from vtscale_jax import devices
from vtscale_jax.cost import peak


def test_data_sheets():
    a100 = peak.stated(devices.GPUS["a100-40gb"])
    assert (a100.flops, a100.bandwidth, a100.source) == (312e12, 1555e9, "data sheet")
    assert a100.cache == 40 * 2**20
    assert a100.describe() == (
        "312 TFLOP/s and 1,555 GB/s, by the data sheet of NVIDIA A100-SXM4-40GB"
    )


@pytest.mark.parametrize(
    "kind, name",
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v6e", "TPU v6e"),
    ],
)
def test_devices_by_the_names_jax_gives_them(kind, name):
    chip = devices.known(kind)
    assert chip is not None and chip.name == name


def test_a_device_that_is_not_in_the_table_is_measured():
    assert devices.known(jax.devices()[0].device_kind) is None
    found = peak.of_device("float32")
    assert found.source == "measured"
    assert 1e8 < found.flops < 1e15 and 1e8 < found.bandwidth < 1e13
    assert found.memory > 2**30
    flops, source = peak.product_peak("float32")
    assert 0.2 * found.flops < flops < 5 * found.flops
    assert peak.product_peak("float32") == (flops, source)  # once in a process
    assert "measured, products in float32" in source


def test_the_fastest_run_counts(monkeypatch):
    """Runs of 5, 2, 1 and 3 seconds by a clock that counts them; compiling is none."""
    seconds = iter([100.0, 5.0, 2.0, 1.0, 3.0, 9.0])
    now = 0.0

    def work(x):
        nonlocal now
        now += next(seconds)
        return x

    monkeypatch.setattr(peak.time, "perf_counter", lambda: now)
    monkeypatch.setattr(peak, "PROBE_S", 9.0)
    assert peak.fastest(work, 0.0) == 1.0
