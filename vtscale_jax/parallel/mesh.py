"""The mesh of a run, and how batches and trees come onto it and back.

Three axes, whose sizes multiply to the number of devices:

    data    copies of the parameters, each with its share of the batch
    fsdp    the batch is shared out as over `data`, and so are parameters, gradients
            and optimizer state, which are put together where a layer needs them
    tensor  heads, MLP channels and vocabulary are shared out; the batch is not

`rules` says which parameter lies how.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from vtscale_jax.types import Shards

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


class MeshError(ValueError):
    """A mesh that the devices, the model or the batch cannot be laid out on."""


def make_mesh(sizes: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config.mesh`: a size for each of `AXES`, one of which may be −1 and
    then takes what the others leave. `devices` (default: all there are) may also be
    those of an absent machine.

    MeshError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    asked = ", ".join(f"mesh.{axis} {sizes[axis]}" for axis in AXES)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise MeshError(
            f"{asked}: expected positive sizes, of which one may be -1 (whatever the "
            "others leave)"
        )
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // known)
    if math.prod(shape) != len(devices):
        raise MeshError(
            f"{asked} on {len(devices)} devices: the sizes must multiply to the number "
            "of devices; set one of them to -1, or show other devices "
            "(--config.mesh.data=...)"
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def described(mesh: Mesh) -> dict[str, Any]:
    """The devices and how they are laid out, as manifests have it."""
    return {
        "kind": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "count": jax.device_count(),
        "mesh": dict(mesh.shape),
    }


def num_shards(mesh: Mesh) -> int:
    """How many parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, field: str) -> None:
    """MeshError, naming `field`, when the batch cannot be shared out evenly."""
    shards = num_shards(mesh)
    if batch_size % shards:
        sizes = " × ".join(f"mesh.{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
        near = shards * math.ceil(batch_size / shards)
        raise MeshError(
            f"{field} is {batch_size}, expected a multiple of {shards} ({sizes}): set "
            f"--config.{field}={near}, or a larger mesh.tensor"
        )


def own_shards(mesh: Mesh, process: int | None = None) -> Shards:
    """The parts of a batch that lie on the devices of a process (default: this one),
    which it must feed."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    process = jax.process_index() if process is None else process
    return shards_of(owners.reshape(num_shards(mesh), -1), process)


def shards_of(owners: Int[np.ndarray, "parts devices"], process: int) -> Shards:
    """The parts of a batch that lie with `process`; `owners[p]` are the processes whose
    devices hold part p.

    On a pod a process's parts need not be neighbours. Processes may share parts (a
    tensor axis wider than a host); then they share all of theirs, or MeshError.
    """
    owned: dict[int, tuple[int, ...]] = {}
    for index in np.unique(owners).tolist():
        found = np.flatnonzero((owners == index).any(axis=1))
        owned[index] = tuple(found.tolist())
    sets = set(owned.values())
    if sum(map(len, sets)) != len(owners) or len({len(s) for s in sets}) != 1:
        raise MeshError(
            f"mesh: the processes hold the parts {sorted(sets)} of the batch, expected "
            "equal numbers of parts, shared wholly or not at all; choose mesh.tensor "
            "so that it divides, or is a multiple of, the devices of a host"
        )
    return Shards(owned[process], len(owners))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is cut into the parts of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place(tree: Any, shardings: Any) -> Any:
    """The tree on its shardings (a tree like it, or one for all leaves). Every process
    holds all of it; each device receives its part."""
    if all(lies.is_fully_addressable for lies in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)  # all leaves in one call

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(
            whole.shape, sharding, lambda index: whole[index]
        )

    return jax.tree.map(put, tree, jax.tree.broadcast(shardings, tree))


def feed(batch: Any, mesh: Mesh, shards: Shards) -> Any:
    """A global batch from what each process holds of it: the parts `shards.own` of
    every leaf, one after another along its first axis."""
    local = {shard: number for number, shard in enumerate(shards.own)}
    lies = split(mesh)

    def put(leaf: np.ndarray) -> jax.Array:
        rows = leaf.shape[0] // len(shards.own)
        parts = leaf.reshape(len(shards.own), rows, *leaf.shape[1:])
        shape = (rows * shards.total, *leaf.shape[1:])
        return jax.make_array_from_callback(
            shape, lies, lambda index: parts[local[_shard(index, rows)]]
        )

    return jax.tree.map(put, batch)


def _shard(index: tuple[slice, ...] | None, rows: int) -> int:
    """The part of a batch that an index stands for; uncut, the index has no start."""
    first = index[0].start if index else None
    return (first or 0) // rows


def spread(batch: Any, mesh: Mesh) -> Any:
    """A batch that every process holds as a whole, cut along the first axis of each
    leaf. A leaf that cannot be cut evenly is copied to every device."""

    def lies(leaf: np.ndarray) -> NamedSharding:
        even = leaf.shape[0] % num_shards(mesh) == 0
        return split(mesh) if even else replicated(mesh)

    return place(batch, jax.tree.map(lies, batch))


def to_host(tree: Any) -> Any:
    """The tree as numpy arrays, whole on every process; all processes call this."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)
