"""Greedy answers to a batch of prompts, their text, and how many batches at once."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from transformers import PreTrainedTokenizerBase

from vtscale_jax.generate import generate
from vtscale_jax.types import Batch, Kind
from vtscale_jax.vlm import VLM, ModelConfig, look


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
    `eos_id`. Vision and fusion run once. The vision tower is a program of its own: how
    many different crops there are varies from batch to batch, and what is compiled for
    each number is the smaller part.
    """
    inputs = batch.fusion
    seeing = {"vision": params["vision"]}
    tokens = look(seeing, inputs.crops, inputs.crop_index, config=config)
    seen = inputs._replace(crops=np.zeros((0, 1, 1, 3), np.float32), crop_index=None)
    return _write(
        {name: params[name] for name in ("fusion", "projector", "llm")},
        batch._replace(fusion=seen),
        tokens,
        config=config,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
    )


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "eos_id"))
def _write(
    params: dict,
    batch: Batch,
    tokens: Float[Array, "C T D"],
    *,
    config: ModelConfig,
    max_new_tokens: int,
    eos_id: int,
) -> Int[Array, "B N"]:
    vectors: Any = VLM(config).apply(
        {"params": params}, batch.fusion, tokens, method=VLM.query_vectors
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


def batches_at_once(params: Any) -> int:
    """How many batches may be answered at the same time with these parameters: three
    where they are on one device, which so has work while others are placed and read.

    One where they are on several: all devices of all processes must start programs that
    wait for each other in the same order, which threads do not keep.
    """
    on = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)}
    return 3 if on == {1} else 1
