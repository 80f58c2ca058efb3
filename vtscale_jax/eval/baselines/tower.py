"""The CLIP tower of LLaVA: states of an inner block, and what reducers read of it.

The states of a tower of L blocks are numbered as transformers numbers `hidden_states`:
state 0 is what enters block 0 (after `pre_norm`), state i is the output of block i − 1,
and −2 is state L − 1, the output of the last block but one. Blocks behind the last
state that is asked for are not there at all, nor is CLIP's norm after the last block.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtscale_jax.eval.baselines.controls import resize_positions
from vtscale_jax.layers import BlockConfig, EncoderBlock, LayerNorm, Linear
from vtscale_jax.vision import VisionConfig


class TowerView(NamedTuple):
    """What the tower saw of each image.

    `features` are the states asked for, side by side, in raster order (behind the class
    row where that is kept). The others are of the last block there is, with the class
    row first: its output, the class query's softmax row over all keys, and the keys
    (with bias, unscaled).
    """

    features: Float[Array, "B T E"]
    hidden: Float[Array, "B Q D"]  # Q = 1 + P
    cls_attention: Float[Array, "B H Q"]
    keys: Float[Array, "B H Q C"]


def state_numbers(feature_layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The states that `feature_layers` mean, from 0 on: (-2,) of 24 blocks is (23,).

    Raises ValueError for a state that there is not, and when none comes out of a block.
    """
    states = tuple(i if i >= 0 else num_layers + 1 + i for i in feature_layers)
    if not states or not all(0 <= state <= num_layers for state in states):
        raise ValueError(
            f"feature_layers: got {tuple(feature_layers)}, expected numbers from "
            f"{-num_layers - 1} to {num_layers}, the states of a tower of {num_layers} "
            "blocks"
        )
    if max(states) == 0:
        raise ValueError(
            f"feature_layers: got {tuple(feature_layers)}, expected the output of a "
            "block among them; state 0 is what enters the first one"
        )
    return states


class FeatureTower(nn.Module):
    """Normalised pixels → `TowerView`, with `states` numbered as above.

    Images may be smaller or larger than `vision.image_size`, by whole patches: the
    position table is then resized to their grid. The parameters are those of
    `VisionTower` under the same names, as far as they are needed.
    """

    vision: VisionConfig
    states: tuple[int, ...]
    keep_class: bool = False

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> TowerView:
        b, depth = self.vision.blocks, max(self.states)
        blocks = self.param("blocks", _fresh_blocks, b, depth)

        def block(i: Any, x: Array) -> Array:
            return _block(b, _layer(blocks, i), x)

        # One segment of blocks after another, up to each state that is asked for; the
        # last block is apart, since what enters it is needed too.
        x = self._embed(pixels)
        found, done = {0: x}, 0
        for state in sorted({*self.states, depth - 1} - {0, depth}):
            x = jax.lax.fori_loop(done, state, block, x)
            found[state], done = x, state
        last = _layer(blocks, depth - 1)
        cls_attention, keys = _class_attention(b, last, x)
        hidden = found[depth] = _block(b, last, x)
        features = jnp.concatenate([found[state] for state in self.states], axis=-1)
        if not self.keep_class:
            features = features[:, 1:]
        return TowerView(features, hidden, cls_attention, keys)

    def _embed(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B Q D"]:
        """State 0: patches with the class row in front, positions added, normed."""
        c, b = self.vision, self.vision.blocks
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
        )(pixels.astype(b.dtype))
        grid = patches.shape[1]
        assert patches.shape[2] == grid, "images are square"
        patches = patches.reshape(-1, grid * grid, b.width)  # [B, P, D]
        class_embed = self.param("class_embed", normal(b.width**-0.5), (b.width,))
        shape = (1 + c.grid * c.grid, b.width)
        positions = self.param("pos_embed", normal(0.02), shape)
        if grid != c.grid:
            positions = resize_positions(positions, grid)
        class_rows = jnp.broadcast_to(
            class_embed.astype(b.dtype), (len(patches), 1, b.width)
        )
        x = jnp.concatenate([class_rows, patches], axis=1) + positions.astype(b.dtype)
        return LayerNorm(b.norm_eps, b.dtype, name="pre_norm")(x)


def _fresh_blocks(key: Any, config: BlockConfig, number: int) -> Any:
    """Parameters of `number` blocks, stacked on axis 0."""
    x = jnp.zeros((1, 1, config.width))

    def one(key: Any) -> Any:
        made: Any = EncoderBlock(config, parent=None).init(key, x, None)
        return made["params"]

    return jax.vmap(one)(jax.random.split(key, number))


def _layer(blocks: Any, i: Any) -> Any:
    """The parameters of block i of a stack."""
    return jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, 0, False), blocks)


def _block(config: BlockConfig, layer: Any, x: Float[Array, "B Q D"]) -> Array:
    out: Any = EncoderBlock(config, parent=None).apply({"params": layer}, x, None)
    return out[0]


def _class_attention(
    config: BlockConfig, layer: Any, x: Float[Array, "B Q D"]
) -> tuple[Float[Array, "B H Q"], Float[Array, "B H Q C"]]:
    """The class query's softmax row, of every head, and the keys, in a block that x
    enters: one query, so one row of scores for each head. The row is float32."""
    c = config
    norm = LayerNorm(c.norm_eps, c.dtype, parent=None)
    y: Any = norm.apply({"params": layer["norm1"]}, x)

    def project(name: str, y: Any) -> Array:
        linear = Linear(c.num_heads * c.head_dim, c.dtype, bias=True, parent=None)
        made: Any = linear.apply({"params": layer["attn"][name]}, y)
        return made.reshape(*made.shape[:-1], c.num_heads, c.head_dim)

    query, keys = (
        project("query", y[:, 0]),
        project("key", y),
    )  # [B, H, C], [B, Q, H, C]
    scores = jnp.einsum(
        "BHC,BQHC->BHQ", query, keys, preferred_element_type=jnp.float32
    )
    row = nn.softmax(scores * c.head_dim**-0.5, axis=-1)
    return row, keys.transpose(0, 2, 1, 3)
