"""Operations and bytes of one answer, by part, from sizes alone.

    first_token(model, question, …)     views … head: what the time to the first token
                                        is made of
    next_token(model, length, …)        each token after it

`flops` count attention whole, `causal_flops` as the mask leaves it (see `flops`). Bytes
are the least that must move: weights once, what a part hands on once, the caches; they
hold for batches of one, where no row shares the weights with another.
"""

import functools
from typing import NamedTuple

from vtscale_jax.cost.flops import (
    Attention,
    blocks_forward,
    local_merge,
    patch_embedding,
)
from vtscale_jax.cost.peak import Peak
from vtscale_jax.cost.traffic import PartParameters, count_parameters
from vtscale_jax.layers import BlockConfig
from vtscale_jax.stages import get_stage
from vtscale_jax.vlm import ModelConfig

PIXEL_BYTES = 3  # of a photograph
# Pixels that a filter reads along one axis, times the shrinking factor: bilinear for
# local views, Lanczos for the global one.
LOCAL_TAPS, GLOBAL_TAPS = 2, 6


class Question(NamedTuple):
    """The sizes of a first question about one image.

    `image` is (height, width) in pixels and `grid` (rows, columns) of its local views;
    the global view comes beside them. `text_tokens` are those of the question in the
    fusion decoder, `query_slots` the vectors that the language model receives (M), and
    `prompt_tokens` all that it reads, these included.
    """

    image: tuple[int, int]
    grid: tuple[int, int]
    text_tokens: int
    query_slots: int
    prompt_tokens: int

    @property
    def crops(self) -> int:
        """Views that the vision tower sees."""
        return self.grid[0] * self.grid[1] + 1

    def fusion_tokens(self, model: ModelConfig) -> int:
        """Tokens of the fusion decoder's row: vision, text, and query slots but for the
        last, which is at the text's ⟨eos⟩."""
        seen = self.crops * model.vision.tokens_per_crop
        return seen + self.text_tokens + self.query_slots - 1


class PartCost(NamedTuple):
    """Operations and bytes of one part; "views" runs on the host, "transfer" is the
    way from there to the device."""

    name: str
    flops: int
    causal_flops: int
    bytes: int


def first_token(
    model: ModelConfig,
    question: Question,
    *,
    bytes_each: int,
    llm_bytes: int | None = None,
    pixel_bytes: int = 4,
) -> tuple[PartCost, ...]:
    """The parts up to the first token of an answer: views, transfer, vision, merge,
    fusion, projector, prefill, head.

    `bytes_each` are those of a parameter and of an activation, `llm_bytes` those of a
    frozen parameter (default: as the others), `pixel_bytes` those of a pixel's colour
    on its way to the device.
    """
    llm_bytes = bytes_each if llm_bytes is None else llm_bytes
    v, f, q = model.vision, model.fusion.blocks, question
    weights = {part.name: part for part in _parameters(model)}
    pixels = q.crops * v.image_size**2 * 3
    patches = q.crops * v.grid**2
    merge_weights = v.merge_kernel**2 * v.blocks.width**2 if v.local_merge else 0
    length = q.fusion_tokens(model)
    projected = 2 * q.query_slots * f.width * model.llm.blocks.width

    def both(blocks: BlockConfig, tokens: int) -> tuple[int, int]:
        ways: tuple[Attention, Attention] = ("whole", "causal")
        whole, causal = (
            blocks_forward(blocks, 1, tokens, gated=True, attention=way) for way in ways
        )
        return whole, causal

    seeing = patch_embedding(v, q.crops)
    seeing += blocks_forward(v.blocks, q.crops, v.grid**2 + 1, gated=False)
    merging = local_merge(v, q.crops)
    resized = resize_operations(v.image_size, q)
    read = weights["vision"].count - merge_weights
    handed = q.query_slots * model.llm.blocks.width
    kept = q.prompt_tokens * cache_elements(model.llm.blocks)
    head = 2 * model.llm.blocks.width * model.llm.vocab_size
    return (
        PartCost(
            *("views", resized, resized),
            q.image[0] * q.image[1] * PIXEL_BYTES + pixels * pixel_bytes,
        ),
        PartCost("transfer", 0, 0, pixels * pixel_bytes),
        PartCost(
            *("vision", seeing, seeing),
            bytes_each * (read + patches * v.blocks.width),
        ),
        PartCost(
            *("merge", merging, merging),
            bytes_each * (merge_weights + patches * v.blocks.width),
        ),
        PartCost(
            *("fusion", *both(f, length)),
            _read(weights["fusion"], bytes_each)
            + bytes_each * length * (f.width + cache_elements(f)),
        ),
        PartCost(
            *("projector", projected, projected),
            bytes_each * (weights["projector"].count + handed),
        ),
        PartCost(
            *("prefill", *both(model.llm.blocks, q.prompt_tokens)),
            _read(weights["llm"], llm_bytes) + bytes_each * kept,
        ),
        PartCost("head", head, head, llm_bytes * weights["head"].count),
    )


def next_token(
    model: ModelConfig,
    length: int,
    *,
    bytes_each: int,
    llm_bytes: int | None = None,
    rows: int = 1,
) -> PartCost:
    """One more token for each of `rows` answers, whose caches hold `length` places."""
    llm_bytes = bytes_each if llm_bytes is None else llm_bytes
    blocks, weights = model.llm.blocks, {p.name: p for p in _parameters(model)}
    queries = blocks.num_heads * blocks.head_dim
    flops = rows * blocks.num_layers * 4 * (length + 1) * queries
    flops += rows * (linear_flops(blocks) + 2 * blocks.width * model.llm.vocab_size)
    read = _read(weights["llm"], llm_bytes) + llm_bytes * weights["head"].count
    kept = bytes_each * rows * length * cache_elements(blocks)
    return PartCost("decode", flops, flops, read + kept)


def linear_flops(blocks: BlockConfig) -> int:
    """Operations of a decoder's weights for each token, without attention's: for
    Llama-2-7B 12.95 billion, what a vision token costs at least."""
    once = blocks_forward(blocks, 1, 1, gated=True)
    return once - blocks.num_layers * 4 * blocks.num_heads * blocks.head_dim


def cache_elements(blocks: BlockConfig) -> int:
    """Keys and values of one token in all layers."""
    return 2 * blocks.num_layers * blocks.num_kv_heads * blocks.head_dim


def least_seconds(part: PartCost, peak: Peak) -> float:
    """The time below which the part cannot have run: all its needed operations at the
    peak, or all its bytes but those that the cache may hold (roofline)."""
    from_memory = max(0, part.bytes - peak.cache)
    return max(part.causal_flops / peak.flops, from_memory / peak.bandwidth)


def resize_operations(view_size: int, question: Question) -> int:
    """Operations of making the views: two resizes in two passes each, and the
    normalisation; padding of the canvas is counted as image."""
    height, width = question.image
    rows, columns = question.grid
    views = ((rows, columns, LOCAL_TAPS), (1, 1, GLOBAL_TAPS))
    total = 0
    for tall, wide, taps in views:
        out_height, out_width = tall * view_size, wide * view_size
        across = taps * max(1.0, width / out_width)
        down = taps * max(1.0, height / out_height)
        total += round(2 * 3 * out_width * (height * across + out_height * down))
        total += 2 * 3 * out_width * out_height
    return total


@functools.cache  # a table of times asks for the same model again and again
def _parameters(model: ModelConfig) -> tuple[PartParameters, ...]:
    return count_parameters(get_stage("adapt"), model)


def _read(part: PartParameters, bytes_each: int) -> int:
    """Bytes of the parameters that are read whole: all but tables of which a few rows
    are; int8 ones have one each."""
    return part.int8 + bytes_each * (part.count - part.looked_up - part.int8)
