"""A record to its views and token sequences: one sample, ready to be batched."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from vtscale_jax.collate import STAGE_AXES, Encoded
from vtscale_jax.fast_views import load_reduced, make_fast_views
from vtscale_jax.images import ImageLike, load_image
from vtscale_jax.templates import check_template
from vtscale_jax.tokens import (
    QueryLayout,
    Tokenizer,
    answer_sequences,
    fusion_sequence,
    llm_sequence,
)
from vtscale_jax.types import Record, TokenSequence
from vtscale_jax.views import make_views, remap_boxes

# How views are made -> the dtype of crops.
VIEWS: dict[str, Any] = {"exact": np.float32, "fast": np.uint8}


def crop_dtype(views: str) -> Any:
    """The dtype of crops for a setting of `data.views`; ValueError for another."""
    if views not in VIEWS:
        raise ValueError(f"data.views is {views!r}, expected one of {tuple(VIEWS)}.")
    return VIEWS[views]


class SampleError(ValueError):
    """A record that cannot be turned into a sample; the message names it."""


@dataclass(frozen=True)
class Encoding:
    """How records become samples; constant over a run (the layout may vary by step).

    `stage` says what is built: "align" answers for the text tower, "finetune" and
    "adapt" the LLM sequence. `question`, `fixed_text`: see `tokens.fusion_sequence`.
    `view_size` in pixels. `views` "exact" has the pixels of the authors' code, "fast"
    nearly those in less time (`fast_views`). With `prompts` the last answer may be
    empty and boxes keep the image's coordinates, as the reference does in inference.
    """

    stage: str
    fusion_tokenizer: Tokenizer
    view_size: int
    max_local_views: int
    views: str = "exact"
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
        crop_dtype(self.views)
        needed = ["llm_tokenizer", "template"]
        if self.stage == "align":
            needed = ["max_answer_length"]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"stage {self.stage} needs {name}, which is None.")
        if self.template is not None:
            check_template(self.template)

    @property
    def crop_dtype(self) -> Any:
        """Of the crops of samples and batches."""
        return crop_dtype(self.views)


class Seen(NamedTuple):
    """The views of an image, and the size in pixels that the image has as a file."""

    crops: Float32[np.ndarray, "V view view 3"] | UInt8[np.ndarray, "V view view 3"]
    width: int
    height: int


def see(image: ImageLike, encoding: Encoding, sample_id: str = "") -> Seen:
    """The views of an image as a run has them: normalised float32 if they are exact,
    uint8 if they are fast. ImageError as of `views.make_views`."""
    sizes = {
        "view_size": encoding.view_size,
        "max_local_views": encoding.max_local_views,
        "sample_id": sample_id,
    }
    if encoding.views == "fast":
        reduced = load_reduced(image, **sizes)
        crops = make_fast_views(reduced, **sizes)
        return Seen(crops, reduced.width, reduced.height)
    picture = load_image(image, sample_id=sample_id)
    return Seen(make_views(picture, **sizes), *picture.size)


def encode(
    record: Record,
    encoding: Encoding,
    layout: QueryLayout,
    see: Callable[[ImageLike, Encoding, str], Seen] = see,
) -> Encoded:
    """One record -> its views and token sequences.

    In training, boxes in questions and answers are moved to the coordinates of the
    padded square first (spec 2.3). A sample without image trains the LLM on its answers
    like any other (the reference switches to a loss over all tokens when a whole batch
    has no image, spec 6.6). `see` makes the views of its image.

    Raises SampleError, naming the record, for whatever is wrong with it: an image that
    is missing or unreadable, no image in stage align or with `require_image`, an empty
    or too long answer.
    """
    try:
        return _encode(record, encoding, layout, see)
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


def empty_sample(name: str, encoding: Encoding) -> Encoded:
    """A sample that takes no place in a batch: its row is padding, and has no loss."""
    size = encoding.view_size
    crops = np.zeros((0, size, size, 3), encoding.crop_dtype)
    nothing = TokenSequence(np.zeros(0, np.int32), np.zeros(0, np.int32))
    if encoding.stage == "align":
        return Encoded(name, crops, nothing, answers=())
    return Encoded(name, crops, nothing, llm=nothing)


def _encode(
    record: Record,
    encoding: Encoding,
    layout: QueryLayout,
    see: Callable[[ImageLike, Encoding, str], Seen],
) -> Encoded:
    align = encoding.stage == "align"
    if record.image is None:
        if align or encoding.require_image:
            raise ValueError(
                f"sample {record.id!r} has no image, but stage {encoding.stage} needs "
                "one here (align always, the others with require_image=True). Give "
                "the image or leave the sample out of the data."
            )
        size = encoding.view_size
        crops = np.zeros((0, size, size, 3), encoding.crop_dtype)
    else:
        crops, width, height = see(record.image, encoding, record.id)
        if not encoding.prompts:
            record = _remapped(record, width, height, encoding.view_size)
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
