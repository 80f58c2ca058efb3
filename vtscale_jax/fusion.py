"""The fusion decoder: learnable queries read vision tokens and questions (paper §4.3).

A causal Llama decoder over one packed row per sample,

    [vision tokens | question 0 | queries | ⟨eos⟩ | question 1 | queries | ⟨eos⟩ | …]

so a vision token sees earlier vision tokens only, and a later question sees the earlier
ones with their queries; there is no bidirectional attention, despite the paper's words.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
class FusionConfig:
    """Sizes of the fusion decoder.

    `vocab_size` counts text tokens; `num_query_rows` learnable queries follow them in
    the id space (M − 1 of them: the last of M outputs is at ⟨eos⟩, whose embedding is
    an ordinary text token's). `frozen_id` is a token whose embedding receives no
    gradient: the authors pass the CLIP text config's pad id (1) as `padding_idx`, which
    is not the tokenizer's pad token (quirk 4; parity, because their checkpoints were
    trained so). A fresh table has zeros there, as theirs. None trains every row.
    """

    vocab_size: int
    num_query_rows: int
    blocks: BlockConfig
    frozen_id: int | None = None


class FusionDecoder(nn.Module):
    """Packed rows → states after the final norm.

    `embed` looks the text and query ids up; the caller lays the vision tokens over the
    result, raw: no projection and no scaling, hence fusion width = vision width.
    """

    config: FusionConfig

    def setup(self):
        c, b = self.config, self.config.blocks
        normal = nn.initializers.normal(b.init_std)

        def table(key: Array) -> Float[Array, "V D"]:
            rows = normal(key, (c.vocab_size, b.width))
            # As torch's padding_idx: the frozen row is zero, and stays so.
            return rows if c.frozen_id is None else rows.at[c.frozen_id].set(0.0)

        self.embed_table = self.param("embed", table)
        if c.num_query_rows:
            self.queries = self.param("queries", normal, (c.num_query_rows, b.width))
        self.blocks = stack_blocks(DecoderBlock, b, "blocks")
        self.norm = RMSNorm(b.norm_eps, b.dtype)

    def embed(self, ids: Int[Array, "B F"]) -> Float[Array, "B F D"]:
        """Embeddings of text ids (< vocab_size) and query ids (from vocab_size on)."""
        c = self.config
        table = self.embed_table
        if c.num_query_rows:
            table = jnp.concatenate([table, self.queries], axis=0)
        x = table[ids]
        if c.frozen_id is not None:
            x = jnp.where((ids == c.frozen_id)[..., None], jax.lax.stop_gradient(x), x)
        return x.astype(c.blocks.dtype)

    def __call__(
        self,
        x: Float[Array, "B F D"],
        keep: Bool[Array, "B F"],
        positions: Int[Array, "B F"] | None = None,
        caches: Caches | None = None,
    ) -> tuple[Float[Array, "B F D"], Caches | None]:
        """States after the final norm. With caches, x goes on at `positions` of rows
        that were begun before, as in `LLM`: a follow-up question costs its own tokens.
        """
        # Positions are places in the row: the first vision token is 0 (quirk 11: the
        # reference's option to start at 1 is off by default and not offered).
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        if caches is None:
            mask = visible(self.config.blocks.attention, keep)
        else:
            mask = sees(positions, places(caches), None)[:, None]
        self.sow("intermediates", "input", x)
        x, caches = self.blocks(x, mask, positions, caches)
        return self.norm(x), caches
