"""Batches of made-up conversations for timing a train step: real shapes, random values.

Lengths and numbers of views are those of stated images and texts; words and pixels are
drawn from a seed. Values do not change what a step costs, but equal ones would (a GPU
draws less power for them and runs faster), and a loss over them says nothing.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import PACKED_AXES, BatchSpec, Encoded, collate, needs_of
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Batch, Kind, TokenSequence
from vtscale_jax.vlm import ModelConfig

END = 2  # the id of ⟨eos⟩ in both vocabularies


class Conversation(NamedTuple):
    """An image of so many views, and tokens of each (question, answer).

    `system` counts the tokens before the first question, `template` those that a chat
    format puts around each turn.
    """

    views: int
    turns: tuple[tuple[int, int], ...]
    system: int = 32
    template: int = 8


def sample(
    talk: Conversation,
    model: ModelConfig,
    layout: QueryLayout,
    stage: str,
    rng: np.random.Generator,
) -> Encoded:
    """The conversation as a sample of `stage`, with random words and pixels.

    In stage align an answer is cut to the positions that the text tower has, as runs do
    with data.truncate_answers.
    """
    fusion, answers = [], []
    llm = [([1], Kind.BOS), (_words(rng, model.llm.vocab_size, talk.system), Kind.SYS)]
    for turn, (asked, answered) in enumerate(talk.turns):
        question = _words(rng, model.fusion.vocab_size, asked)
        fusion += [
            (question, Kind.QUE),
            (layout.placeholder_ids(turn, END), Kind.QED),
            ([END], Kind.EOS),
        ]
        llm += [
            ([END] * layout.count(turn), Kind.QED),
            (_words(rng, model.llm.vocab_size, asked + talk.template), Kind.QUE),
            (_words(rng, model.llm.vocab_size, answered), Kind.ANS),
            ([END], Kind.EOS),
        ]
        room = model.text.max_length - 1  # and ⟨eos⟩
        told = _words(rng, model.text.vocab_size, min(answered, room))
        answers.append(_sequence([(told, Kind.ANS), ([END], Kind.EOS)]))
    size = model.vision.image_size
    return Encoded(
        f"conversation {rng.integers(10**9)}",
        rng.standard_normal((talk.views, size, size, 3), np.float32),
        _sequence(fusion),
        llm=None if stage == "align" else _sequence(llm),
        answers=tuple(answers) if stage == "align" else None,
    )


def fitting(
    samples: Sequence[Encoded], tokens_per_crop: int, *, multiple: int = 16
) -> BatchSpec:
    """The one shape that holds these samples: exactly their crops and answers, and the
    longest row of each kind, rounded up to `multiple`."""
    needs = [needs_of(one, tokens_per_crop) for one in samples]
    sizes = {}
    for axis in needs[0]:
        values = [need[axis] for need in needs]
        if axis in PACKED_AXES:
            sizes[axis] = (sum(values),)
        elif axis == "query_slots":
            sizes[axis] = (max(values),)
        else:
            sizes[axis] = (-(-max(values) // multiple) * multiple,)
    return BatchSpec(len(samples), tokens_per_crop, **sizes)


def batch_of(
    talks: Iterable[Conversation],
    model: ModelConfig,
    stage: str,
    *,
    num_queries: int,
    seed: int = 0,
    most_crops: int | None = None,
) -> Batch:
    """A batch of these conversations on the host, of exactly the size they take.

    With `most_crops`, the most that a sample of a run can have, it is of the size that
    a run has for them, of those that `fit_buckets` makes of these samples.
    """
    rng = np.random.default_rng(seed)
    layout = QueryLayout(num_queries, first_query_id=model.fusion.vocab_size)
    samples = [sample(talk, model, layout, stage, rng) for talk in talks]
    tokens = model.vision.tokens_per_crop
    if most_crops is None:
        spec = fitting(samples, tokens)
    else:
        size = len(samples)
        spec = fit_buckets(
            samples, batch_size=size, tokens_per_crop=tokens, most_crops=most_crops
        )
    if spec.answer_length:
        longest = min(spec.answer_length[0], model.text.max_length)
        spec = dataclasses.replace(spec, answer_length=(longest,))
    return collate(samples, spec)


def _words(rng: np.random.Generator, vocab: int, number: int) -> list[int]:
    return rng.integers(3, vocab, number).tolist()


def _sequence(parts: Iterable[tuple[list[int], Any]]) -> TokenSequence:
    ids, kinds = [], []
    for words, kind in parts:
        ids += words
        kinds += [int(kind)] * len(words)
    return TokenSequence(np.array(ids, np.int32), np.array(kinds, np.int32))
