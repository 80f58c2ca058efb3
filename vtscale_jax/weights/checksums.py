"""A checksum of arrays wherever they lie, computed on the devices that hold them."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num, UInt32

from vtscale_jax import paths

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SEEDS = (0x9E3779B1, 0x85EBCA77)


def checksum(tree: Any) -> str:
    """64 bits a leaf, joined with paths, dtypes and shapes (hex).

    Every element's bits are mixed with its place and summed modulo 2³², twice: the sum
    is the same in whatever order and on whatever mesh it is taken, so nothing needs to
    be brought together. It finds damage; it is no proof against an adversary.

    On several processes all of them call this.
    """
    flat = paths.flatten(tree)
    sums = jax.device_get(_sums(flat))
    digest = hashlib.sha256()
    for path, leaf in sorted(flat.items()):
        values = sums[path].tolist()
        digest.update(f"{path}\0{leaf.dtype}\0{leaf.shape}\0{values}\0".encode())
    return digest.hexdigest()


@jax.jit
def _sums(flat: dict[str, Array]) -> dict[str, UInt32[Array, "2"]]:
    return {path: _sum(leaf) for path, leaf in flat.items()}


@jax.jit  # traced once for all leaves of one shape
def _sum(leaf: Num[Array, "*shape"]) -> UInt32[Array, "2"]:
    words = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
    words = words.astype(jnp.uint32)
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        step = jnp.uint32(stride % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * step
        stride *= leaf.shape[axis]
    mixed = [_mix(words + _mix(place ^ jnp.uint32(seed))) for seed in _SEEDS]
    return jnp.stack([jnp.sum(one, dtype=jnp.uint32) for one in mixed])


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """The finaliser of MurmurHash3: each bit of the result depends on every bit."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
