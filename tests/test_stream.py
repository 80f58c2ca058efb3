"""A growing row: what is read again, what is not, and answers as text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax import generate
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLM, LLMConfig, unstack
from vtscale_jax.rotary import RopeScaling
from vtscale_jax.stream import (
    ConversationError,
    Reply,
    Row,
    Vectors,
    padded_length,
)

TOKENIZER = build_tokenizer()
SIZE = len(TOKENIZER)
BLOCKS = BlockConfig(24, 40, 6, 2, num_kv_heads=2, rope_theta=500.0, stacked=False)
CONFIG = LLMConfig(SIZE, BLOCKS)
NEVER = (SIZE,)
PROMPT = [1, 9, 14, 30, 22]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(5)
    stacked = dataclasses.replace(BLOCKS, stacked=True)
    model = LLM(dataclasses.replace(CONFIG, blocks=stacked))

    def run(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda key: model.init(key, ids, method=run), jax.random.key(0)
    )["params"]
    return unstack(
        jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
            shapes,
        )
    )


def row_of(params, eos_ids=NEVER, config=CONFIG, **more):
    return Row(params, config, eos_ids=eos_ids, **more)


def said(row, most):
    return [token for chunk in row.write(most) for token in chunk]


def test_an_answer_comes_in_chunks_and_is_the_one_made_at_once(params):
    row = row_of(params)
    assert row.read(PROMPT, 20) == 5
    chunks = list(row.write(20))
    assert [len(chunk) for chunk in chunks] == [1, 8, 8, 3]
    at_once = functools.partial(
        generate.generate, config=CONFIG, max_new_tokens=20, eos_ids=NEVER
    )
    whole = jax.jit(at_once)(params, jnp.array([PROMPT]), jnp.ones((1, 5), bool))
    assert sum(chunks, []) == np.asarray(whole)[0].tolist()


def test_only_what_is_new_is_read_and_the_answer_is_that_of_a_new_row(params):
    row = row_of(params)
    row.read(PROMPT, 12)
    first = said(row, 12)
    follow = [*PROMPT, *first, 7, 8]
    # The last token that was made had not been read yet.
    assert row.ids == (*PROMPT, *first[:-1])
    assert row.read(follow, 30) == 3
    # Room for more was made on the way, and nothing was lost.
    answer = said(row, 30)
    fresh = row_of(params)
    assert fresh.read(follow, 30) == len(follow)
    assert said(fresh, 30) == answer
    # Another answer than the one given: from there on all is read anew.
    other = [*PROMPT, *first[:4], 11, 12, 13]
    assert row.read(other, 5) == 3
    fresh = row_of(params)
    fresh.read(other, 5)
    assert said(row, 5) == said(fresh, 5)
    # The same again: one token is read for its logits.
    assert row.read(other, 5) == 1
    # Negative control: what was said before matters.
    changed = [*PROMPT[:-1], 23, *first, 7, 8]
    fresh = row_of(params)
    fresh.read(changed, 30)
    assert said(fresh, 30) != answer


def test_vectors_stand_in_their_places_also_in_a_later_turn(params):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 24)).astype(np.float32)
    first = [1, 2, 2, 9, 14]
    row = row_of(params)
    row.read(first, 8, Vectors(values[:2], np.array([1, 2])))
    answer = said(row, 3)
    whole = [*first, *answer, 2, 2, 30, 22]
    places = np.array([1, 2, 8, 9])
    assert row.read(whole, 8, Vectors(values, places)) == 5
    follow = said(row, 8)
    fresh = row_of(params)
    fresh.read(whole, 8, Vectors(values, places))
    assert said(fresh, 8) == follow
    for wrong in (np.array([1, 2, 9, 8]), np.array([2, 1, 8, 9])):
        fresh = row_of(params)
        fresh.read(whole, 8, Vectors(values, wrong))
        if said(fresh, 8) != follow:
            break
    else:
        pytest.fail("the places of the vectors do not matter")


def test_an_interrupted_answer_is_read_again(params, monkeypatch):
    row = row_of(params)
    row.read(PROMPT, 100)
    chunks = row.write(20)
    begun = next(chunks) + next(chunks)

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(chunks)
    monkeypatch.undo()
    assert row.ids == ()
    # The caches are made anew, and smaller; they grow again when they must.
    row.read(PROMPT, 2)
    assert said(row, 2) == begun[:2]
    long = [*PROMPT] * 12
    row.read(long, 40)
    fresh = row_of(params)
    fresh.read(long, 40)
    assert said(row, 40) == said(fresh, 40)
    follow = [*PROMPT, *begun, 7]
    row.read(follow, 9)
    fresh = row_of(params)
    fresh.read(follow, 9)
    assert said(row, 9) == said(fresh, 9)


def test_an_interrupted_question_leaves_nothing_behind(params, monkeypatch):
    row = row_of(params)
    row.read(PROMPT, 9)

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    for name in ("read", "begin", "read"):
        monkeypatch.setattr(generate, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            row.read([*PROMPT, 7], 9)
        monkeypatch.undo()
        assert row.ids == ()
    assert row.read([*PROMPT, 7], 9) == 6
    fresh = row_of(params)
    fresh.read([*PROMPT, 7], 9)
    assert said(row, 9) == said(fresh, 9)


def test_an_answer_is_made_once_and_only_in_its_room(params):
    row = row_of(params)
    row.read(PROMPT, 9)
    with pytest.raises(ConversationError, match="for 32 in all"):
        next(row.write(40))
    said(row, 9)
    with pytest.raises(AssertionError, match="read comes first"):
        next(row.write(9))


def test_the_first_token_is_there_when_read_returns(params, monkeypatch):
    """Its time is that of reading, not of the answer's first piece."""
    row, real, waited = row_of(params), jax.block_until_ready, []
    monkeypatch.setattr(
        jax, "block_until_ready", lambda tree: (waited.append(1), real(tree))[1]
    )
    row.read(PROMPT, 9)
    assert waited


def test_an_answer_ends_at_an_end_token_and_goes_on_after_it(params):
    free = row_of(params)
    free.read(PROMPT, 20)
    tokens = said(free, 20)
    # One that comes first within a chunk, not at the end of one.
    firsts = [i for i in range(2, 16) if tokens.index(tokens[i]) == i and i % 8]
    end, stop = tokens[firsts[-1]], firsts[-1] + 1
    row = row_of(params, eos_ids=(end,))
    row.read(PROMPT, 20)
    assert said(row, 20) == tokens[:stop]
    follow = [*PROMPT, *tokens[:stop], 7]
    assert row.read(follow, 9) == 2


def test_a_row_longer_than_the_model_was_trained_for_is_refused(params):
    row = row_of(params, limit=24)
    row.read(PROMPT, 19)
    with pytest.raises(ConversationError, match=r"5 tokens and asks for 20 more.*24"):
        row.read(PROMPT, 20)
    with pytest.raises(ConversationError, match="empty prompt"):
        row.read([], 20)
    assert row.read([*PROMPT, 7], 3) == 1  # and nothing was lost


def test_long_rope_reads_anew_when_a_row_outgrows_its_original_length(params):
    short = tuple(np.linspace(1, 1.2, 2))
    scaling = RopeScaling(
        "longrope", original_length=64, factors=short, long_factors=(2.0, 9.0)
    )
    blocks = dataclasses.replace(BLOCKS, rope_scaling=scaling)
    config = LLMConfig(SIZE, blocks)
    row = row_of(params, config=config)
    assert row.read(PROMPT, 8) == 5
    tokens = said(row, 8)
    follow = [*PROMPT, *tokens, 7]
    assert row.read(follow, 70) == len(follow)
    fresh = row_of(params, config=config)
    fresh.read(follow, 70)
    assert said(row, 70) == said(fresh, 70)


def test_rounding_up_does_not_make_a_row_long(params):
    """40 places round up to 64, but a row of 40 is not longer than 50."""
    short, long = (1.0, 1.1), (2.0, 9.0)
    scaling = RopeScaling(
        "longrope", original_length=50, factors=short, long_factors=long
    )
    blocks = dataclasses.replace(BLOCKS, rope_scaling=scaling)
    never_long = dataclasses.replace(scaling, original_length=1000)
    other = dataclasses.replace(BLOCKS, rope_scaling=never_long)
    answers = []
    for each in (blocks, other):
        row = row_of(params, config=LLMConfig(SIZE, each))
        row.read(PROMPT * 2, 30)
        answers.append(said(row, 30))
    assert answers[0] == answers[1]
    # Negative control: with the other list the answer is another.
    always = dataclasses.replace(scaling, original_length=1)
    row = row_of(
        params,
        config=LLMConfig(SIZE, dataclasses.replace(BLOCKS, rope_scaling=always)),
    )
    row.read(PROMPT * 2, 30)
    assert said(row, 30) != answers[0]


def test_padded_lengths_are_few():
    assert [padded_length(n) for n in (1, 32, 33, 1000, 1024, 1025, 1600)] == [
        *(32, 32, 64, 1024, 1024, 1536, 2048)
    ]
    assert [padded_length(n) for n in (257, 384, 385, 513, 769)] == [
        *(384, 384, 512, 768, 1024)
    ]
    assert len({padded_length(n) for n in range(1, 4096)}) == 14


class Spelled:
    """A tokenizer of single bytes, so that characters may be half made."""

    def decode(self, token_ids, *, skip_special_tokens):
        return bytes(token_ids).decode("utf-8", errors="replace")


class Scripted:
    """A row that says what it is told to."""

    def __init__(self, text, sizes):
        self.ids, self.sizes = list(text.encode()), sizes

    def write(self, most):
        at = 0
        for size in self.sizes:
            chunk = self.ids[at : at + size]
            at += size
            if chunk:
                yield chunk


def pieces_of(text, sizes, stop=(), eos=(256,)):
    reply = Reply(Scripted(text, sizes), Spelled(), len(text.encode()), eos, stop)
    return reply, [piece.text for piece in reply]


def test_pieces_join_to_the_text_and_no_character_is_cut():
    text = "é déjà 日本 ok"
    for size in (1, 2, 3, 5):
        reply, pieces = pieces_of(text, [size] * 40)
        assert "".join(pieces) == reply.text == text
        assert "\ufffd" not in "".join(pieces)
        assert reply.ended == "length"


def test_stop_strings_are_found_across_pieces_and_never_shown():
    text = "one two STOP three"
    for size in (1, 2, 3, 7, 50):
        reply, pieces = pieces_of(text, [size] * 40, stop=["STOP", "zzz"])
        assert "".join(pieces) == reply.text == "one two "
        assert reply.ended == "stop"
    # The one that comes first in the text, not in the list.
    reply, pieces = pieces_of("a THEN b STOP c", [50], stop=["STOP", "THEN"])
    assert "".join(pieces) == reply.text == "a "
    # What only begins like a stop string is shown in the end.
    reply, pieces = pieces_of("one two STO", [1] * 40, stop=["STOP"])
    assert "".join(pieces) == reply.text == "one two STO"
    assert reply.ended == "length"


def test_an_end_token_is_no_text():
    reply, pieces = pieces_of("ab!", [1, 2], eos=(ord("!"),))
    assert "".join(pieces) == "ab" and reply.ended == "end"
    assert reply.ids == [97, 98, 33]
