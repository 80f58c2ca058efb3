"""VisionZip: the most attended tokens, and the others merged into a few.

As published at commit 3151f6d (2025-02-27), per image. Of the 1 + P rows of the block
(row 0 is the class row), D *dominant* ones stay: the class row and the D - 1 patches
that the class query attends to most, summed over heads. Of the M = 1 + P - D others, c
at equal steps are *targets*; every one that is no target goes to the target whose key
is most like its own (keys averaged over heads, cosine). A contextual token is its
target **plus** the mean of what went to it. Out come the dominant rows in raster order,
class row first, then the contextual ones: n = D + c.

So all n tokens may be asked for up to 1 + P, and n = P is not the image as it is: the
class row is among them.

The published code needs n > c. For a smaller n, c is n - 1 here, so that only the class
row is dominant, as it is at n = c + 1: named by `VisionZipPlan.extension`.

Equal attention: the lower index comes first; equal similarities: the earlier target.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax.eval.baselines.reducers import (
    Plan,
    ReducerError,
    Seen,
    check_budget,
)


@dataclasses.dataclass(frozen=True)
class VisionZipPlan(Plan):
    """`dominant` rows stay, the class row among them; `contextual` targets stand at
    every `step`-th of the others."""

    dominant: int = 1
    contextual: int = 0
    step: int = 1


class Zipped(NamedTuple):
    """Row numbers, 0 (the class row) to P, each list ascending: the dominant rows, the
    targets, and the rows that are merged; `assigned` says for each of these the place
    of its target in `targets`."""

    kept: Int[Array, "d"]
    targets: Int[Array, "c"]
    sources: Int[Array, "s"]
    assigned: Int[Array, "s"]


@dataclasses.dataclass(frozen=True)
class VisionZip:
    """The reducer; `contextual` is c, how many of the n tokens are merged ones.

    The paper's settings of 64, 128 and 192 tokens have c = 10, 20 and 30; a study over
    n with c = 10 throughout is the default. Raises ReducerError for c < 1.
    """

    contextual: int = 10

    def __post_init__(self):
        if self.contextual < 1:
            raise ReducerError(
                f"reducer visionzip: contextual (c) is {self.contextual}, expected at "
                "least 1 merged token (published: 10 for 64 tokens)"
            )

    @property
    def name(self) -> str:
        """`visionzip`, with c where it is not the usual one."""
        return "visionzip" + (f"-c{self.contextual}" if self.contextual != 10 else "")

    def settle(self, num_patches: int, n: int) -> VisionZipPlan:
        """Any n from 1 to 1 + P. Raises ReducerError otherwise (the published code gets
        through at P + c, by copying one row c times)."""
        check_budget(self.name, num_patches, n, available=num_patches + 1)
        contextual = min(self.contextual, n - 1)
        dominant = n - contextual
        extension = ""
        if contextual < self.contextual:
            extension = (
                f"visionzip: {contextual} contextual tokens instead of "
                f"{self.contextual}, beside the class row"
            )
        return VisionZipPlan(
            reducer=self.name,
            num_patches=num_patches,
            n=n,
            extension=extension,
            dominant=dominant,
            contextual=contextual,
            step=(num_patches + 1 - dominant) // max(contextual, 1),
        )

    def apply(self, seen: Seen, plan: VisionZipPlan) -> Float[Array, "n D"]:
        """The dominant rows, class row first, then the contextual ones."""
        rows = zipped(seen.cls_attention, seen.keys, plan)
        hidden = seen.hidden.astype(jnp.float32)
        if not plan.contextual:
            return seen.hidden[rows.kept].astype(seen.features.dtype)
        member = rows.assigned == jnp.arange(plan.contextual)[:, None]  # [c, s]
        sums = jnp.einsum(
            "cs,sd->cd",
            member.astype(jnp.float32),
            hidden[rows.sources],
            precision="highest",
        )
        # A target to which nothing went stays what it is.
        sizes = jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1)
        contextual = hidden[rows.targets] + sums / sizes
        out = jnp.concatenate([hidden[rows.kept], contextual])
        return out.astype(seen.features.dtype)


def zipped(
    cls_attention: Float[Array, "H Q"],
    keys: Float[Array, "H Q C"],
    plan: VisionZipPlan,
) -> Zipped:
    """Which rows stay, and which go to which target.

    Similarities are float32, products in full precision.
    """
    attention = jnp.sum(cls_attention[:, 1:].astype(jnp.float32), axis=0)
    patches = 1 + jnp.argsort(-attention, stable=True)
    top = plan.dominant - 1
    kept = jnp.concatenate([jnp.zeros(1, patches.dtype), jnp.sort(patches[:top])])
    rest = jnp.sort(patches[top:])
    target_places = plan.step * np.arange(plan.contextual)
    source_places = np.setdiff1d(np.arange(len(rest)), target_places)
    targets, sources = rest[target_places], rest[source_places]
    if not plan.contextual:
        return Zipped(kept, targets, sources[:0], sources[:0])
    metric = jnp.mean(keys.astype(jnp.float32), axis=0)
    unit = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    similarity = jnp.einsum(
        "sk,ck->sc", unit[sources], unit[targets], precision="highest"
    )
    return Zipped(kept, targets, sources, jnp.argmax(similarity, axis=1))
