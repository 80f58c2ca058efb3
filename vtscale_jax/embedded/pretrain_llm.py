"""Pre-trains the tiny Llama on text only: written-out pages with questions.

It never sees an image. What it learns is to answer from words that stand where, later,
the vision tokens will stand; after this it stays frozen.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax.embedded.text_pages import TextPages, TextRecord
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.llm import LLM, LLMConfig
from vtscale_jax.losses import AnswerTerms, answer_loss
from vtscale_jax.types import Kind

BUCKETS = (64, 96, 128, 192, 256, 384, 512)
TOKENS_PER_BATCH = 8192
POOL = 4096  # records whose lengths are sorted together


def encode(record: TextRecord, vocabulary: dict[str, int]) -> tuple[list, list]:
    """Ids and kinds of `<s> page question answer : a </s> hint question answer : …`.

    The same layout as the template "plain", with words in place of the query blocks.
    """
    ids, kinds = [vocabulary["<s>"]], [Kind.BOS]

    def add(text: str, kind: Kind) -> None:
        words = text.split()
        ids.extend(vocabulary[word] for word in words)
        kinds.extend([kind] * len(words))

    for turn, hint in zip(record.turns, record.hints, strict=True):
        add(hint or (record.page if turn is record.turns[0] else ""), Kind.SYS)
        add(turn.question, Kind.QUE)
        add("answer :", Kind.INST)
        add(turn.answer, Kind.ANS)
        add("</s>", Kind.EOS)
    return ids, kinds


def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (ids, kinds) `[B, S]` of about TOKENS_PER_BATCH tokens, by length."""
    vocabulary = build_tokenizer().get_vocab()
    source = TextPages(2**31, seed)
    rng = np.random.default_rng(seed)
    for start in itertools.count(0, POOL):
        pool = [encode(source[i], vocabulary) for i in range(start, start + POOL)]
        ready = []
        for low, high in zip((0, *BUCKETS), BUCKETS, strict=False):
            rows = [row for row in pool if low < len(row[0]) <= high]
            size = TOKENS_PER_BATCH // high
            for at in range(0, len(rows) - size + 1, size):
                ready.append(_pad(rows[at : at + size], high, vocabulary["</s>"]))
        for number in rng.permutation(len(ready)):
            yield ready[number]


def _pad(rows: list, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), pad_id, np.int32)
    kinds = np.full((len(rows), length), int(Kind.PAD), np.int32)
    for number, (row_ids, row_kinds) in enumerate(rows):
        ids[number, : len(row_ids)] = row_ids
        kinds[number, : len(row_kinds)] = row_kinds
    return ids, kinds


def text_loss(
    model: LLM, params: dict, ids: Int[Array, "B S"], kinds: Int[Array, "B S"]
) -> AnswerTerms:
    """Cross-entropy of answers and their ends, given everything before them."""

    def run(llm: LLM) -> Float[Array, "B S W"]:
        hidden = llm(llm.embed(ids), (kinds & Kind.PAD) == 0).hidden
        return llm.logits(hidden[:, :-1])

    logits = model.apply({"params": params}, method=run)
    mask = (kinds[:, 1:] & (Kind.ANS | Kind.EOS)) != 0
    return answer_loss(logits, ids[:, 1:], mask)


def initial_params(config: LLMConfig, seed: int) -> dict:
    """Fresh parameters of the tiny Llama."""

    def run(llm: LLM) -> Float[Array, "B S W"]:
        ids = jnp.zeros((1, 8), jnp.int32)
        return llm.logits(llm(llm.embed(ids), ids == 0).hidden)

    return LLM(config).init(jax.random.key(seed), method=run)["params"]
