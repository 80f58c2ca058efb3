"""What a token reducer is: between the tower's last block but one and the projector.

A reducer turns the P patches of one image into exactly n vectors for the LLM. It does
so in two steps: `settle` decides every size from P and n alone, or refuses; `apply`
computes with those sizes, so that it can be compiled and mapped over images:

    plan = reducer.settle(num_patches, n)  # once; ReducerError when it cannot
    vectors = jax.vmap(lambda seen: reducer.apply(seen, plan))(seen)  # [B, n, D]

The projector acts on each vector alone, so it comes after the reducer.
"""

import dataclasses
import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32


class ReducerError(ValueError):
    """A number of tokens that a reducer cannot give, or an option it does not have."""


class Seen(NamedTuple):
    """What a reducer may read of one image, all of the block whose output the LLM sees
    (in LLaVA-1.5 the last but one).

    `features` is its output without the class row, in raster order; `hidden` the same
    with the class row first. `cls_attention` is the softmax row of the class query for
    every head, over all keys, the class column first; `keys` the key projection with
    its bias, unscaled, the class row first. `key` is `image_key` of the image.
    """

    features: Float[Array, "P D"]
    hidden: Float[Array, "Q D"]  # Q = 1 + P
    cls_attention: Float[Array, "H Q"]
    keys: Float[Array, "H Q C"]
    key: UInt32[Array, "2"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every size of one reduction: `num_patches` of the tower to `n` vectors.

    `extension` is empty where this is the published rule, and otherwise names what was
    added for a size at which the published code stops with an error. `grid` is the
    number of patches along one side of the image that the tower is to see when that is
    not the whole image's (image downsampling): the tower's image has `grid` times the
    patch size of pixels a side, and its position table is resized to it
    (`controls.resize_positions`).
    """

    reducer: str
    num_patches: int
    n: int
    extension: str = ""
    grid: int | None = None


@runtime_checkable
class Reducer(Protocol):
    """A rule by which n vectors are made of P patches."""

    @property
    def name(self) -> str:
        """What results call it, its options included."""
        ...

    def settle(self, num_patches: int, n: int) -> Plan:
        """The sizes for n vectors out of `num_patches`. Raises ReducerError when there
        are not so many, for n < 1, and where the rule cannot."""
        ...

    def apply(self, seen: Seen, plan: Any) -> Float[Array, "n D"]:
        """The n vectors of one image, in the dtype of `seen.features`. Pure; `plan` is
        one that this reducer settled, and says all shapes."""
        ...


def check_budget(
    name: str, num_patches: int, n: int, *, available: int | None = None
) -> None:
    """Raises ReducerError unless 1 ≤ n ≤ `available` (by default the patches)."""
    available = num_patches if available is None else available
    if not 1 <= n <= available:
        raise ReducerError(
            f"reducer {name}: n = {n} tokens were asked for, expected 1 to "
            f"{available}, which is what an image of {num_patches} patches has; choose "
            "n in that range"
        )


def image_key(
    image: UInt8[np.ndarray, "height width 3"], *, seed: int = 0
) -> UInt32[np.ndarray, "2"]:
    """A seed for drawing at random that belongs to the image: the first eight bytes of
    SHA-256 over `seed`, the size and the pixels (as read, before any resizing).

    It depends neither on the batch nor on the order in which images come.
    """
    said = f"{seed} {image.shape[0]} {image.shape[1]} ".encode()
    digest = hashlib.sha256(said + np.ascontiguousarray(image).tobytes()).digest()
    return np.frombuffer(digest[:8], dtype="<u4").astype(np.uint32)
