"""CLIP's text encoder: embeds the answers in the align stage (spec: contrastive model).

Causal, absolute positions from 0, quick-GELU; the state at ⟨eos⟩ is the text's vector.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.fused_attention import visible
from vtscale_jax.layers import BlockConfig, EncoderBlock, LayerNorm, lay, stack_blocks


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. `max_length` is the length of its position table: 77 in
    CLIP, 512 in the paper, 1,024 in the authors' scripts."""

    vocab_size: int
    max_length: int
    projection_width: int
    blocks: BlockConfig


class TextTower(nn.Module):
    """Answer ids → one projected vector per answer, before outlier zeroing."""

    config: TextConfig

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "R L"],
        keep: Bool[Array, "R L"],
        eos: Int[Array, " R"],
    ) -> Float[Array, "R E"]:
        c, b = self.config, self.config.blocks
        normal = nn.initializers.normal
        table = self.param("embed", normal(0.02), (c.vocab_size, b.width))
        positions = self.param("pos_embed", normal(0.02), (c.max_length, b.width))
        x = jnp.asarray(table)[ids] + positions[: ids.shape[1]]
        x = x.astype(b.dtype)
        x = lay(x, "batch", None, None)
        self.sow("intermediates", "input", x)
        x, _ = stack_blocks(EncoderBlock, b, "blocks")(x, visible(b.attention, keep))
        x = LayerNorm(b.norm_eps, b.dtype, name="final_norm")(x)
        self.sow("intermediates", "normed", x)
        pooled = jnp.take_along_axis(x, eos[:, None, None], axis=1)[:, 0]
        return nn.Dense(
            c.projection_width,
            use_bias=False,
            dtype=b.dtype,
            kernel_init=normal(b.width**-0.5),
            name="projection",
        )(pooled)
