"""Questions as LLaVA reads them: the text, and the ids around the image (spec A.5).

    hf         transformers' chat template, tokenised whole
    vicuna_v1  the original evaluation's, with its system text
    human      what the authors of paper 2412.18387 ran the pruners with: "human" in
               place of "user", and spaces doubled around the image and at the end
    plain      the tiny model's: the words of the question, then "answer :"

The last three are tokenised piece by piece around the image, each piece as a text of
its own (a SentencePiece tokenizer puts a space before it), with the one ⟨bos⟩ in front.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

IMAGE = "<image>"
_ASKER = (
    "A chat between a curious {who} and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)


class PromptStyle(NamedTuple):
    """`image` stands before the question where there is one; `whole` texts are
    tokenised at once, the image's own token in them."""

    opening: str
    image: str
    closing: str
    whole: bool = False


STYLES = {
    "hf": PromptStyle("USER: ", f"{IMAGE}\n", " ASSISTANT:", whole=True),
    "vicuna_v1": PromptStyle(
        f"{_ASKER.format(who='user')} USER: ", f"{IMAGE}\n", " ASSISTANT:"
    ),
    "human": PromptStyle(
        f"{_ASKER.format(who='human')} USER: ", f" {IMAGE} ", " ASSISTANT: "
    ),
    "plain": PromptStyle("<s>", IMAGE, " answer :"),
}


class PromptError(ValueError):
    """A question that cannot be asked in a style, or a style that is not known."""


class PromptIds(NamedTuple):
    """Ids before the image and behind it; without an image `after` is empty."""

    before: list[int]
    after: list[int]


def check_style(style: str) -> PromptStyle:
    """The style of that name; PromptError, listing those there are, for another."""
    if style not in STYLES:
        raise PromptError(f"prompt: got {style!r}, expected one of {tuple(STYLES)}")
    return STYLES[style]


def prompt_text(style: str, question: str, *, has_image: bool) -> str:
    """The whole prompt as text, the image as `<image>`.

        prompt_text("hf", "What is shown?", has_image=True)
        -> "USER: <image>\\nWhat is shown? ASSISTANT:"

    Raises PromptError for an unknown style, and for a question with `<image>` in it,
    which would be taken for an image.
    """
    opening, image, closing, _ = check_style(style)
    if IMAGE in question:
        raise PromptError(
            f"question: got {question!r}, which holds {IMAGE!r}, the mark of the place "
            "of an image; expected a text without it"
        )
    return f"{opening}{image if has_image else ''}{question}{closing}"


def prompt_ids(
    style: str,
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    has_image: bool,
    image_token_id: int | None = None,
) -> PromptIds:
    """The ids of a prompt around the place of its image.

    `image_token_id` is the tokenizer's id of `<image>`, which style "hf" needs. Raises
    PromptError as `prompt_text` does, and when the image is not found where it should
    be.
    """
    text = prompt_text(style, question, has_image=has_image)
    bos: Any = tokenizer.bos_token_id
    if style == "plain":  # its ⟨bos⟩ is written out, and a tokenizer adds none
        pieces = [
            list(tokenizer.encode(piece, add_special_tokens=False))
            for piece in text.split(IMAGE)
        ]
    elif check_style(style).whole:
        pieces = _cut(list(tokenizer.encode(text)), image_token_id, has_image)
    else:
        pieces = [list(tokenizer.encode(piece)) for piece in text.split(IMAGE)]
        # Every piece came with a ⟨bos⟩ of its own; the first one is kept.
        pieces[1:] = [ids[ids[:1] == [bos] :] for ids in pieces[1:]]
    return PromptIds(pieces[0], pieces[1] if has_image else [])


def _cut(
    ids: Sequence[int], image_token_id: int | None, has_image: bool
) -> list[list[int]]:
    """Ids before and behind the image's."""
    if not has_image:
        return [list(ids)]
    places = [place for place, one in enumerate(ids) if one == image_token_id]
    if image_token_id is None or len(places) != 1:
        raise PromptError(
            f"prompt 'hf': got {len(places)} tokens with image_token_id "
            f"{image_token_id} in {list(ids)}, expected one; give the tokenizer of a "
            f"llava-hf folder, in which {IMAGE} is a token, or another prompt style "
            "(vicuna_v1)"
        )
    return [list(ids[: places[0]]), list(ids[places[0] + 1 :])]
