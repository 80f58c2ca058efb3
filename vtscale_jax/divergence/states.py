"""Hidden states of two branches after their common prefix, from a language model.

The prefix is read once for a pair; both branches go on from its keys and values.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax import paths
from vtscale_jax.attention import sees
from vtscale_jax.layers import Caches, empty_caches, places
from vtscale_jax.llm import LLM, LLMConfig

FINAL = "final"


class Rows(NamedTuple):
    """B pairs as a language model reads them, padded on the right.

    `a` and `b` are token ids, or vectors that stand in their places (fused vision
    tokens). Both branches of a pair are `lengths` long. Padding may be anything.
    """

    prefix: Int[Array | np.ndarray, "B p"]
    prefix_lengths: Int[Array | np.ndarray, " B"]
    a: Int[Array | np.ndarray, "B n"] | Float[Array, "B n D"]
    b: Int[Array | np.ndarray, "B n"] | Float[Array, "B n D"]
    lengths: Int[Array | np.ndarray, " B"]


class LayerError(ValueError):
    """A layer that the model does not have."""


def through_layer(
    params: Mapping[str, Any], config: LLMConfig, layer: str
) -> tuple[dict[str, Any], LLMConfig]:
    """The parameters and config of the model up to block `layer` ("1" is the first), or
    all of it for "final": later blocks are neither held nor run.

    LayerError for a block that is not there.
    """
    number = config.blocks.num_layers
    if layer == FINAL:
        return dict(params), config
    if not layer.isdecimal() or not 1 <= int(layer) <= number:
        raise LayerError(
            f"--layer is {layer!r}, expected {FINAL!r} (after the last norm) or a "
            f"block of the model, 1 to {number}"
        )
    kept = int(layer)
    blocks = params["blocks"]
    if config.blocks.stacked:
        flat = paths.flatten(blocks)
        blocks = paths.unflatten({path: leaf[:kept] for path, leaf in flat.items()})
    else:
        blocks = {f"layer{i}": blocks[f"layer{i}"] for i in range(kept)}
    cut = dataclasses.replace(config.blocks, num_layers=kept)
    return {**params, "blocks": blocks}, dataclasses.replace(config, blocks=cut)


@functools.partial(jax.jit, static_argnames=("config", "final"))
def branch_states(
    params: Mapping[str, Any], rows: Rows, *, config: LLMConfig, final: bool
) -> tuple[Float[Array, "B n D"], Float[Array, "B n D"]]:
    """h_i^A and h_i^B for i = 1…n in the model's compute dtype.

    With `final` they are those after the last norm (paper §3: before the output
    projection), else what the last block of `config` gives. Beyond a pair's length
    they mean nothing.
    """
    llm = LLM(config)
    B, p = rows.prefix.shape
    n = rows.a.shape[1]
    room = p + n
    check_positions(config, room)

    def read(tokens: Any, start: Any, length: Any, caches: Caches) -> Any:
        places = jnp.arange(tokens.shape[1])
        # Padding is written beyond the end, that is nowhere.
        positions = jnp.where(places < length[:, None], start[:, None] + places, room)
        return llm.apply(
            {"params": params}, tokens, positions, caches, final, method=_read
        )

    caches = empty_caches(config.blocks, B, room)
    nothing = jnp.zeros(B, jnp.int32)
    _, caches = read(rows.prefix, nothing, rows.prefix_lengths, caches)
    a, b = (
        read(branch, rows.prefix_lengths, rows.lengths, caches)[0]
        for branch in (rows.a, rows.b)
    )
    return a, b


def check_positions(config: LLMConfig, room: int) -> None:
    """LayerError where padding would carry rows over the border at which `longrope`
    turns keys otherwise: a pair's states would then depend on its neighbours."""
    scaling = config.blocks.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return
    if room > scaling.original_length:
        raise LayerError(
            f"prefix and branch take {room} places with their padding, but this model "
            f"reads rows beyond {scaling.original_length} otherwise: lower "
            "--max_prefix or --max_length"
        )


def _read(
    llm: LLM, tokens: Array, positions: Array, caches: Caches, final: bool
) -> tuple[Array, Caches]:
    blocks = llm.config.blocks
    known = jnp.issubdtype(tokens.dtype, jnp.integer)
    x = llm.embed(tokens) if known else tokens.astype(blocks.dtype)
    mask = sees(positions, places(caches), blocks.window)[:, None]
    x, new = llm.blocks(x, mask, positions, caches)
    return (llm.norm(x) if final else x), new
