"""Where arrays live: batches are split over all devices, the rest is copied."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(batch_size: int) -> Mesh:
    """A mesh with the one axis `data` over all devices.

    ValueError when the batch cannot be split evenly over them.
    """
    devices = jax.devices()
    if batch_size % len(devices):
        raise ValueError(
            f"data.batch_size is {batch_size}, expected a multiple of the "
            f"{len(devices)} devices: change it, or show fewer devices"
        )
    return Mesh(np.array(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with a copy of every leaf on each device."""
    return jax.device_put(tree, replicated(mesh))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """The tree with every leaf split along its first axis.

    A leaf whose first axis the devices do not divide (a bucket of packed crops) is
    copied to each of them.
    """

    def place(leaf: np.ndarray) -> jax.Array:
        even = leaf.shape[0] % mesh.size == 0
        spec = PartitionSpec("data") if even else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)
