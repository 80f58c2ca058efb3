"""Records to token sequences: the one place that knows the sequence format.

A sample becomes up to three sequences, all without padding (spec section 7):

    fusion    question | N-1 query slots | ⟨eos⟩         once per question
    answers   answer | ⟨eos⟩                             one row per answer (align)
    LLM       ⟨s⟩ | system | block of N slots | question | answer | block of N | ...

N is M = `num_queries` for the first question and `num_followup_queries` for the
others. A question has **N outputs of the fusion decoder**: its N-1 placeholders *and*
its ⟨eos⟩; they fill the N slots of its block in the LLM sequence. So the fusion side
counts N-1 + ⟨eos⟩ and the LLM side N, and M = 1 needs no placeholder at all.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vtscale_jax.templates import checked_turns, segments
from vtscale_jax.types import Kind, Record, TokenSequence

QUESTION_MODES = ("asked", "templated", "dropped", "fixed")


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; Hugging Face fast tokenizers have it.

    It must be hashable, and not change once it is in use: texts that come again are not
    tokenised again.
    """

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a question and an answer."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The id of placeholders without their own; None stands for ⟨eos⟩."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """The ids of a text; special tokens written out in it count as such."""
        ...


@dataclass(frozen=True)
class QueryLayout:
    """How many learnable queries stand for the image, and which ids they have.

    `num_queries` is M (the authors' N_l), the outputs for a first question;
    `num_followup_queries` (N_s) those for each later one, min(8, M) unless given.
    `first_query_id` is the row of query 0 in the fusion model's token table: slot j of
    *every* question has id `first_query_id + j`, so follow-up questions reuse the
    first rows, and layouts with the same `first_query_id` nest. With None every
    placeholder is the pad id, and only position tells slots apart (the authors'
    `append_special_padding=False`).

    The reference raises an assertion for N_s > N_l and for a missing N_s, and accepts
    N_l = 0 (spec, quirk 3). Here a missing N_s has a default, and M < 1 is an error: a
    question without output cannot reach the language model. The authors' checkpoint
    "1_8" can only be (1, 1).
    """

    num_queries: int
    num_followup_queries: int | None = None
    first_query_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_queries < 1:
            raise ValueError(
                f"num_queries is {self.num_queries}, but every question needs at "
                "least one output (its ⟨eos⟩): set num_queries to 1 or more."
            )
        followup = self.num_followup_queries
        if followup is None:
            followup = min(8, self.num_queries)
            object.__setattr__(self, "num_followup_queries", followup)
        if not 1 <= followup <= self.num_queries:
            raise ValueError(
                f"num_followup_queries is {followup} with num_queries "
                f"{self.num_queries}, but follow-up questions reuse the first query "
                "rows: set num_followup_queries between 1 and num_queries, or leave it "
                "None for min(8, num_queries)."
            )

    def count(self, turn: int) -> int:
        """The number N of outputs of question `turn` (0 is the first)."""
        assert self.num_followup_queries is not None
        return self.num_queries if turn == 0 else self.num_followup_queries

    def total(self, num_turns: int) -> int:
        """The number of outputs of `num_turns` questions together."""
        return sum(self.count(turn) for turn in range(num_turns))

    def placeholder_ids(self, turn: int, pad_id: int) -> list[int]:
        """The N-1 ids that stand before the ⟨eos⟩ of question `turn`."""
        number = self.count(turn) - 1
        if self.first_query_id is None:
            return [pad_id] * number
        return list(range(self.first_query_id, self.first_query_id + number))


def fusion_sequence(
    record: Record,
    tokenizer: Tokenizer,
    layout: QueryLayout,
    *,
    question: str = "asked",
    template: str | None = None,
    fixed_text: str | None = None,
) -> TokenSequence:
    """What the fusion decoder reads after the vision tokens (spec 7.1 and 8).

    Per question k, with no ⟨bos⟩ and no separator: `text QUE | N-1 slots QED | ⟨eos⟩
    EOS`, e.g. for M = 3, N = 2 and two questions: `q q s0 s1 ⟨eos⟩ q q q s0 ⟨eos⟩`. A
    record without image has the questions only. Nothing is truncated.

    `question` says which text stands before the slots:
    * "asked": the question (the paper's Vision Question Queries);
    * "dropped": none (Vision Queries); the LLM still reads the question;
    * "fixed": `fixed_text`, the same for every question;
    * "templated": the QUE segments of `template`, as the reference does in inference
      only. It differs from "asked" for `llama-2` without system text, where "[INST] "
      enters the fusion input although training never showed it. Kept for parity with
      published numbers; training and inference here use the same mode.

    The reference's `fill_ends` (PAD tokens after the last ⟨eos⟩) changes no output and
    is left out. Raises ValueError for arguments that do not go together.
    """
    texts = _fusion_texts(record, question, template, fixed_text)
    eos = _eos_id(tokenizer)
    parts: list[tuple[Iterable[int], Kind]] = []
    for turn, text in enumerate(texts):
        if text:
            parts.append((_encode(tokenizer, text), Kind.QUE))
        if record.image is not None:
            slots = layout.placeholder_ids(turn, _pad_id(tokenizer))
            parts += [(slots, Kind.QED), ([eos], Kind.EOS)]
    return _join(parts)


def answer_sequences(
    record: Record,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    truncate: bool = False,
    layout: QueryLayout | None = None,
) -> list[TokenSequence]:
    """One row per answer for the text tower: `answer ANS | ⟨eos⟩ EOS` (spec 7.2).

    `max_length` is the length of the text tower's position table. The reference cuts
    from the right, ⟨eos⟩ included, and the answer is then pooled nowhere (quirk 8).
    Here a longer answer is a ValueError, or, with `truncate=True`, loses its last
    words and keeps ⟨eos⟩ last. An empty answer is a ValueError: its row would align a
    question with nothing. With `layout`, the placeholders of a question precede ⟨eos⟩
    for a record with image, as the reference does when its answer parser has N > 1.
    The reference's other parser, which adds a ⟨bos⟩, is not offered: the tower is
    trained without.
    """
    rows = []
    for number, turn in enumerate(checked_turns(record)):
        if not turn.answer:
            raise ValueError(
                f"sample {record.id!r}: answer {number} is empty; stage align pairs "
                "every question with its answer. Give the answer or drop the turn."
            )
        words = _encode(tokenizer, turn.answer)
        slots: list[int] = []
        if layout is not None and record.image is not None:
            slots = layout.placeholder_ids(number, _pad_id(tokenizer))
        room = max_length - len(slots) - 1
        if room < 1 or (len(words) > room and not truncate):
            raise ValueError(
                f"sample {record.id!r}: answer {number} has {len(words)} tokens and "
                f"{len(slots) + 1} for slots and ⟨eos⟩, but the text tower has "
                f"{max_length} positions (model.text.max_length). Shorten the answer, "
                "or use a text tower with a longer position table."
            )
        tail = [(slots, Kind.QED), ([_eos_id(tokenizer)], Kind.EOS)]
        rows.append(_join([(words[:room], Kind.ANS), *tail]))
    return rows


def llm_sequence(
    record: Record, tokenizer: Tokenizer, template: str, layout: QueryLayout
) -> TokenSequence:
    """What the language model reads (spec 7.3).

    Segments are tokenised separately, without special tokens of the tokenizer's own.
    Before each question of a record with image stands a block of N (not N-1) pad ids
    of kind QED, to be overwritten by the fusion outputs. Example (M = 2, N = 1,
    template "plain"): `⟨s⟩ □ □ question answer : yes ⟨/s⟩ □ question answer :`.
    An empty last answer gives the prompt for generation. Nothing is truncated.
    """
    parts: list[tuple[Iterable[int], Kind]] = []
    turn = 0
    for text, kind in segments(record, template):
        if kind == Kind.QUE:
            if record.image is not None:
                parts.append(([_pad_id(tokenizer)] * layout.count(turn), Kind.QED))
            turn += 1
        parts.append((_encode(tokenizer, text), kind))
    return _join(parts)


def as_prompt(record: Record, turn: int = -1) -> Record:
    """The record up to question `turn` (default: the last), with its answer removed.

    `llm_sequence` of the result ends where the model is to continue, and is a prefix of
    that of the whole record.
    """
    number = range(len(record.turns))[turn]
    turns = (*record.turns[:number], record.turns[number]._replace(answer=""))
    return record._replace(turns=turns)


def loss_targets(
    sequence: TokenSequence,
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " A"]]:
    """Positions t whose *next* token is of kind ANS or EOS, and the ids of those
    tokens (spec 6.5): `logits[t]` is to predict `ids[t + 1]`."""
    trained = sequence.kinds[1:] & (Kind.ANS | Kind.EOS) != 0
    positions = np.flatnonzero(trained).astype(np.int32)
    return positions, sequence.ids[positions + 1]


def fusion_slots(sequence: TokenSequence) -> Int[np.ndarray, " K"]:
    """Positions of the outputs in a fusion sequence: placeholders and ⟨eos⟩, in order.

    In the answers of the LLM sequence ⟨eos⟩ is no slot: see `llm_slots`.
    """
    found = sequence.kinds & (Kind.QED | Kind.EOS) != 0
    return np.flatnonzero(found).astype(np.int32)


def llm_slots(sequence: TokenSequence) -> Int[np.ndarray, " K"]:
    """Positions of the block slots in an LLM sequence, in order; slot k receives
    fusion output k."""
    return np.flatnonzero(sequence.kinds & Kind.QED != 0).astype(np.int32)


def end_ids(tokenizer: Tokenizer, more: Iterable[int] = ()) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's own, and `more` of the model's
    config (Llama 3, for one, has several). ValueError when there is none."""
    own = tokenizer.eos_token_id
    found: list[int] = [] if own is None else [own]
    found += [one for one in dict.fromkeys(more) if one != own]
    if not found:
        raise ValueError(
            "neither tokenizer nor config names a token that ends an answer: set "
            "eos_token in tokenizer_config.json, or eos_token_id in config.json"
        )
    return tuple(found)


def _fusion_texts(
    record: Record,
    question: str,
    template: str | None,
    fixed_text: str | None,
) -> list[str]:
    if question not in QUESTION_MODES:
        raise ValueError(f"question is {question!r}, expected one of {QUESTION_MODES}.")
    if (question == "fixed") != bool(fixed_text):
        raise ValueError(
            f"question is {question!r} and fixed_text {fixed_text!r}: give fixed_text "
            "with question='fixed' and only then."
        )
    turns = checked_turns(record)
    if question == "asked":
        return [turn.question for turn in turns]
    if question != "templated":
        return [fixed_text or ""] * len(turns)
    if template is None:
        raise ValueError("question is 'templated', which needs a template: name one.")
    return [text for text, kind in segments(record, template) if kind == Kind.QUE]


# A template's own texts are in every sample, and many questions in several.
@functools.lru_cache(maxsize=64)
def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _eos_id(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no eos_token_id, which ends every "
            "question: set its eos_token."
        )
    return tokenizer.eos_token_id


def _pad_id(tokenizer: Tokenizer) -> int:
    pad = tokenizer.pad_token_id
    return _eos_id(tokenizer) if pad is None else pad


def _join(parts: Iterable[tuple[Iterable[int], Kind]]) -> TokenSequence:
    pairs = [(token, int(kind)) for ids, kind in parts for token in ids]
    ids, kinds = zip(*pairs, strict=True) if pairs else ((), ())
    return TokenSequence(np.array(ids, np.int32), np.array(kinds, np.int32))
