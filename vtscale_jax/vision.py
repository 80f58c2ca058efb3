"""The vision tower: CLIP ViT, local merge, newline token (paper §4.2; spec: vision).

One crop of G×G patches becomes (G/2)² + 1 tokens: 576 → 145 at full size.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

from vtscale_jax.layers import BlockConfig, EncoderBlock, LayerNorm, lay, stack_blocks
from vtscale_jax.types import CLIP_MEAN, CLIP_STD


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; `image_size` and `patch_size` in pixels.

    `local_merge` adds a strided convolution to a subsampled grid and so quarters the
    tokens; `newline` appends one learned token to each crop; `keep_class` keeps the
    class token in front (the authors drop it).
    """

    image_size: int
    patch_size: int
    blocks: BlockConfig
    local_merge: bool = True
    merge_kernel: int = 3
    merge_stride: int = 2
    newline: bool = True
    keep_class: bool = False

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision.image_size {self.image_size} is not a multiple of "
                f"vision.patch_size {self.patch_size}"
            )
        if self.local_merge and self.grid % self.merge_stride:
            raise ValueError(
                f"vision: a grid of {self.grid}×{self.grid} patches cannot be merged "
                f"with stride {self.merge_stride}; choose image_size and patch_size "
                "whose quotient is a multiple of it, or local_merge=False"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_crop(self) -> int:
        """Tokens that the fusion decoder receives for one crop."""
        side = self.grid // self.merge_stride if self.local_merge else self.grid
        return side * side + self.newline + self.keep_class


class VisionOutput(NamedTuple):
    """Tokens for the fusion decoder, and the class token after the last norm."""

    tokens: Float[Array, "C T D"]
    class_token: Float[Array, "C D"]


def normalised(crops: UInt8[Array, "C height width 3"]) -> Float32[Array, "C h w 3"]:
    """(crops / 255 − mean) / std per colour, as `views.make_views` does on the host."""
    shape = (1, 1, 1, 3)
    mean, std = (
        jnp.array(v, jnp.float32).reshape(shape) for v in (CLIP_MEAN, CLIP_STD)
    )
    return (crops.astype(jnp.float32) / 255 - mean) / std


class VisionTower(nn.Module):
    """Crops → tokens. Every layer is used; there is no intermediate-layer selection.

    Crops are normalised pixels, or uint8 ones that are normalised here first.
    """

    config: VisionConfig

    @nn.compact
    def __call__(
        self,
        crops: Float[Array, "C height width 3"] | UInt8[Array, "C height width 3"],
    ) -> VisionOutput:
        c, b = self.config, self.config.blocks
        if crops.dtype == jnp.uint8:
            crops = normalised(crops)
        normal = nn.initializers.normal
        patches = nn.Conv(
            b.width,
            (c.patch_size, c.patch_size),
            (c.patch_size, c.patch_size),
            padding="VALID",
            use_bias=False,
            dtype=b.dtype,
            kernel_init=normal(0.02),
            name="patch_embed",
        )(crops.astype(b.dtype))
        num_crops, num_patches = crops.shape[0], c.grid * c.grid
        patches = patches.reshape(num_crops, num_patches, b.width)
        class_embed = self.param("class_embed", normal(b.width**-0.5), (b.width,))
        positions = self.param("pos_embed", normal(0.02), (1 + num_patches, b.width))
        class_rows = jnp.broadcast_to(
            class_embed.astype(b.dtype), (num_crops, 1, b.width)
        )
        x = jnp.concatenate([class_rows, patches], axis=1) + positions.astype(b.dtype)
        x = LayerNorm(b.norm_eps, b.dtype, name="pre_norm")(x)
        x = lay(x, "batch", None, None)
        self.sow("intermediates", "input", x)
        x, _ = stack_blocks(EncoderBlock, b, "blocks")(x, None)
        # A norm of its own over all tokens, in place of CLIP's post_layernorm, which
        # reads the class token only.
        x = LayerNorm(b.norm_eps, b.dtype, name="post_norm")(x)
        self.sow("intermediates", "normed", x)

        class_token, tokens = x[:, 0], x[:, 1:]
        if c.local_merge:
            tokens = self._merge(tokens)
        parts = [tokens]
        if c.keep_class:
            parts.insert(0, class_token[:, None])
        if c.newline:
            newline = self.param("newline", normal(0.02), (b.width,))
            parts.append(
                jnp.broadcast_to(newline.astype(b.dtype), (num_crops, 1, b.width))
            )
        return VisionOutput(jnp.concatenate(parts, axis=1), class_token)

    def _merge(self, tokens: Float[Array, "C P D"]) -> Float[Array, "C Q D"]:
        """conv3×3 with stride 2 plus the top-left token of every 2×2 patch group."""
        c, b = self.config, self.config.blocks
        grid = tokens.reshape(-1, c.grid, c.grid, b.width)
        pad = c.merge_kernel // 2
        merged = nn.Conv(
            b.width,
            (c.merge_kernel, c.merge_kernel),
            (c.merge_stride, c.merge_stride),
            padding=[(pad, pad), (pad, pad)],
            use_bias=False,
            dtype=b.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name="merge",
        )(grid)
        nearest = grid[:, :: c.merge_stride, :: c.merge_stride]
        side = c.grid // c.merge_stride
        return (merged + nearest).reshape(-1, side * side, b.width)


def pack_crops(
    tokens: Float[Array, "C T D"],
    rows: Float[Array, "B F D"],
    crop_row: jax.Array,
    crop_rank: jax.Array,
) -> Float[Array, "B F D"]:
    """Lays the tokens of crop c at `crop_rank[c]·T` of row `crop_row[c]`.

    Integer positions only, so a bad sample cannot shift its neighbours; crops of row B
    (bucket fillers) are dropped. Two samples of two and one crops, T = 2:

        row 0: a0 a1 b0 b1 . .        row 1: c0 c1 . . . .
    """
    columns = crop_rank[:, None] * tokens.shape[1] + jnp.arange(tokens.shape[1])
    return rows.at[crop_row[:, None], columns].set(
        tokens.astype(rows.dtype), mode="drop"
    )
