"""Machines by name, and the compilers that stand for them where they are installed."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtscale_jax.devices import GIB, GPU, GPU_MEMORY_SHARE, GPUS, TPU, TPUS
from vtscale_jax.parallel.plans import topologies
from vtscale_jax.parallel.plans.topologies import (
    ALL,
    TopologyError,
    check_compiler,
    target_config,
    topology,
)


def installed(name: str) -> bool:
    try:
        check_compiler(topology(name))
    except TopologyError:
        return False
    return True


@pytest.mark.parametrize(
    "name, devices",
    [
        *(("a100-40gb:8", 8), ("a100-80gb:1", 1), ("h100:2", 2)),
        # v4 and v5p count cores, two to a chip; v5e and v6e count chips.
        *(("v4-16", 8), ("v5p-16", 8), ("v5e-16", 16), ("v6e-16", 16)),
        *(("v4-8", 4), ("v5e-8", 8)),
    ],
)
def test_names(name, devices):
    machine = topology(name)
    assert machine.name == name
    assert machine.num_devices == devices
    if isinstance(machine.chip, TPU):
        assert math.prod(machine.shape) == devices


def test_all_are_known():
    assert len({topology(name).chip.name for name in ALL}) == len(ALL)


@pytest.mark.parametrize(
    "name", ["a100:8", "a100-40gb", "a100-40gb:9", "h100:0", "v5e-17", "v3-8", "v5e:4"]
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(TopologyError, match="a100-40gb, a100-80gb, h100.*v5e-16") as e:
        topology(name)
    assert repr(name) in str(e.value)


def test_network():
    # A corner chip has a neighbour along each axis that is longer than one.
    assert topology("v5e-16").network == 2 * TPUS["v5e"].link
    assert topology("v4-16").network == 3 * TPUS["v4"].link
    assert topology("v4-8").network == 2 * TPUS["v4"].link
    # A switch gives a GPU all its links to any other.
    assert topology("h100:2").network == topology("h100:8").network == 450e9


@pytest.mark.parametrize("chip", [*GPUS.values(), *TPUS.values()], ids=lambda c: c.name)
def test_numbers_are_in_range(chip):
    nominal = {"A100-SXM4-40GB": 40, "A100-SXM4-80GB": 80, "H100 80GB HBM3": 80}
    nominal |= {
        "NVIDIA H200": 140,
        "TPU v4": 32,
        "TPU v5e": 16,
        "TPU v5p": 96,
        "TPU v6e": 32,
    }
    size = next(size for name, size in nominal.items() if chip.name.endswith(name))
    assert 0.9 * size < chip.memory / GIB < size
    # Operations for each byte: the ratio that no chip of these years leaves.
    assert 100 < chip.flops / chip.bandwidth < 600
    assert chip.link < chip.bandwidth


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_target_config(gpu):
    text = target_config(gpu)
    fields = dict(re.findall(r"^  (\w+): ([\d.]+)$", text, re.M))
    assert {name: float(value) for name, value in fields.items()} == dict(gpu.config)
    assert f'device_description_str: "{gpu.name}"' in text
    major, minor = gpu.capability
    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
    assert text.count("{") == text.count("}")
    # The compiler's memory and ours are of one card.
    total = dict(gpu.config)["device_memory_size"]
    assert gpu.memory == int(GPU_MEMORY_SHARE * total)


@pytest.mark.parametrize("name, extra", [("h100:8", "gpu"), ("v6e-16", "tpu")])
def test_a_compiler_that_is_not_installed(name, extra, monkeypatch):
    monkeypatch.setattr(topologies, "_found", lambda module: False)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(TopologyError, match=rf"vtscale_jax\[plan-{extra}\]") as error:
        topology(name).devices()
    assert f"pip install -e '.[plan-{extra}]'" in str(error.value)
    monkeypatch.setattr(topologies, "_found", lambda module: True)
    check_compiler(topology(name))


def test_half_a_gpu_compiler_names_the_other_half(monkeypatch):
    monkeypatch.setattr(topologies, "_found", lambda module: "plugins" in module)
    with pytest.raises(TopologyError, match="needs nvidia-cuda-nvcc-cu12, which is"):
        check_compiler(topology("h100:8"))


def test_found_looks_for_parents_first():
    assert topologies._found("vtscale_jax.parallel")
    assert not topologies._found("vtscale_jax.no_such_file")
    assert not topologies._found("no_such_package.file")


def compiled(
    machine: topologies.Topology, rows: int
) -> tuple[list, jax.stages.Compiled]:
    """A scanned, rematerialised, sharded network for a machine."""
    devices = machine.devices()
    mesh = Mesh(np.array(devices), ("data",))

    def step(weights, x):
        def loss(weights):
            @jax.checkpoint
            def layer(x, weight):
                return jnp.tanh(x @ weight.astype(x.dtype)), None

            return jnp.mean(jax.lax.scan(layer, x, weights)[0].astype(jnp.float32))

        return weights - jax.grad(loss)(weights)

    def shape(*lengths: int, dtype, axis: int) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*[None] * axis, "data")
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=sharding)

    count = len(devices)
    weights = shape(4, 2048, 2048, dtype=jnp.float32, axis=1)
    x = shape(rows * count, 1024, 2048, dtype=jnp.bfloat16, axis=0)
    lowered = jax.jit(step, donate_argnums=0).lower(weights, x)
    return devices, lowered.compile(machine.compiler_options or None)


@pytest.mark.parametrize("name", ["a100-40gb:8", "h100:2", "v5e-16", "v4-16"])
def test_compiles_for_what_is_not_here(name):
    if not installed(name):
        pytest.skip(f"the compiler for {name} is an extra (plan-gpu, plan-tpu)")
    machine = topology(name)
    rows = 64  # more than a TPU keeps in its vector memory, which counts as nothing
    devices, program = compiled(machine, rows)
    assert len(devices) == machine.num_devices
    if isinstance(machine.chip, GPU):
        assert devices[0].device_kind == machine.chip.name
    else:
        assert devices[0].platform == "tpu"
    stats = program.memory_analysis()
    weights = 4 * 2048 * 2048 * 4 // machine.num_devices
    x = rows * 1024 * 2048 * 2
    assert stats.argument_size_in_bytes == weights + x
    assert stats.alias_size_in_bytes == weights
    # At least what is saved for the backward pass: four inputs of layers.
    assert stats.temp_size_in_bytes + stats.generated_code_size_in_bytes > 3 * x


@pytest.mark.parametrize("name", ["v4-16", "v5e-16", "v5p-16", "v6e-16"])
def test_tpu_memory_is_what_the_compiler_says(name):
    if not installed(name):
        pytest.skip(f"the compiler for {name} is an extra (plan-tpu)")
    machine = topology(name)
    mesh = Mesh(np.array(machine.devices()), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    huge = jax.ShapeDtypeStruct((200, 2**28), jnp.float32, sharding=whole)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x * 2).lower(huge).compile()
    found = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    # Versions of libtpu differ in the last digit.
    assert found and abs(machine.chip.memory / GIB - float(found[1])) < 0.02


def test_topologies_are_values():
    assert topology("v5e-16") == topology("v5e-16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology("v5e-16").name = "other"  # pyright: ignore[reportAttributeAccessIssue]
