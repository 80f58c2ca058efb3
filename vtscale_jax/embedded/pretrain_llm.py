"""Pre-trains the tiny Llama on text only: written-out pages with questions.

It never sees an image. What it learns is to answer from words that stand where, later,
the vision tokens will stand; after this it stays frozen.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vtscale_jax.embedded.text_pages import STYLE_SHARES, TextPages, TextRecord
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.llm import LLM, LLMConfig
from vtscale_jax.types import Kind

BUCKETS = (64, 96, 128, 192, 256, 384, 512)
TOKENS_PER_BATCH = 8192
POOL = 4096  # records whose lengths are sorted together


class Phase(NamedTuple):
    """So many pools (None: all others) of pages of at most `max_words` words, with
    these shares of the styles grid, facts and hint."""

    pools: int | None
    max_words: int
    style_shares: tuple[float, float, float]


# First to repeat an answer that stands there, then to look one up on a short page, then
# on pages as long as M = 256 vision tokens.
PHASES = (
    Phase(6, 40, (0.0, 0.0, 1.0)),
    Phase(30, 40, STYLE_SHARES),
    Phase(None, 300, STYLE_SHARES),
)


class TextBatch(NamedTuple):
    """Right-padded texts. `weights` are 1/length at the tokens of each answer and its
    end, 0 elsewhere: by tokens alone, long descriptions would drown the one-word
    answers."""

    ids: Int[Any, "B S"]
    kinds: Int[Any, "B S"]
    weights: Float[Any, "B S"]


def encode(
    record: TextRecord, vocabulary: dict[str, int]
) -> tuple[list[int], list[int], list[float]]:
    """Ids, kinds and weights of `<s> page question answer : a </s> hint question …`.

    The same layout as the template "plain", with words in place of the query blocks.
    """
    ids, kinds, weights = [vocabulary["<s>"]], [int(Kind.BOS)], [0.0]

    def add(text: str, kind: Kind, weight: float = 0.0) -> None:
        words = text.split()
        ids.extend(vocabulary[word] for word in words)
        kinds.extend([int(kind)] * len(words))
        weights.extend([weight] * len(words))

    add(record.page, Kind.SYS)
    for turn, hint in zip(record.turns, record.hints, strict=True):
        weight = 1 / (len(turn.answer.split()) + 1)
        add(hint, Kind.SYS)
        add(turn.question, Kind.QUE)
        add("answer :", Kind.INST)
        add(turn.answer, Kind.ANS, weight)
        add("</s>", Kind.EOS, weight)
    return ids, kinds, weights


def batches(seed: int) -> Iterator[TextBatch]:
    """Endless batches of about TOKENS_PER_BATCH tokens, of records of like length."""
    vocabulary = build_tokenizer().get_vocab()
    rng = np.random.default_rng(seed)
    for number in itertools.count():
        phase = _phase(number)
        source = TextPages(
            2**31, seed, max_words=phase.max_words, style_shares=phase.style_shares
        )
        first = number * POOL
        pool = [encode(source[i], vocabulary) for i in range(first, first + POOL)]
        ready = []
        for low, high in zip((0, *BUCKETS), BUCKETS, strict=False):
            rows = [row for row in pool if low < len(row[0]) <= high]
            size = TOKENS_PER_BATCH // high
            for at in range(0, len(rows) - size + 1, size):
                ready.append(_pad(rows[at : at + size], high, vocabulary["</s>"]))
        for chosen in rng.permutation(len(ready)):
            yield ready[chosen]


def _phase(pool: int) -> Phase:
    """The phase that pool number `pool` belongs to."""
    for phase in PHASES:
        if phase.pools is None or pool < phase.pools:
            return phase
        pool -= phase.pools
    raise AssertionError("the last phase has no end")


def _pad(rows: list, length: int, pad_id: int) -> TextBatch:
    shape = len(rows), length
    ids = np.full(shape, pad_id, np.int32)
    kinds = np.full(shape, int(Kind.PAD), np.int32)
    weights = np.zeros(shape, np.float32)
    for number, row in enumerate(rows):
        for array, values in zip((ids, kinds, weights), row, strict=True):
            array[number, : len(values)] = values
    return TextBatch(ids, kinds, weights)


def family_accuracy(
    model: LLM, params: dict, seed: int, number: int = 1024
) -> dict[str, float]:
    """Share of answers with every token right, end included, by family.

    Of `number` records of the last phase those that are written out count (styles grid
    and facts); most of the answers there are not hinted at.
    """
    vocabulary = build_tokenizer().get_vocab()
    pages = TextPages(number, seed, max_words=PHASES[-1].max_words)
    drawn = (pages[i] for i in range(number))
    records = [record for record in drawn if record.style != "hint"]
    rows = [encode(record, vocabulary) for record in records]
    longest = max(len(row[0]) for row in rows)

    @jax.jit
    def choose(params: dict, batch: TextBatch) -> Int[Array, "B S-1"]:
        return jnp.argmax(_logits(model, params, batch), axis=-1)

    right: dict[str, list[bool]] = {}
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        filled = part + [part[-1]] * (32 - len(part))
        batch = _pad(filled, longest, vocabulary["</s>"])
        hits = np.asarray(choose(params, batch)) == batch.ids[:, 1:]
        for record, row, hit in zip(records[start:], part, hits, strict=False):
            ends = [i for i, kind in enumerate(row[1]) if kind == Kind.EOS]
            for turn, end in zip(record.turns, ends, strict=True):
                first = end - len(turn.answer.split())
                ok = bool(hit[first - 1 : end].all())
                right.setdefault(turn.family, []).append(ok)
    return {family: float(np.mean(ok)) for family, ok in sorted(right.items())}


class TextScores(NamedTuple):
    """Mean loss per answer, and the share of answer tokens that would be chosen."""

    loss: Float[Array, ""]
    token_accuracy: Float[Array, ""]


def text_loss(model: LLM, params: dict, batch: TextBatch) -> TextScores:
    """Cross-entropy of answers and their ends, given everything before them; every
    answer weighs the same."""
    logits = _logits(model, params, batch)
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    loss = jnp.sum(losses * weights) / jnp.sum(weights)
    right = jnp.sum((jnp.argmax(logits, -1) == targets) & (weights > 0))
    return TextScores(loss, right / jnp.sum(weights > 0))


def _logits(model: LLM, params: dict, batch: TextBatch) -> Float[Array, "B S-1 W"]:
    def run(llm: LLM) -> Float[Array, "B S-1 W"]:
        hidden = llm(llm.embed(batch.ids), (batch.kinds & Kind.PAD) == 0).hidden
        return llm.logits(hidden[:, :-1])

    logits: Any = model.apply({"params": params}, method=run)
    return logits


def initial_params(config: LLMConfig, seed: int) -> dict:
    """Fresh parameters of the tiny Llama."""

    def run(llm: LLM) -> Float[Array, "B S W"]:
        ids = jnp.zeros((1, 8), jnp.int32)
        return llm.logits(llm(llm.embed(ids), ids == 0).hidden)

    fresh: Any = LLM(config).init(jax.random.key(seed), method=run)
    return fresh["params"]
