"""How LLaVA is asked: texts and ids by style, and images as pixels."""

import numpy as np
import pytest
from PIL import Image
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.eval.baselines.pixels import MEAN_COLOUR, PixelsError, prepare
from vtscale_jax.eval.baselines.prompt import (
    STYLES,
    PromptError,
    prompt_ids,
    prompt_text,
)
from vtscale_jax.views import CLIP_MEAN, CLIP_STD

QUESTION = "What is it?\nAnswer shortly."
SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the {0}'s questions. "
)
IMAGE_ID = 3


def fast(model, *, normalizer=None, split):
    """A tokenizer that puts ⟨bos⟩ in front of every text, as a Llama's does."""
    made = Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizer, split
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def letter_tokenizer():
    """Every character is a token, and in front of a text comes a space that nobody
    wrote: what SentencePiece does."""
    special = ["<unk>", "<s>", "</s>", "<image>"]
    ids = {
        **{w: i for i, w in enumerate(special)},
        **{chr(i): i for i in range(9, 127)},
    }
    return fast(
        WordLevel(ids, unk_token="<unk>"),
        normalizer=normalizers.Prepend(" "),
        split=pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
    )


def letters(text):
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("hf", f"USER: <image>\n{QUESTION} ASSISTANT:"),
        ("vicuna_v1", SYSTEM.format("user") + f"USER: <image>\n{QUESTION} ASSISTANT:"),
        # Two spaces before the image, one behind it, one at the very end.
        ("human", SYSTEM.format("human") + f"USER:  <image> {QUESTION} ASSISTANT: "),
        ("plain", f"<s><image>{QUESTION} answer :"),
    ],
)
def test_texts(style, expected):
    assert prompt_text(style, QUESTION, has_image=True) == expected
    without = prompt_text(style, QUESTION, has_image=False)
    assert "<image>" not in without
    assert without in (
        expected.replace(" <image> ", ""),
        expected.replace("<image>\n", ""),
        expected.replace("<image>", ""),
    )


@pytest.mark.parametrize("style", ["vicuna_v1", "human"])
def test_pieces_are_texts_of_their_own_with_one_bos(style):
    """Before and behind the image each begins with a space of its own."""
    before, after = prompt_text(style, QUESTION, has_image=True).split("<image>")
    found = prompt_ids(style, QUESTION, letter_tokenizer(), has_image=True)
    assert found.before == [1, *letters(f" {before}")]
    assert found.after == letters(f" {after}")
    alone = prompt_ids(style, QUESTION, letter_tokenizer(), has_image=False)
    text = prompt_text(style, QUESTION, has_image=False)
    assert alone == ([1, *letters(f" {text}")], [])


def hf_tokenizer():
    """Every word is a token, and so is `<image>`."""
    words = "<unk> <s> </s> <image> USER: What is it? ASSISTANT:".split()
    ids = {word: number for number, word in enumerate(words)}
    model = WordLevel(ids, unk_token="<unk>")
    return fast(model, split=pre_tokenizers.WhitespaceSplit())


def test_the_whole_text_is_cut_at_the_images_own_token():
    tokenizer = hf_tokenizer()
    found = prompt_ids(
        "hf", "What is it?", tokenizer, has_image=True, image_token_id=IMAGE_ID
    )
    assert found == ([1, 4], [5, 6, 7, 8])
    alone = prompt_ids("hf", "What is it?", tokenizer, has_image=False)
    assert alone == ([1, 4, 5, 6, 7, 8], [])
    for wrong in (None, 7777):
        with pytest.raises(PromptError, match="got 0 tokens with image_token_id"):
            prompt_ids("hf", "it?", tokenizer, has_image=True, image_token_id=wrong)


@pytest.mark.parity
def test_the_same_ids_and_pixels_as_transformers_processor():
    """Its chat template's text, its one `<image>` grown to as many as there are
    vectors."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    tokenizer = hf_tokenizer()
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = prompt_text("hf", "What is it?", has_image=True)
    image = stripes(91, 60)
    theirs = processor(images=image, text=text, return_tensors="np")
    before, after = prompt_ids(
        "hf", "What is it?", tokenizer, has_image=True, image_token_id=IMAGE_ID
    )
    assert theirs["input_ids"][0].tolist() == [*before, *[IMAGE_ID] * 16, *after]
    pixels = prepare(image, 56, "crop").transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, theirs["pixel_values"][0], atol=1e-6)


def test_the_tiny_models_words():
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    found = prompt_ids("plain", "read every digit", tokenizer, has_image=True)
    words = ["read", "every", "digit", "answer", ":"]
    assert found == ([ids["<s>"]], [ids[word] for word in words])
    alone = prompt_ids("plain", "read every digit", tokenizer, has_image=False)
    assert alone == ([ids["<s>"], *found.after], [])


@pytest.mark.parametrize("style", STYLES)
def test_what_cannot_be_asked(style):
    with pytest.raises(PromptError, match="which holds '<image>'"):
        prompt_text(style, "what <image> ?", has_image=True)
    with pytest.raises(PromptError, match=r"prompt: got 'v2', expected one of \('hf'"):
        prompt_text("v2", "what", has_image=True)


def raw(pixels):
    """Pixels of 0…255 again."""
    scaled = pixels * np.float32(CLIP_STD) + np.float32(CLIP_MEAN)
    return np.rint(scaled * 255).astype(int)


def stripes(width, height):
    """An image whose red channel is the column and green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_the_middle_of_a_long_image_is_seen():
    for image, top, left in (
        (stripes(31, 12), 0, 9),  # (31 − 12) // 2
        (stripes(12, 31), 9, 0),
    ):
        found = raw(prepare(image, 12, "crop"))
        assert found.shape == (12, 12, 3)
        np.testing.assert_array_equal(found[0, :, 0], left + np.arange(12))
        np.testing.assert_array_equal(found[:, 0, 1], top + np.arange(12))


def test_padding_shows_all_of_it_on_the_mean_colour():
    found = raw(prepare(stripes(31, 12), 31, "pad"))
    np.testing.assert_array_equal(found[9:21], np.asarray(stripes(31, 12)))
    for edge in (found[:9], found[21:]):
        assert (edge == MEAN_COLOUR).all()
    tall = raw(prepare(stripes(12, 31), 31, "pad"))
    np.testing.assert_array_equal(tall[:, 9:21], np.asarray(stripes(12, 31)))


def test_a_square_is_the_same_in_both():
    image = stripes(40, 40)
    for side in (40, 17, 56):
        np.testing.assert_array_equal(
            prepare(image, side, "crop"), prepare(image, side, "pad")
        )
    wide = stripes(41, 40)
    assert np.any(prepare(wide, 17, "crop") != prepare(wide, 17, "pad"))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(336, 336), (500, 333), (91, 640), (17, 5)])
def test_the_same_pixels_as_clips_processor(size):
    from transformers import CLIPImageProcessorPil

    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    image = Image.fromarray(pixels)
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    found = prepare(image, 336, "crop").transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_that_cannot_be_prepared():
    with pytest.raises(PixelsError, match=r"pixels: got 'stretch', expected one of"):
        prepare(stripes(5, 5), 5, "stretch")
    with pytest.raises(PixelsError, match="got 0 × 4 pixels"):
        prepare(Image.new("RGB", (0, 4)), 5, "crop")
