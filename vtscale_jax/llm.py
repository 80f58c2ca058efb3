"""The language model: a Llama decoder over embeddings, with an optional KV cache.

It is frozen in every stage of the paper; gradients only pass through it.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.layers import (
    BlockConfig,
    DecoderBlock,
    KVCache,
    RMSNorm,
    causal_mask,
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
    """States after the final norm, and the cache when one was given."""

    hidden: Float[Array, "B S D"]
    cache: KVCache | None


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
        cache: KVCache | None = None,
    ) -> LLMOutput:
        """Runs the decoder over embeddings x.

        Without a cache, positions default to places in the (right-padded) row. With
        one, `positions` says where in the cache each row's tokens go, and a token sees
        every cached place up to its own; `keep` is then not needed, because a row's
        places are written without gaps.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        if cache is None:
            mask = causal_mask(keep)
        else:
            places = jnp.arange(cache.k.shape[2])
            mask = (places <= positions[:, :, None])[:, None]
        self.sow("intermediates", "input", x)
        x, cache = self.blocks(x, mask, positions, cache)
        return LLMOutput(self.norm(x), cache)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        """Next-token logits in float32."""
        head = self.table.T if self.config.tie_embeddings else self.head
        return jnp.einsum(
            "...D,DW->...W",
            hidden,
            head.astype(self.config.blocks.dtype),
            preferred_element_type=jnp.float32,
        )


def empty_cache(config: LLMConfig, batch_size: int, length: int) -> KVCache:
    """A zeroed cache of `length` places for all layers."""
    b = config.blocks
    shape = (b.num_layers, batch_size, length, b.num_kv_heads, b.head_dim)
    return KVCache(jnp.zeros(shape, b.dtype), jnp.zeros(shape, b.dtype))
