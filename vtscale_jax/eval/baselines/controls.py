"""The controls that every reducer of tokens should beat, and no reduction at all.

None of them looks at the class query: patches drawn at random, patches averaged over
cells of the image, and a smaller image.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax.eval.baselines.reducers import Plan, ReducerError, Seen, check_budget


@dataclasses.dataclass(frozen=True)
class NoReduction:
    """Every patch, as LLaVA-1.5 has it."""

    @property
    def name(self) -> str:
        """`none`."""
        return "none"

    def settle(self, num_patches: int, n: int) -> Plan:
        """n = P only. Raises ReducerError otherwise."""
        if n != num_patches:
            raise ReducerError(
                f"reducer none: n = {n} tokens were asked for, expected {num_patches}, "
                "all patches of the image; choose that n or another reducer"
            )
        return Plan(self.name, num_patches, n)

    def apply(self, seen: Seen, plan: Plan) -> Float[Array, "n D"]:
        """The features as they are."""
        return seen.features


@dataclasses.dataclass(frozen=True)
class Random:
    """n patches drawn without replacement, in raster order.

    They are drawn by `seen.key`, which belongs to the image. The patches of a smaller n
    are among those of a larger one.
    """

    @property
    def name(self) -> str:
        """`random`."""
        return "random"

    def settle(self, num_patches: int, n: int) -> Plan:
        """Any n from 1 to P. Raises ReducerError otherwise."""
        check_budget(self.name, num_patches, n)
        return Plan(self.name, num_patches, n)

    def apply(self, seen: Seen, plan: Plan) -> Float[Array, "n D"]:
        """The features of the drawn patches."""
        return seen.features[drawn(seen.key, plan)]


def drawn(key: jax.Array, plan: Plan) -> Int[Array, "n"]:
    """The patches that `Random` keeps, ascending; `key` is two uint32."""
    # The generator is named: a session's default could be another.
    typed = jax.random.wrap_key_data(key, impl="threefry2x32")
    order = jax.random.permutation(typed, plan.num_patches)
    return jnp.sort(order[: plan.n])


@dataclasses.dataclass(frozen=True)
class Pool:
    """The mean over each of n rectangles that cover the image once.

    See `cells` for the rectangles. The vectors are in raster order of the rectangles.
    """

    @property
    def name(self) -> str:
        """`pool`."""
        return "pool"

    def settle(self, num_patches: int, n: int) -> Plan:
        """Any n from 1 to P on a square grid. Raises ReducerError otherwise."""
        check_budget(self.name, num_patches, n)
        _grid(self.name, num_patches)
        return Plan(self.name, num_patches, n)

    def apply(self, seen: Seen, plan: Plan) -> Float[Array, "n D"]:
        """The means, computed in float32."""
        cell = cells(_grid(self.name, plan.num_patches), plan.n)
        sums = jax.ops.segment_sum(
            seen.features.astype(jnp.float32), cell, num_segments=plan.n
        )
        sizes = np.bincount(cell, minlength=plan.n)[:, None]
        return (sums / sizes).astype(seen.features.dtype)


def cells(grid: int, n: int) -> Int[np.ndarray, "P"]:
    """Which of n rectangles each patch of a `grid` × `grid` image belongs to.

    The image is cut into round(√n) bands, the n rectangles are dealt to the bands as
    evenly as possible (the upper ones get one more), a band is as high as its share of
    rectangles, and cut into them from left to right; cuts are rounded to whole patches.
    Where n is a square whose root divides `grid`, this is ordinary average pooling.
    Four patches a side, n = 3:

        0 0 1 1
        0 0 1 1
        0 0 1 1
        2 2 2 2
    """
    bands = round(math.sqrt(n))
    shares = [len(part) for part in np.array_split(np.arange(n), bands)]
    edges = _cuts(grid, np.cumsum([0, *shares]) / n)
    cell, first = np.empty((grid, grid), np.int32), 0
    for share, top, bottom in zip(shares, edges, edges[1:], strict=False):
        columns = _cuts(grid, np.arange(share + 1) / share)
        cell[top:bottom] = first + np.repeat(np.arange(share), np.diff(columns))
        first += share
    return cell.ravel()


def _cuts(grid: int, shares: np.ndarray) -> np.ndarray:
    """Shares of a side as whole patches, halves upwards."""
    return np.floor(grid * shares + 0.5).astype(int)


@dataclasses.dataclass(frozen=True)
class Downsample:
    """A smaller image: the tower sees √n × √n patches, so n is a square number.

    The image is made smaller before the tower, and the tower's position table goes with
    it (`resize_positions`).
    """

    @property
    def name(self) -> str:
        """`downsample`."""
        return "downsample"

    def settle(self, num_patches: int, n: int) -> Plan:
        """Square n from 1 to P. Raises ReducerError otherwise."""
        check_budget(self.name, num_patches, n)
        side = math.isqrt(n)
        if side * side != n:
            near = [side * side]
            if (side + 1) ** 2 <= num_patches:
                near.append((side + 1) ** 2)
            raise ReducerError(
                f"reducer downsample: n = {n} tokens were asked for, expected a square "
                "number, since a smaller image is a square of patches; the nearest is "
                f"n = {' or '.join(str(m) for m in near)}"
            )
        whole = _grid(self.name, num_patches)
        return Plan(self.name, num_patches, n, grid=side if side < whole else None)

    def apply(self, seen: Seen, plan: Plan) -> Float[Array, "n D"]:
        """The features of the smaller image as they are. Raises ReducerError when the
        tower saw another number of patches than `plan.grid` says."""
        if len(seen.features) != plan.n:
            raise ReducerError(
                f"reducer downsample: the tower gave {len(seen.features)} patches, "
                f"expected {plan.n}: give it an image of {plan.grid} × {plan.grid} "
                "patches (plan.grid)"
            )
        return seen.features


def resize_positions(table: Float[Array, "Q D"], grid: int) -> Float[Array, "R D"]:
    """A tower's position table for an image of `grid` × `grid` patches, R = 1 + grid².

    The class row stays; the others, a square, are interpolated (Keys' cubic, a = -0.5)
    at the centres of the new patches, in float32.
    """
    old = _grid("downsample", len(table) - 1)
    if grid == old:
        return table
    square = table[1:].astype(jnp.float32).reshape(old, old, -1)
    # Not averaged over the larger patch: a position is where its centre is.
    new = jax.image.resize(
        square, (grid, grid, square.shape[-1]), "cubic", antialias=False
    )
    rows = new.reshape(grid * grid, -1).astype(table.dtype)
    return jnp.concatenate([table[:1], rows])


def _grid(name: str, num_patches: int) -> int:
    """Patches along a side of a square image."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ReducerError(
            f"reducer {name}: the tower has {num_patches} patches, expected a square "
            "number: this reducer needs to know where in the image a patch is"
        )
    return side
