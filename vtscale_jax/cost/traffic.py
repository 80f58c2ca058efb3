"""The least that a train step must move between a device's memory and its cores.

Counted are parameters, gradients, optimizer state, and what the forward pass saves for
the backward one. Everything else inside a block is taken to stay on the chip, which a
compiler does not achieve: attention scores alone, held in memory, can be more than all
of this. So the time it takes is a lower bound, and a step whose bound is above that of
its arithmetic is bound by memory for certain.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vtscale_jax import paths
from vtscale_jax.cost.flops import Sizes
from vtscale_jax.layers import BlockConfig
from vtscale_jax.stages import Stage, parameter_shapes
from vtscale_jax.vlm import ModelConfig

FLOAT32 = 4


class PartParameters(NamedTuple):
    """How many parameters one part has: in all, in its blocks, in tables of which a
    step reads only the rows that it looks up, and of those in the blocks as int8."""

    name: str
    count: int
    in_blocks: int
    looked_up: int
    int8: int
    trains: bool


class PartTraffic(NamedTuple):
    """Bytes of one part in one step.

    `weights` are read by every device that computes with them, forward, backward and
    again under remat; `gradients` are written; `residuals` are written by the forward
    pass and read by the backward one, over the whole batch.
    """

    name: str
    weights: int
    gradients: int
    residuals: int


class StepTraffic(NamedTuple):
    """Bytes of one step; `optimizer` is its share of an update.

    Two sizes beside it, no traffic by themselves, over the whole batch: `hidden` are
    the states that all blocks of all towers hand on, forward, backward and again under
    full remat; `largest_block` is what the largest block with that holds while it goes
    back, 0 where no block has it.
    """

    parts: tuple[PartTraffic, ...]
    optimizer: int
    hidden: int
    largest_block: int

    @property
    def weights(self) -> int:
        """Parameters read."""
        return sum(part.weights for part in self.parts)

    @property
    def gradients(self) -> int:
        """Gradients written."""
        return sum(part.gradients for part in self.parts)

    @property
    def residuals(self) -> int:
        """What is saved between the passes, written and read."""
        return sum(part.residuals for part in self.parts)

    @property
    def total(self) -> int:
        """Everything, on one device that does it all."""
        return self.weights + self.gradients + self.residuals + self.optimizer


def count_parameters(stage: Stage, model: ModelConfig) -> tuple[PartParameters, ...]:
    """The parameters of a stage's model by part, from shapes alone."""
    found: dict[str, Int[np.ndarray, " 4"]] = {}
    trains: dict[str, bool] = {}
    for path, leaf in paths.flatten(parameter_shapes(stage.model, model)).items():
        tower, *rest = path.split("/")
        tied = tower == "llm" and model.llm.tie_embeddings
        head = path == "llm/head" or (path == "llm/embed" and tied)
        name = "head" if head else tower
        looked_up = rest[-1] == "embed" and not head
        size = int(np.prod(leaf.shape))
        whole = leaf.dtype == jnp.int8
        row = [size, size * (rest[0] == "blocks"), size * looked_up, size * whole]
        found[name] = found.get(name, np.zeros(4, np.int64)) + np.array(row)
        trains[name] = paths.match(path, stage.trains)
    return tuple(
        PartParameters(name, *map(int, counts), trains=trains[name])
        for name, counts in found.items()
    )


def step_traffic(
    parameters: tuple[PartParameters, ...],
    model: ModelConfig,
    sizes: Sizes,
    *,
    frozen_bytes: int,
    accumulation: int = 1,
) -> StepTraffic:
    """Bytes of a train step over a batch of `sizes`.

    Under full remat a block saves its input only, under selective remat what
    `block_elements` says. Frozen parameters are `frozen_bytes` each,
    but for int8 ones, trainable ones and all that belongs to them float32. A step that
    only adds its gradients to the mean of an update reads both and writes one; an
    update reads gradient, parameter and two moments, and writes the last three.
    """
    # (blocks, rows, tokens of a row) of each tower.
    rows: dict[str, tuple[BlockConfig, int, int]] = {
        "vision": (model.vision.blocks, sizes.crops, model.vision.grid**2 + 1),
        "fusion": (model.fusion.blocks, sizes.rows, sizes.fusion_length),
        "llm": (model.llm.blocks, sizes.llm_rows, sizes.llm_length),
        "text": (model.text.blocks, sizes.answers, sizes.answer_length),
    }
    parts, hidden, blocks_hold = [], 0, []
    for p in parameters:
        bytes_each = FLOAT32 if p.trains else frozen_bytes
        passes = 2
        residuals = 0
        weights = 2 * (p.count - p.looked_up - p.in_blocks) * bytes_each
        if p.name in rows:
            blocks, number, length = rows[p.name]
            again = blocks.remat == "full" and blocks.stacked
            passes += again
            held = block_elements(blocks, length, p.name in ("fusion", "llm"), p.trains)
            token_bytes = number * length * jnp.dtype(blocks.dtype).itemsize
            saved = (blocks.width if again else held) * blocks.num_layers
            residuals = 2 * saved * token_bytes
            hidden += passes * blocks.num_layers * blocks.width * token_bytes
            blocks_hold.append(held * token_bytes * again)
        elif p.name == "head":
            logits = sizes.llm_rows * sizes.loss_positions * model.llm.vocab_size
            residuals = 2 * logits * FLOAT32
        gradients = FLOAT32 * p.count if p.trains else 0
        weights += passes * (p.int8 + (p.in_blocks - p.int8) * bytes_each)
        parts.append(PartTraffic(p.name, weights, gradients, residuals))
    trainable = sum(p.count for p in parameters if p.trains)
    moved = 7 / accumulation + (3 if accumulation > 1 else 0)
    optimizer = round(FLOAT32 * trainable * moved)
    return StepTraffic(tuple(parts), optimizer, hidden, max(blocks_hold, default=0))


def block_elements(blocks: BlockConfig, length: int, gated: bool, trains: bool) -> int:
    """Elements for each token that the gradients of one block's products and norms
    read, of rows of `length` tokens: what it saves without remat, or with selective.

    A block that does not train keeps no inputs of its weights.
    """
    c = blocks
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = queries + 2 * keys
    hidden = (2 if gated else 1) * c.mlp_width
    if c.remat == "selective":  # the block's input, and products with its weights
        return attention + hidden + 2 * c.width
    if c.attention == "xla":  # fused kernels hold no scores
        attention += c.num_heads * length
    residual = 2 * c.width
    inputs = 2 * c.width + queries + c.mlp_width if trains else 0
    return attention + residual + hidden + inputs
