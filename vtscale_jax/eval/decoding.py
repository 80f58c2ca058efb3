"""Greedy answers to a batch of prompts, and their text."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int
from transformers import PreTrainedTokenizerBase

from vtscale_jax.generate import generate
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

    Prompts are right-padded and may differ in length. After ⟨eos⟩ a row is filled with
    `eos_id`. Vision and fusion run once.
    """
    vectors: Any = VLM(config).apply(
        {"params": params}, batch.fusion, method=VLM.query_vectors
    )
    return generate(
        params["llm"],
        batch.llm.ids,
        (batch.llm.kinds & Kind.PAD) == 0,
        vectors,
        batch.llm.slots,
        config=config.llm,
        max_new_tokens=max_new_tokens,
        eos_ids=(eos_id,),
    )


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
