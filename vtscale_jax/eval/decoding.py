"""Greedy decoding of a batch of prompts: one prefill, then one step per token."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from transformers import PreTrainedTokenizerBase

from vtscale_jax.llm import empty_cache
from vtscale_jax.types import Batch, Kind
from vtscale_jax.vlm import VLM, ModelConfig


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "eos_id"))
def greedy(
    params: dict,
    batch: Batch,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    eos_id: int,
) -> Int[Array, "B N"]:
    """The most likely continuation of every prompt of the batch, token by token.

    Prompts are right-padded and may differ in length: row b's tokens go on at its own
    end. After ⟨eos⟩ a row is filled with `eos_id`; decoding ends when all rows have
    ended or `max_new_tokens` are made. Vision and fusion run once.
    """
    model = VLM(config)
    num_rows, length = batch.llm.ids.shape
    cache = empty_cache(config.llm, num_rows, length + max_new_tokens)
    variables = {"params": params}
    logits, cache = model.apply(
        variables, batch.fusion, batch.llm, cache, method=VLM.prefill
    )
    lengths = jnp.sum((batch.llm.kinds & Kind.PAD) == 0, axis=1)
    tokens = jnp.full((num_rows, max_new_tokens), eos_id, jnp.int32)

    def unfinished(carry):
        step, _, _, ended, _ = carry
        return (step < max_new_tokens) & ~jnp.all(ended)

    def one_step(carry):
        step, logits, cache, ended, tokens = carry
        chosen = jnp.where(ended, eos_id, jnp.argmax(logits, axis=-1))
        tokens = tokens.at[:, step].set(chosen)
        ended |= chosen == eos_id
        logits, cache = model.apply(
            variables, chosen, lengths + step, cache, method=VLM.decode
        )
        return step + 1, logits, cache, ended, tokens

    start = (0, logits, cache, jnp.zeros(num_rows, bool), tokens)
    return jax.lax.while_loop(unfinished, one_step, start)[-1]


class Answer(NamedTuple):
    """A text that the model made; `ended` is False when it was cut at the limit."""

    text: str
    ended: bool


def answers(
    tokens: Int[np.ndarray, "B N"], tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    """Each row up to its first ⟨eos⟩, as text."""
    eos_id = tokenizer.eos_token_id
    rows = []
    for row in np.asarray(tokens).tolist():
        ended = eos_id in row
        end = row.index(eos_id) if ended else len(row)
        rows.append(Answer(str(tokenizer.decode(row[:end])).strip(), ended))
    return rows
