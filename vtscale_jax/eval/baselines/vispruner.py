"""VisPruner: half of the tokens by attention, the rest by mutual difference.

As published at commit aefa01a (2025-07-01), per image. The class query's attention,
averaged over heads, ranks the P patches. The first ⌊n·r⌋ stay as *important*. The
others, in that ranking, are the pool, from which 8 at a time are removed: the pool is
dealt alternately into E (first, third, …) and O; each member of E is as redundant as
its largest cosine similarity with a member of O; the most redundant leave. The next
pool is what is left of E, most redundant first, then O. What remains of the pool after
the last round are the *diverse* tokens. Both kinds go to the LLM in raster order.

The published code fails where a pool of odd size has to lose something, and where a
pool of less than 16 is to lose more than E has. Here E then has the odd one, and a
round removes at most E: the same rule read on, named by `VisPrunerPlan.extension`. With
r = 0.5 and P = 576 that is so for every n < 12 but 5 and 9, and for every n that leaves
a remainder of 2 or 3 when divided by 4.

The published order of equal scores is unspecified; here the earlier one comes first
(of patches the one with the lower index, of E the one dealt earlier).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax.eval.baselines.reducers import (
    Plan,
    ReducerError,
    Seen,
    check_budget,
)

PER_ROUND = 8  # removed at a time, whatever P and n are


@dataclasses.dataclass(frozen=True)
class VisPrunerPlan(Plan):
    """`important` tokens are taken by attention; `rounds` are pairs of the size of the
    pool and how many leave it."""

    important: int = 0
    rounds: tuple[tuple[int, int], ...] = ()


class Pruned(NamedTuple):
    """Patch indices, 0 to P-1: all that are kept, ascending, and the important among
    them, most attended first."""

    kept: Int[Array, "n"]
    important: Int[Array, "k"]


@dataclasses.dataclass(frozen=True)
class VisPruner:
    """The reducer; `important` is r, the share of n that is taken by attention.

    r is 0.5 in the published code's defaults. Raises ReducerError unless 0 ≤ r ≤ 1.
    """

    important: float = 0.5

    def __post_init__(self):
        if not 0 <= self.important <= 1:
            raise ReducerError(
                f"reducer vispruner: important (r) is {self.important}, expected the "
                "share of tokens that attention chooses, 0 to 1 (published: 0.5)"
            )

    @property
    def name(self) -> str:
        """`vispruner`, with r where it is not the usual one."""
        return "vispruner" + (f"-r{self.important:g}" if self.important != 0.5 else "")

    def settle(self, num_patches: int, n: int) -> VisPrunerPlan:
        """Any n from 1 to P; n = P keeps every patch. Raises ReducerError otherwise
        (the published code returns all P for a larger n)."""
        check_budget(self.name, num_patches, n)
        important = int(n * self.important)
        diverse = n - important
        pool, rounds = num_patches - important, []
        while 0 < diverse < pool:
            removed = min(PER_ROUND, pool - diverse, -(-pool // 2))
            rounds.append((pool, removed))
            pool -= removed
        return VisPrunerPlan(
            reducer=self.name,
            num_patches=num_patches,
            n=n,
            extension=_extension(rounds, diverse),
            important=important,
            rounds=tuple(rounds),
        )

    def apply(self, seen: Seen, plan: VisPrunerPlan) -> Float[Array, "n D"]:
        """The features of the kept patches, in raster order."""
        return seen.features[prune(seen.features, seen.cls_attention, plan).kept]


def prune(
    features: Float[Array, "P D"],
    cls_attention: Float[Array, "H Q"],
    plan: VisPrunerPlan,
) -> Pruned:
    """Which patches stay. `cls_attention` has the class column first (Q = 1 + P).

    Means and similarities are float32, products in full precision: one exchanged pair
    changes every later round.
    """
    attention = jnp.mean(cls_attention[:, 1:].astype(jnp.float32), axis=0)
    ranking = jnp.argsort(-attention, stable=True)
    important = ranking[: plan.important]
    pool = ranking[plan.important :]
    if plan.rounds:
        pool = _rounds(features, pool, plan.rounds)
    diverse = pool[: plan.n - plan.important]
    return Pruned(jnp.sort(jnp.concatenate([important, diverse])), important)


def _rounds(
    features: Float[Array, "P D"],
    pool: Int[Array, "R"],
    rounds: tuple[tuple[int, int], ...],
) -> Int[Array, "R"]:
    """The pool after all rounds, at the front of an array of its first size.

    One program for all rounds instead of one for each size: what a round does not use
    stands behind, and is told apart by its place.
    """
    f = features.astype(jnp.float32)
    unit = f / jnp.linalg.norm(f, axis=-1, keepdims=True)  # no epsilon, as published
    similarity = jnp.einsum("ad,bd->ab", unit, unit, precision="highest")
    places = jnp.arange(len(pool))
    half = -(-len(pool) // 2)
    e_places, o_places = 2 * places[:half], 2 * places[: len(pool) - half] + 1

    def one(pool, sizes):
        size, removed = sizes
        e, o = pool[0::2], pool[1::2]
        pairs = jnp.where(o_places < size, similarity[e[:, None], o], -jnp.inf)
        redundancy = jnp.max(pairs, axis=1)
        # Unused places last, whatever their numbers; ties in the order dealt.
        order = jnp.lexsort((-redundancy, e_places >= size))
        stay = (size + 1) // 2 - removed  # of E; O follows it
        from_e = e[order[jnp.clip(places + removed, 0, half - 1)]]
        from_o = o[jnp.clip(places - stay, 0, len(o) - 1)]
        return jnp.where(places < stay, from_e, from_o), None

    left, _ = jax.lax.scan(one, pool, np.array(rounds, np.int32))
    return left


def _extension(rounds: list[tuple[int, int]], diverse: int) -> str:
    """What these rounds do that the published code does not."""
    added = set()
    for pool, _ in rounds:
        wanted = min(PER_ROUND, pool - diverse)
        # It indexes by a size of pool // 2 - wanted. A size of -1 reads "as many as
        # there are", which is none: by luck, all of E leaves there, as it does here.
        if wanted == pool // 2 + 1:
            continue
        if wanted > -(-pool // 2):
            added.add("a round removes at most the half that it compares")
        elif pool % 2:
            added.add("of an odd pool the last one is in the half that is compared")
    return f"vispruner: {'; '.join(sorted(added))}" if added else ""
