"""Generation by the language model: a prompt is read at once, an answer token by token.

Rows of a batch may have prompts of different lengths; each goes on at its own end:

    state = begin(config, batch_size, length, seed)
    state = read(params, state, ids, keep, ...)       # prompts; chooses first tokens
    state, tokens = write(params, state, num_steps=8, ...)   # more of the answers
    state = read(params, state, ids, keep, ...)       # the next turn, on the same cache

`write` compiles to one while loop, so a long answer may come whole or in chunks as it
is streamed. `generate` does it all in one program.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.layers import Caches, empty_caches
from vtscale_jax.llm import LLM, LLMConfig, unstack

WithLLM = TypeVar("WithLLM")  # the config of a model, which has `llm: LLMConfig`


def for_generation(
    params: dict[str, Any], config: WithLLM
) -> tuple[dict[str, Any], WithLLM]:
    """The same model with the layers of its LLM apart, which decodes faster (see
    `layers.BlockList`). The stacked layers are taken out of `params["llm"]`."""
    model: Any = config
    blocks = dataclasses.replace(model.llm.blocks, stacked=False)
    llm = dataclasses.replace(model.llm, blocks=blocks)
    apart = {**params, "llm": unstack(params["llm"])}
    return apart, dataclasses.replace(model, llm=llm)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits.

    `temperature` 0 takes the most likely one. Otherwise one is drawn from
    softmax(logits / temperature), after leaving only the `top_k` most likely (0: all)
    and then the fewest that have `top_p` of the probability together. Equal logits at a
    border stay in.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-3 <= self.temperature < math.inf):
            raise ValueError(
                f"temperature is {self.temperature}, expected 0 (greedy), or a number "
                "from 0.001 on"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0, at most 1")


GREEDY = Sampling()


class State(NamedTuple):
    """Rows being generated.

    Places 0…`lengths` − 1 of a row's caches are filled. `ids` were chosen last and are
    not in the caches yet; a row has `ended` when that is an end token. `keys` are the
    rows' random keys: what a row draws does not depend on its neighbours.
    """

    caches: Caches
    lengths: Int[Array, " B"]
    ids: Int[Array, " B"]
    ended: Bool[Array, " B"]
    keys: Any


def begin(config: LLMConfig, batch_size: int, length: int, seed: int = 0) -> State:
    """Empty rows with room for `length` tokens each, prompts and answers together."""
    # Buffers of their own each: they are donated.
    return State(
        empty_caches(config.blocks, batch_size, length),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, bool),
        jax.random.split(jax.random.key(seed), batch_size),
    )


def choose(
    logits: Float[Array, "B W"], sampling: Sampling, keys: Any
) -> Int[Array, " B"]:
    """The next token of each row; `keys` are one random key a row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        within = jnp.where(before < sampling.top_p, ordered, jnp.inf)
        least = jnp.min(within, axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _advance(
    params: Mapping[str, Any],
    state: State,
    ids: Int[Array, "B S"],
    keep: Bool[Array, "B S"],
    vectors: Float[Array, "B K D"] | None,
    slots: Int[Array, "B K"] | None,
    config: LLMConfig,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
) -> State:
    """Reads tokens and chooses the next one of every row that has any."""
    # flax does not say what an applied method returns.
    read_by: Any = LLM(config).apply(
        {"params": params},
        *(ids, keep, state.lengths, state.caches, vectors, slots),
        method=LLM.read,
    )
    logits, caches = read_by
    lengths = state.lengths + jnp.sum(keep, axis=1, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in)(state.keys, lengths)
    chosen = jnp.where(keep[:, 0], choose(logits, sampling, keys), state.ids)
    ended = jnp.isin(chosen, jnp.array(eos_ids, jnp.int32))
    ended |= lengths == 0  # a row of padding has nothing to answer
    return State(caches, lengths, chosen, ended, state.keys)


_STATIC = ("config", "sampling", "eos_ids")


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def read(
    params: Mapping[str, Any],
    state: State,
    ids: Int[Array, "B S"],
    keep: Bool[Array, "B S"],
    vectors: Float[Array, "B K D"] | None = None,
    slots: Int[Array, "B K"] | None = None,
    *,
    config: LLMConfig,
    sampling: Sampling = GREEDY,
    eos_ids: tuple[int, ...],
) -> State:
    """The rows after reading `ids` where `keep` (on the left of each row), with the
    first token of each answer chosen. `vectors` stand at `slots` in place of the
    embeddings there. Rows without any kept token stay as they are.

    `params` are those of an `LLM`. The state is donated: use the one returned.
    """
    return _advance(params, state, ids, keep, vectors, slots, config, sampling, eos_ids)


@functools.partial(
    jax.jit, static_argnames=(*_STATIC, "num_steps"), donate_argnames="state"
)
def write(
    params: Mapping[str, Any],
    state: State,
    *,
    config: LLMConfig,
    num_steps: int,
    sampling: Sampling = GREEDY,
    eos_ids: tuple[int, ...],
) -> tuple[State, Int[Array, "B N"]]:
    """Up to `num_steps` more tokens of each row, and the rows after them.

    Stops when every row has ended; a row that has is filled up with `eos_ids[0]`, and
    its cache is left alone. The state is donated: use the one returned.
    """
    rows = state.ids.shape[0]
    tokens = jnp.full((rows, num_steps), eos_ids[0], jnp.int32)
    if num_steps == 0:  # a loop's body is traced even if it never runs
        return state, tokens

    def unfinished(carry):
        step, state, _ = carry
        return (step < num_steps) & ~jnp.all(state.ended)

    def one_step(carry):
        step, state, tokens = carry
        active = ~state.ended
        after = _advance(
            *(params, state, state.ids[:, None], active[:, None], None, None),
            *(config, sampling, eos_ids),
        )
        # A row that has ended reads nothing, and so keeps its end token.
        column = jnp.where(active, after.ids, eos_ids[0])
        return step + 1, after, tokens.at[:, step].set(column)

    _, state, tokens = jax.lax.while_loop(unfinished, one_step, (0, state, tokens))
    return state, tokens


def generate(
    params: Mapping[str, Any],
    ids: Int[Array, "B S"],
    keep: Bool[Array, "B S"],
    vectors: Float[Array, "B K D"] | None = None,
    slots: Int[Array, "B K"] | None = None,
    *,
    config: LLMConfig,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Int[Array, "B N"]:
    """Answers of `max_new_tokens` tokens at most to a batch of right-padded prompts;
    what follows an end token is `eos_ids[0]`. To be called inside jit."""
    same = {"config": config, "sampling": sampling, "eos_ids": eos_ids}
    state = begin(config, ids.shape[0], ids.shape[1] + max_new_tokens, seed)
    state = read(params, state, ids, keep, vectors, slots, **same)
    first = state.ids
    _, tokens = write(params, state, num_steps=max_new_tokens - 1, **same)
    return jnp.concatenate([first[:, None], tokens], axis=1)
