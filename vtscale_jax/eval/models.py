"""What an evaluation asks of a model, and what it gets back.

A run of this package, LLaVA with or without a token reducer, and anything else that
answers questions about images stand behind one interface, so that all are asked the
same, cut at the same length and counted alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image


class Question(NamedTuple):
    """One item of a task: its images (RGB, may be none), then the text.

    At most `max_new_tokens` tokens are generated, greedily.
    """

    images: tuple[Image.Image, ...]
    text: str
    max_new_tokens: int


class Answer(NamedTuple):
    """What a model said, stripped of white space at both ends.

    `ended` is False when it was cut at the limit. `prompt_tokens` counts every position
    that the LLM read before the first generated token, `vision_tokens` those of them
    that stand for images. `images_seen` is how many of the question's images the model
    looked at, the first ones.
    """

    text: str
    ended: bool
    prompt_tokens: int
    vision_tokens: int
    images_seen: int


# What is left of answering a batch once the host has done its part.
Prepared = Callable[[], list[Answer]]


@runtime_checkable
class AnsweringModel(Protocol):
    """A model to be evaluated.

    `identity` says which one it is, in JSON: what is written beside its scores, and
    what an evaluation that goes on must find unchanged. `batch_size` is how many
    questions it takes at once, `batches_at_once` how many prepared batches may be
    answered at the same time, each by a thread of its own.
    """

    batch_size: int
    batches_at_once: int

    @property
    def identity(self) -> dict[str, Any]:
        """Which model it is."""
        ...

    def prepare(self, questions: Sequence[Question]) -> Prepared:
        """Reads at most `batch_size` questions on the host; the call that is returned
        has the devices answer them, in their order. Any thread may call it.

        What a question gets does not depend on those beside it. Both raise for a
        question that cannot be answered (too long for the model's positions, no image
        where one is needed)."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to at most `batch_size` questions, in their order."""
        return self.prepare(questions)()
