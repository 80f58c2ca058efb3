"""The language model: a Llama decoder over embeddings, with an optional KV cache.

It is frozen in every stage of the paper; gradients only pass through it.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from vtscale_jax import paths
from vtscale_jax.attention import sees
from vtscale_jax.fused_attention import visible
from vtscale_jax.layers import (
    BlockConfig,
    Caches,
    DecoderBlock,
    RMSNorm,
    places,
    stack_blocks,
)


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """Sizes of the language model; `tie_embeddings` reuses the table as output head.

    `frozen_id` is a token whose looked-up embedding receives no gradient, as PyTorch's
    `padding_idx` does; it matters only where the language model trains.
    """

    vocab_size: int
    blocks: BlockConfig
    tie_embeddings: bool = False
    frozen_id: int | None = None


class LLMOutput(NamedTuple):
    """States after the final norm, and the caches when some were given."""

    hidden: Float[Array, "B S D"]
    caches: Caches | None


class LLM(nn.Module):
    """`embed` ids, run the decoder with `__call__`, take `logits` where they are needed
    (the vocabulary is wide: never at every position)."""

    config: LLMConfig

    def setup(self):
        c, b = self.config, self.config.blocks
        normal = nn.initializers.normal(b.init_std)
        self.table = self.param("embed", normal, (c.vocab_size, b.width))
        self.blocks = stack_blocks(DecoderBlock, b, "blocks")
        self.norm = RMSNorm(b.norm_eps, b.dtype)
        if not c.tie_embeddings:
            self.head = self.param("head", normal, (b.width, c.vocab_size))

    def embed(self, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Rows of the embedding table in the compute dtype."""
        x, c = self.table[ids], self.config
        if c.frozen_id is not None:
            x = jnp.where((ids == c.frozen_id)[..., None], jax.lax.stop_gradient(x), x)
        return x.astype(c.blocks.dtype)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        keep: Bool[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        caches: Caches | None = None,
        segments: Int[Array, "B S"] | None = None,
    ) -> LLMOutput:
        """Runs the decoder over embeddings x.

        Without caches, positions default to places in the (right-padded) row. With
        them, `positions` says where in its cache each row's tokens go, and a token sees
        every cached place up to its own; `keep` is then not needed, because a row's
        places are written without gaps. Rows of several samples have `segments` and
        positions (`types.Packing`), and no caches.
        """
        blocks = self.config.blocks
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        if caches is None:
            mask = visible(blocks.attention, keep, blocks.window, segments)
        else:
            mask = sees(positions, places(caches), blocks.window)[:, None]
        self.sow("intermediates", "input", x)
        x, caches = self.blocks(x, mask, positions, caches)
        return LLMOutput(self.norm(x), caches)

    def read(
        self,
        ids: Int[Array, "B S"],
        keep: Bool[Array, "B S"],
        start: Int[Array, " B"],
        caches: Caches,
        vectors: Float[Array, "B K D"] | None = None,
        slots: Int[Array, "B K"] | None = None,
    ) -> tuple[Float[Array, "B W"], Caches]:
        """Logits after the last kept token of each row, and the caches with the row's
        tokens at places `start[b]` and on.

        `keep` is True on the left of each row; the rest is padding, and a row of
        padding leaves its cache as it is (its logits mean nothing). `vectors` replace
        the embeddings at `slots` (see `splice`). Prompts, follow-up turns and single
        new tokens are all read in this way.
        """
        x = self.embed(ids)
        if vectors is not None:
            assert slots is not None, "vectors need slots"
            x = splice(x, vectors, slots)
        positions = start[:, None] + jnp.arange(ids.shape[1])
        # Padding is written beyond the end, that is nowhere.
        positions = jnp.where(keep, positions, places(caches).size)
        out = self(x, keep, positions, caches)
        assert out.caches is not None
        last = jnp.maximum(jnp.sum(keep, axis=1) - 1, 0)
        hidden = jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)[:, 0]
        return self.logits(hidden), out.caches

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        """Next-token logits in float32."""
        head = self.table.T if self.config.tie_embeddings else self.head
        return jnp.einsum(
            "...D,DW->...W",
            hidden,
            head.astype(self.config.blocks.dtype),
            preferred_element_type=jnp.float32,
        )


def splice(
    embeddings: Float[Array, "J S E"],
    vectors: Float[Array, "B K E"],
    slots: Int[Array, "B K"],
    sample_row: Int[Array, " B"] | None = None,
) -> Float[Array, "J S E"]:
    """Writes vector k of sample b at place `slots[b, k]` of row `sample_row[b]` (None:
    b); places beyond S are dropped.

    The reference scatters through one boolean mask over the flattened batch, where a
    wrong count in one row shifts every later row. Positions cannot.
    """
    rows = jnp.arange(len(slots)) if sample_row is None else sample_row
    rows = rows[:, None]
    return embeddings.at[rows, slots].set(vectors.astype(embeddings.dtype), mode="drop")


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an `LLM` for `stacked=False`: `blocks` as one tree a layer.

    `blocks` is taken out of `params`, and a stacked tensor is let go as soon as its
    layers are copied: where nobody else holds it, no model is ever there twice.
    """
    flat = paths.flatten(params.pop("blocks"))
    layers: dict[str, dict[str, Any]] = {}
    for path in list(flat):
        leaf = flat.pop(path)
        for i in range(leaf.shape[0]):
            layers.setdefault(f"layer{i}", {})[path] = leaf[i]
        jax.block_until_ready([layer[path] for layer in layers.values()])
        del leaf
    blocks = {name: paths.unflatten(layer) for name, layer in layers.items()}
    return {**params, "blocks": blocks}


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an `LLM` for `int8=True`: every kernel of the stacked blocks as
    `kernel_int8` and `kernel_scale`.

    A scale is the largest magnitude among the weights of one output, over 127 (round to
    nearest, symmetric). Embeddings, head and norms stay as they are. `blocks` is taken
    out of `params` tensor by tensor, as in `unstack`.
    """
    flat = paths.flatten(params.pop("blocks"))
    small: dict[str, Any] = {}
    for path in list(flat):
        leaf = flat.pop(path)
        if path.endswith("/kernel"):
            whole, scale = jax.block_until_ready(_whole_numbers(leaf))
            small[f"{path}_int8"], small[f"{path}_scale"] = whole, scale
        else:
            small[path] = leaf
        del leaf
    return {**params, "blocks": paths.unflatten(small)}


def without_int8(config: LLMConfig) -> LLMConfig:
    """The config of the parameters that `quantize` takes."""
    blocks = dataclasses.replace(config.blocks, int8=False)
    return dataclasses.replace(config, blocks=blocks)


def held_in(path: str, dtype: str) -> str:
    """The dtype of a frozen parameter where floats are held in `dtype`: whole numbers
    stay so, and their scales float32."""
    if path.endswith("/kernel_int8"):
        return "int8"
    return "float32" if path.endswith("/kernel_scale") else dtype


@jax.jit
def _whole_numbers(
    kernels: Float[Array, "N D E"],
) -> tuple[Int8[Array, "N D E"], Float[Array, "N E"]]:
    """Whole numbers and scales of each layer's kernel, one layer after another."""

    def one(kernel: Array) -> tuple[Array, Array]:
        wide = kernel.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=0) / 127
        # A column of zeros has no scale of its own.
        whole = jnp.round(wide / jnp.where(scale > 0, scale, 1))
        return whole.astype(jnp.int8), scale

    return jax.lax.map(one, kernels)
