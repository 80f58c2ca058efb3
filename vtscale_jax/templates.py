"""Chat formats as tables, and a record rendered with one of them.

A format is a `Template`: pieces of text that are tokenised on their own, each with the
kind of its tokens (spec section 7.3). `tokens.llm_sequence` adds the query blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple

from vtscale_jax.types import Kind, Record, Turn


class Segment(NamedTuple):
    """A piece of text that is tokenised on its own, and the kind of its tokens."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Template:
    """A chat format as a table; `{system}`, `{question}`, `{answer}` are filled in.

    The block of query slots stands directly before the QUE segment. A system text that
    is empty leaves out `system`, and the first question is then `lone_question` where
    the format has one. An answer that is empty leaves out `answer`, so a prompt is
    always a prefix of the training sequence.
    """

    default_system: str
    opening: tuple[Segment, ...]
    system: tuple[Segment, ...]
    first_question: tuple[Segment, ...]
    later_question: tuple[Segment, ...]
    answer: tuple[Segment, ...]
    lone_question: tuple[Segment, ...] | None = None


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)
_BOS = (Segment("<s>", Kind.BOS),)
_QUESTION = Segment("{question}", Kind.QUE)
_ANSWER = Segment("{answer}", Kind.ANS)


def _llama_2(default_system: str) -> Template:
    close = Segment("[/INST]", Kind.INST)
    return Template(
        default_system=default_system,
        opening=_BOS,
        system=(Segment("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n", Kind.SYS),),
        first_question=(_QUESTION, close),
        later_question=(Segment("<s>[INST]", Kind.INST), _QUESTION, close),
        # ⟨/s⟩ and the space token before it are typed ANS and trained on; this format
        # has no EOS kind at all (spec 7.3), so a decoder must stop at the id of ⟨/s⟩.
        answer=(Segment("{answer} </s>", Kind.ANS),),
        # Without a system text "[INST] " belongs to the question, so the block of
        # slots stands before it (spec 7.3). Kept, for the authors' checkpoints.
        lone_question=(Segment("[INST] {question}", Kind.QUE), close),
    )


def _uniform(question: tuple[Segment, ...], **rest) -> Template:
    return Template(first_question=question, later_question=question, **rest)


def _chatml(default_system: str) -> Template:
    return _uniform(
        (
            Segment("<|im_start|>user\n", Kind.INST),
            _QUESTION,
            Segment("<|im_end|>\n", Kind.INST),
            Segment("<|im_start|>assistant\n", Kind.INST),
        ),
        default_system=default_system,
        opening=(),
        system=(Segment("<|im_start|>system\n{system}<|im_end|>\n", Kind.SYS),),
        answer=(_ANSWER, Segment("<|im_end|>\n", Kind.EOS)),
    )


TEMPLATES: dict[str, Template] = {
    # The authors' evaluation template, and the same with no system text by default.
    "llama-2-vision": _llama_2(_VICUNA_SYSTEM),
    "llama-2": _llama_2(""),
    # The reference's prompt ends at "ASSISTANT:" although it trains on "ASSISTANT: ",
    # which is another token. Here the prompt is the prefix that was trained on.
    "vicuna_v1.1": _uniform(
        (
            Segment("USER: ", Kind.INST),
            _QUESTION,
            Segment(" ", Kind.INST),
            Segment("ASSISTANT: ", Kind.INST),
        ),
        default_system=_VICUNA_SYSTEM,
        opening=_BOS,
        system=(Segment("{system} ", Kind.SYS),),
        answer=(_ANSWER, Segment("</s>", Kind.EOS)),
    ),
    # Neutral, for word-level vocabularies that know "answer" and ":".
    "plain": _uniform(
        (_QUESTION, Segment("answer :", Kind.INST)),
        default_system="",
        opening=_BOS,
        system=(Segment("{system} ", Kind.SYS),),
        answer=(_ANSWER, Segment("</s>", Kind.EOS)),
    ),
    # The segments of the reference's "qwen-7b-chat".
    "chatml": _chatml("You are a helpful assistant."),
    # The chat template in the files of SmolLM2-Instruct, piece by piece.
    "smollm2": _chatml(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
}


def check_template(name: str) -> None:
    """ValueError, listing the formats there are, for an unknown name."""
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}, expected one of {sorted(TEMPLATES)}.")


def segments(record: Record, template: str) -> list[Segment]:
    """The text of the LLM sequence, piece by piece, without the query blocks.

    Raises ValueError for an unknown template or an empty question.
    """
    check_template(template)
    table = TEMPLATES[template]
    # Only None means "the default"; the reference treats "" the same way, so that no
    # system text could be asked for.
    system = table.default_system if record.system is None else record.system
    pieces = list(table.opening)
    if system:
        pieces += [Segment(t.format(system=system), k) for t, k in table.system]
    for number, turn in enumerate(checked_turns(record)):
        question = table.first_question if number == 0 else table.later_question
        if number == 0 and not system:
            question = table.lone_question or question
        pieces += [Segment(t.format(question=turn.question), k) for t, k in question]
        if turn.answer:
            pieces += [
                Segment(t.format(answer=turn.answer), k) for t, k in table.answer
            ]
    return pieces


def checked_turns(record: Record) -> tuple[Turn, ...]:
    """The turns of a record; ValueError where there is none or a question is empty."""
    # The reference lets an empty question contribute nothing to the LLM sequence; its
    # query block would then be missing there, and all later outputs land one too early.
    for number, turn in enumerate(record.turns):
        if not turn.question:
            raise ValueError(
                f"sample {record.id!r}: question {number} is empty; every turn needs "
                "one. Fill it in or drop the turn."
            )
    if not record.turns:
        raise ValueError(f"sample {record.id!r} has no turns, expected at least one.")
    return record.turns
