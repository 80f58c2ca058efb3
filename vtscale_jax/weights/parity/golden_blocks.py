"""Single blocks and norms, each fed the reference's own states.

Rounding adds up along a chain of blocks, so a chain cannot tell a slightly wrong block
from a long chain. Here block i starts from the reference's state i − 1 and is compared
with its state i: what differs is that one block's doing.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax.attention import causal_mask
from vtscale_jax.layers import (
    BlockConfig,
    DecoderBlock,
    EncoderBlock,
    LayerNorm,
    RMSNorm,
    stack_blocks,
)

Params = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


class Tower(NamedTuple):
    """A stack of blocks with its final norm, and the reference's names for its states.

    `prefix`_0 is the input, `prefix`_i the state after block i and `last` the state
    after `norm`. A `decoder` has no state between its last block and its norm. `keep`
    `[B, S]` are the valid positions; None where there is no mask at all.
    """

    prefix: str
    last: str
    norm: str
    decoder: bool
    config: BlockConfig
    params: Params
    keep: np.ndarray | None


class Step(NamedTuple):
    """One comparison: our answer to `start`, and the name of the reference's."""

    name: str
    target: str
    ours: np.ndarray


@functools.partial(jax.jit, static_argnames=("decoder", "config"))
def _run_block(
    decoder: bool, config: BlockConfig, params: Params, x: jax.Array, keep: Any
) -> Any:
    mask = None if keep is None else causal_mask(keep)
    block = DecoderBlock if decoder else EncoderBlock
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    rest = (places, None) if decoder else ()
    stack = stack_blocks(block, dataclasses.replace(config, num_layers=1), "blocks")
    return stack.apply({"params": params}, x, mask, *rest)[0]


@functools.partial(jax.jit, static_argnames=("decoder", "config"))
def _run_norm(decoder: bool, config: BlockConfig, params: Params, x: jax.Array) -> Any:
    norm = RMSNorm if decoder else LayerNorm
    return norm(config.norm_eps, config.dtype).apply({"params": params}, x)


def steps(tower: Tower, theirs: Arrays) -> Iterator[Step]:
    """Every block and norm whose input and output the reference gives."""
    t, count = tower, tower.config.num_layers

    def norm(x: jax.Array) -> jax.Array:
        return _run_norm(t.decoder, t.config, t.params[t.norm], x)

    def start(i: int) -> np.ndarray:
        x = theirs[f"{t.prefix}_{i}"]
        # Their padding holds leftovers, which must not even be finite.
        return x if t.keep is None else np.where(t.keep[..., None], x, 0)

    for i in range(1, count + 1):
        target = t.last if t.decoder and i == count else f"{t.prefix}_{i}"
        if f"{t.prefix}_{i - 1}" not in theirs or target not in theirs:
            continue
        one = jax.tree.map(lambda leaf, i=i: leaf[i - 1 : i], t.params["blocks"])
        y = _run_block(t.decoder, t.config, one, start(i - 1), t.keep)
        y = norm(y) if target == t.last else y
        yield Step(f"block {t.prefix}_{i - 1} → {target}", target, np.asarray(y))
    if not t.decoder and {f"{t.prefix}_{count}", t.last} <= theirs.keys():
        y = norm(jnp.asarray(start(count)))
        yield Step(f"norm {t.prefix}_{count} → {t.last}", t.last, np.asarray(y))
