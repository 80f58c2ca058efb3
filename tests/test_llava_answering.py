"""LLaVA as a model under evaluation: batches, reducers, counts, limits."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.eval.baselines import answering
from vtscale_jax.eval.baselines.answering import (
    LlavaModel,
    QuestionError,
    Reading,
)
from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.eval.baselines.named import named
from vtscale_jax.eval.baselines.pixels import prepare
from vtscale_jax.eval.baselines.prompt import prompt_ids
from vtscale_jax.eval.baselines.reducers import ReducerError, image_key
from vtscale_jax.eval.models import AnsweringModel, Question
from vtscale_jax.generate import for_generation
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.vision import VisionConfig

TOKENIZER = build_tokenizer()
END = TOKENIZER.eos_token_id
NEW = 6
CONFIG = LlavaConfig(
    VisionConfig(
        32,
        8,
        BlockConfig(32, 48, 2, 2, activation="quick_gelu"),
        local_merge=False,
        newline=False,
        keep_class=True,
    ),
    LLMConfig(70, BlockConfig(48, 64, 4, 2, num_kv_heads=2)),
)
QUESTIONS = (
    "read all digits in order",
    "which digit is at the top left ? a 1 b 2 c 3 d 4",
    "count every 7",
    "is there any 5 ?",
    "describe the page",
)


@pytest.fixture(scope="module")
def params():
    """Random weights, large enough that answers differ and end at different places."""
    pixels = jnp.zeros((1, 32, 32, 3))
    ids = jnp.zeros((1, 20), jnp.int32)
    slots = jnp.arange(16)[None]
    made = jax.jit(Llava(CONFIG).init)(
        jax.random.key(0), pixels, ids, ids == 0, slots, ids
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.15 * rng.normal(size=leaf.shape).astype(np.float32),
        made["params"],
    )


def model(params, batch_size=1, reducer="none", n=16, config=CONFIG, **more):
    reading = Reading("plain", "crop", TOKENIZER, None, (END,), **more)
    return LlavaModel(
        params,
        config,
        reading,
        reducer=named(reducer),
        n=n,
        batch_size=batch_size,
        source={"weights": "random"},
    )


def image(number):
    pixels = np.random.default_rng(number).integers(0, 256, (37, 41, 3), np.uint8)
    return Image.fromarray(pixels)


def questions(number=8):
    """Of all lengths; every third has no image, and two show the same one."""
    return [
        Question(
            () if i % 3 == 2 else (image(i // 4),),
            QUESTIONS[i % len(QUESTIONS)],
            NEW,
        )
        for i in range(number)
    ]


def in_batches(asked, of):
    size = of.batch_size
    return [
        a for i in range(0, len(asked), size) for a in of.answer(asked[i : i + size])
    ]


LENGTH = 48


@functools.partial(jax.jit, static_argnames=("reducer", "n"))
def look(params, pixels, key, reducer, n):
    reducer = named(reducer)
    plan = reducer.settle(16, n)
    return Llava(CONFIG).apply(
        {"params": params}, pixels, key, reducer=reducer, plan=plan, method=Llava.look
    )


@jax.jit
def next_logits(params, vectors, ids, number, slots):
    """Logits behind the first `number` places of a row."""
    keep = (jnp.arange(LENGTH) < number)[None]
    hidden = Llava(CONFIG).apply(
        {"params": params}, vectors, ids, keep, slots, method=Llava.hidden
    )
    last = hidden[:, number - 1]
    return Llava(CONFIG).apply({"params": params}, last, method=Llava.logits)


def one_by_one(params, question, reducer, n):
    """The greedy answer by a whole pass for each token, without a cache."""
    before, after = prompt_ids(
        "plain", question.text, TOKENIZER, has_image=bool(question.images)
    )
    vectors, number, start = jnp.zeros((1, n, 48)), 0, LENGTH  # beyond the row
    if question.images:
        pixels = jnp.asarray(prepare(question.images[0], 32, "crop"))[None]
        key = jnp.asarray(image_key(np.asarray(question.images[0])))[None]
        vectors = look(params, pixels, key, reducer=reducer, n=n)
        number, start = n, len(before)
    row, said = [*before, *[0] * number, *after], []
    while len(said) < question.max_new_tokens and said[-1:] != [END]:
        ids = np.zeros((1, LENGTH), np.int32)
        ids[0, : len(row) + len(said)] = [*row, *said]
        slots = start + jnp.arange(n)[None]
        given = (jnp.asarray(ids), len(row) + len(said), slots)
        said.append(int(jnp.argmax(next_logits(params, vectors, *given))))
    ended = said[-1] == END
    text = TOKENIZER.decode(said[: len(said) - ended], skip_special_tokens=True)
    return text.strip(), ended, len(row), number


def test_the_interface(params):
    assert isinstance(model(params), AnsweringModel)


@pytest.mark.parametrize(("reducer", "n"), [("none", 16), ("random", 5)])
def test_answers_are_those_of_whole_passes(params, reducer, n):
    asked = questions(5)
    found = model(params, 3, reducer, n).answer(asked[:3])
    found += model(params, 3, reducer, n).answer(asked[3:])
    expected = [one_by_one(params, question, reducer, n) for question in asked]
    assert [(a.text, a.ended, a.prompt_tokens, a.vision_tokens) for a in found] == (
        expected
    )
    assert len({text for text, *_ in expected}) > 1, "all the same: nothing is tested"


def test_answers_do_not_depend_on_the_batch(params):
    asked = questions()
    alone = in_batches(asked, model(params, 1))
    assert {a.ended for a in alone} == {True, False} or len({a.text for a in alone}) > 3
    for size in (3, 8):
        assert in_batches(asked, model(params, size)) == alone
    turned = model(params, 8).answer(asked[::-1])
    assert turned[::-1] == alone
    apart, config = for_generation(jax.tree.map(jnp.copy, params), CONFIG)
    assert in_batches(asked, model(apart, 8, config=config)) == alone


def test_the_image_changes_the_answer(params):
    """Negative control of all the others."""
    asked = [Question((image(i),), QUESTIONS[0], NEW) for i in range(4)]
    answers = model(params, 4).answer(asked)
    assert len({a.text for a in answers}) > 1
    again = model(params, 4).answer([asked[0]] * 4)
    assert len(set(again)) == 1 and again[0] == answers[0]


@pytest.mark.parametrize(
    ("reducer", "n"),
    [("none", 16), ("random", 5), ("pool", 4), ("downsample", 9), ("visionzip", 12)],
)
def test_the_llm_reads_exactly_n(params, reducer, n):
    with_image, without = Question((image(0),), "read", 3), Question((), "read", 3)
    seen, text = model(params, 2, reducer, n).answer([with_image, without])
    assert (seen.vision_tokens, seen.images_seen) == (n, 1)
    assert (text.vision_tokens, text.images_seen) == (0, 0)
    # ⟨s⟩, the question's one word, "answer" and ":".
    assert (seen.prompt_tokens, text.prompt_tokens) == (4 + n, 4)


def test_a_number_that_there_is_not_is_refused(params):
    for reducer, n in (("random", 17), ("downsample", 5), ("none", 8)):
        with pytest.raises(ReducerError, match=f"n = {n} tokens were asked for"):
            model(params, 1, reducer, n)


def test_only_the_first_image_is_seen(params):
    both = Question((image(1), image(2)), QUESTIONS[0], NEW)
    first = Question((image(1),), QUESTIONS[0], NEW)
    asked = model(params, 2).answer([both, first])
    assert asked[0] == asked[1] and asked[0].images_seen == 1


def test_two_questions_about_one_image(params):
    """The very same object, which is prepared once."""
    page = image(1)
    asked = [Question((page,), text, NEW) for text in QUESTIONS[:4]]
    together = model(params, 4, "random", 5).answer(asked)
    alone = in_batches(asked, model(params, 1, "random", 5))
    assert together == alone


def test_each_question_has_its_own_limit(params):
    asked = [Question((image(0),), QUESTIONS[0], limit) for limit in (2, NEW)]
    short, long = model(params, 2).answer(asked)
    assert len(short.text.split()) <= 2 and not short.ended
    assert long.text.startswith(short.text) and long != short


def test_questions_that_are_too_long_or_too_many(params):
    question = Question((image(0),), "read", 10)
    (answer,) = model(params, 1, limit=30).answer([question])
    assert answer.prompt_tokens == 20
    with pytest.raises(QuestionError, match=r"20 positions and asks for 10.*has 29"):
        model(params, 1, limit=29).answer([question])
    with pytest.raises(QuestionError, match="got 2 questions at once, expected 1 to"):
        model(params, 1).answer([question] * 2)


def test_identity_says_everything_that_changes_an_answer(params):
    one = model(params, 1, "random", 5).identity
    assert json.loads(json.dumps(one)) == one
    assert one["reducer"]["n"] == one["vision_tokens"] == 5
    others = [
        model(params, 1, "pool", 5).identity,
        model(params, 1, "random", 6).identity,
        model(params, 1).identity,
    ]
    assert all(one != other for other in others)
    assert model(params, 8, "random", 5).identity == one, "not how fast it was asked"


def test_few_programs_are_compiled(params):
    asked = model(params, 2)
    answering._greedy.clear_cache()
    for words in (1, 2, 9, 12, 13, 20, 21, 27, 28):
        asked.answer([Question((image(0),), "read " * words, 2)])
    assert answering._greedy._cache_size() == 2  # text of up to 16 and 32 ids


def test_features_of_several_layers_have_no_reducer(params):
    config = dataclasses.replace(CONFIG, keep_class=True)
    whole = model(params, 1, config=config)
    (answer,) = whole.answer([Question((image(0),), "read", 2)])
    assert answer.vision_tokens == 17
    with pytest.raises(ReducerError, match=r"keep_class True, expected one layer"):
        model(params, 1, "random", 5, config=config).answer(
            [Question((image(0),), "read", 2)]
        )
