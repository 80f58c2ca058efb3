"""A record to its views and token sequences: one sample, ready to be batched."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from vtscale_jax.collate import STAGE_AXES, Encoded
from vtscale_jax.templates import check_template
from vtscale_jax.tokens import (
    QueryLayout,
    Tokenizer,
    answer_sequences,
    fusion_sequence,
    llm_sequence,
)
from vtscale_jax.types import Record, TokenSequence
from vtscale_jax.views import load_image, make_views, remap_boxes


class SampleError(ValueError):
    """A record that cannot be turned into a sample; the message names it."""


@dataclass(frozen=True)
class Encoding:
    """How records become samples; constant over a run (the layout may vary by step).

    `stage` says what is built: "align" answers for the text tower, "finetune" and
    "adapt" the LLM sequence. `question`, `fixed_text`: see `tokens.fusion_sequence`.
    `view_size` in pixels. With `prompts` the last answer may be empty and boxes keep
    the image's coordinates, as the reference does in inference.
    """

    stage: str
    fusion_tokenizer: Tokenizer
    view_size: int
    max_local_views: int
    llm_tokenizer: Tokenizer | None = None
    template: str | None = None
    question: str = "asked"
    fixed_text: str | None = None
    max_answer_length: int | None = None
    truncate_answers: bool = False
    require_image: bool = False
    prompts: bool = False

    def __post_init__(self) -> None:
        if self.stage not in STAGE_AXES:
            raise ValueError(
                f"stage is {self.stage!r}, expected one of {tuple(STAGE_AXES)}."
            )
        needed = ["llm_tokenizer", "template"]
        if self.stage == "align":
            needed = ["max_answer_length"]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"stage {self.stage} needs {name}, which is None.")
        if self.template is not None:
            check_template(self.template)


def encode(record: Record, encoding: Encoding, layout: QueryLayout) -> Encoded:
    """One record -> its views and token sequences.

    In training, boxes in questions and answers are moved to the coordinates of the
    padded square first (spec 2.3). A sample without image trains the LLM on its answers
    like any other (the reference switches to a loss over all tokens when a whole batch
    has no image, spec 6.6).

    Raises SampleError, naming the record, for whatever is wrong with it: an image that
    is missing or unreadable, no image in stage align or with `require_image`, an empty
    or too long answer.
    """
    try:
        return _encode(record, encoding, layout)
    except Exception as error:
        named = repr(record.id) in str(error)
        text = str(error) if named else f"sample {record.id!r}: {error}"
        raise SampleError(text) from error


def encode_questions(
    record: Record, encoding: Encoding, layout: QueryLayout
) -> TokenSequence:
    """What the fusion decoder reads of a record after its vision tokens."""
    return fusion_sequence(
        record,
        encoding.fusion_tokenizer,
        layout,
        question=encoding.question,
        template=encoding.template if encoding.question == "templated" else None,
        fixed_text=encoding.fixed_text,
    )


def _encode(record: Record, encoding: Encoding, layout: QueryLayout) -> Encoded:
    align = encoding.stage == "align"
    if record.image is None:
        if align or encoding.require_image:
            raise ValueError(
                f"sample {record.id!r} has no image, but stage {encoding.stage} needs "
                "one here (align always, the others with require_image=True). Give "
                "the image or leave the sample out of the data."
            )
        size = encoding.view_size
        crops = np.zeros((0, size, size, 3), np.float32)
    else:
        picture = load_image(record.image, sample_id=record.id)
        crops = make_views(
            picture,
            view_size=encoding.view_size,
            max_local_views=encoding.max_local_views,
            sample_id=record.id,
        )
        if not encoding.prompts:
            record = _remapped(record, *picture.size, encoding.view_size)
    fusion = encode_questions(record, encoding, layout)
    if not (encoding.prompts or record.turns[-1].answer):
        raise ValueError(
            f"sample {record.id!r}: its last answer is empty, so there is nothing to "
            "train on. Give the answer, or encode prompts with prompts=True."
        )
    if align:
        assert encoding.max_answer_length is not None
        answers = answer_sequences(
            record,
            encoding.fusion_tokenizer,
            max_length=encoding.max_answer_length,
            truncate=encoding.truncate_answers,
        )
        return Encoded(record.id, crops, fusion, answers=tuple(answers))
    assert encoding.llm_tokenizer is not None and encoding.template is not None
    llm = llm_sequence(record, encoding.llm_tokenizer, encoding.template, layout)
    return Encoded(record.id, crops, fusion, llm=llm)


def _remapped(record: Record, width: int, height: int, view_size: int) -> Record:
    moved = partial(remap_boxes, width=width, height=height, view_size=view_size)
    turns = tuple(
        turn._replace(question=moved(turn.question), answer=moved(turn.answer))
        for turn in record.turns
    )
    return record._replace(turns=turns)
