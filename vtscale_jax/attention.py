"""Attention as a function of arrays: who sees whom, softmax(q·k)·v, the KV cache."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def causal_mask(
    keep: Bool[Array, "B S"],
    window: int | None = None,
    segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 S S"]:
    """Who may look at whom in a right-padded causal row (True = may).

    For keep = [1, 1, 1, 0] (rows are queries, columns keys):

        1 0 0 0                                         1 0 0 0
        1 1 0 0                         with window 2:  1 1 0 0
        1 1 1 0                                         0 1 1 0
        1 1 1 0    <- a padding query; nothing reads its output

    With `segments` a token sees those of its own segment only.
    """
    places = jnp.arange(keep.shape[-1])
    mask = sees(places, places, window)[None, None] & keep[:, None, None, :]
    if segments is not None:
        mask &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return mask


def sees(
    query: Int[Array, "*B S"], key: Int[Array, " T"], window: int | None
) -> Bool[Array, "*B S T"]:
    """Whether a token at place `query` sees the one at place `key`."""
    seen = key <= query[..., None]
    return seen if window is None else seen & (key > query[..., None] - window)


# Long causal rows are computed in so many pieces of queries, each with the keys up to
# its own last place: 5/8 of the scores, those that every mask of such rows leaves out
# being most of the rest. More pieces save little more.
PIECES = 4
TILE = 128  # places: a piece is a whole number of what accelerators multiply at once
LONG = 256  # places of the shortest row for which that is worth it


def attend(
    q: Float[Array, "B S H C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    mask: Bool[Array, "#B 1 S T"] | None,
    *,
    causal: bool = False,
) -> Float[Array, "B S H C"]:
    """softmax(q·k / √C)·v with H/K query heads sharing each key head.

    Scores and softmax are float32. A query whose keys are all masked gets their mean:
    finite, as in the reference, and read by nothing. `causal` promises that the mask
    hides from query i every key behind place i, so that most of these pairs need not be
    computed; the result is the same (for a query without keys, the mean of fewer).
    """
    S = q.shape[1]
    if not causal or mask is None or S < LONG:
        return _softmax_average(q, k, v, mask)
    size = -(-S // (PIECES * TILE)) * TILE
    pieces = [
        _softmax_average(
            q[:, start : start + size],
            k[:, :, : start + size],
            v[:, :, : start + size],
            mask[:, :, start : start + size, : start + size],
        )
        for start in range(0, S, size)
    ]
    return jnp.concatenate(pieces, axis=1)


def _softmax_average(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    B, S, H, C = q.shape
    K = k.shape[1]
    G = H // K
    # Batch and head axes in front and the G query heads of a key head in one axis with
    # the queries: only the small operands are transposed, never the scores.
    q = q.reshape(B, S, K, G, C).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, C)
    scores = jnp.einsum("BKQC,BKTC->BKQT", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K * G, S, -1) * C**-0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("BKQT,BKTC->BKQC", weights.reshape(B, K, G * S, -1), v)
    return y.reshape(B, K, G, S, C).transpose(0, 3, 1, 2, 4).reshape(B, S, H, C)


class KVCache(NamedTuple):
    """Keys and values of past places; of one layer, or stacked with the layers in
    front."""

    k: Float[Array, "*N B K T C"]
    v: Float[Array, "*N B K T C"]

    @property
    def length(self) -> int:
        """Places there are."""
        return self.k.shape[-2]

    def write(
        self,
        k: Float[Array, "B K S C"],
        v: Float[Array, "B K S C"],
        positions: Int[Array, "B S"],
    ) -> "KVCache":
        """The cache with row b's new keys at `positions[b]` (one layer); those at
        `length` or beyond are dropped."""
        rows = jnp.arange(k.shape[0])[:, None]

        def put(cache: Array, new: Array) -> Array:
            new = new.transpose(0, 2, 1, 3).astype(cache.dtype)  # [B, S, K, C]
            return cache.at[rows, :, positions].set(new, mode="drop")

        return KVCache(put(self.k, k), put(self.v, v))
