"""Conversations about a page with the shipped model, and in text."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from configs.base import with_queries
from vtscale_jax import settings
from vtscale_jax.assemble import assemble, family_questions, prompts_encoding
from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import collate
from vtscale_jax.conversation import (
    Answering,
    ConversationError,
    ImageConversation,
    TextConversation,
)
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.encoding import encode
from vtscale_jax.eval.decoding import greedy
from vtscale_jax.llm import unstack
from vtscale_jax.stages import get_stage
from vtscale_jax.tokens import end_ids
from vtscale_jax.types import Turn
from vtscale_jax.weights import starting

M, N = 16, 4


class Model:
    """The shipped base as a run would have it, with N = 4 for follow-up questions."""

    def __init__(self):
        config = with_queries(M)("")
        with config.unlocked():
            config.num_followup_queries = N
        self.config = config
        self.model = settings.model_config(config, "float32")
        self.parts = assemble(config, self.model.vision)
        stage = get_stage("adapt")
        self.params, _ = starting.starting_params(
            stage, self.model, config.weights.to_dict(), 0
        )
        self.encoding = prompts_encoding(self.parts)
        self.layout = self.parts.layout(M)
        apart = dataclasses.replace(self.model.llm.blocks, stacked=False)
        llm = dataclasses.replace(self.model.llm, blocks=apart)
        self.generating = dataclasses.replace(self.model, llm=llm)
        self.apart = {**self.params, "llm": unstack(dict(self.params["llm"]))}
        self.eos = end_ids(self.parts.llm_tokenizer)

    def conversation(self, image, most=24, **changes):
        return ImageConversation(
            self.apart,
            self.generating,
            dataclasses.replace(self.encoding, **changes),
            self.layout,
            image,
            Answering(most=most, eos_ids=self.eos),
        )

    def answer_anew(self, record, most=24):
        """The answer to a whole conversation by the path of the evaluation."""
        sample = encode(record, self.encoding, self.layout)
        spec = fit_buckets(
            [sample], batch_size=1, tokens_per_crop=self.parts.tokens_per_crop
        )
        tokens = greedy(
            self.params,
            collate([sample], spec),
            config=self.model,
            max_new_tokens=most,
            eos_id=self.eos[0],
        )
        row = np.asarray(tokens)[0].tolist()
        row = row[: row.index(self.eos[0])] if self.eos[0] in row else row
        return self.parts.llm_tokenizer.decode(row)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def records(model):
    return family_questions(model.config, 3, "quick")


def answer(conversation, question):
    reply = conversation.ask(question)
    text = "".join(piece.text for piece in reply)
    assert text == reply.text
    return text


def test_follow_ups_are_answered_as_the_whole_conversation_read_anew(model, records):
    read = next(r for r in records if r.turns[-1].family == "read")
    questions = [
        read.turns[-1].question,
        *[r.turns[-1].question for r in records if r.turns[-1].family == "locate"][:2],
        read.turns[-1].question,
    ]
    conversation = model.conversation(np.asarray(read.image))
    turns = []
    for question in questions:
        said = answer(conversation, question)
        asked = read._replace(turns=(*turns, Turn(question, "")))
        assert said == model.answer_anew(asked), question
        turns.append(Turn(question, said))
        timing = conversation.timing
        first = len(turns) == 1
        assert (timing.views > 0) == (timing.vision > 0) == first
        assert (timing.transfer > 0) == first
        assert timing.text > 0 and timing.fusion > 0 and timing.prefill > 0
        assert timing.first_token == sum(timing.parts.values())
        # A follow-up costs its own tokens: its N slots, its words, the end before it.
        assert first or timing.num_read < 40 < timing.num_tokens
    # The page is seen (M = 16 without adaptation misreads a digit here and there).
    pairs = zip(turns[0].answer.split(), read.turns[-1].answer.split(), strict=True)
    right = [ours == theirs for ours, theirs in pairs]
    assert sum(right) >= len(right) - 1


def test_without_its_earlier_questions_a_follow_up_is_another_input(model, records):
    """Negative control: the fusion cache of the questions before matters."""
    read = next(r for r in records if r.turns[-1].family == "read")
    conversation = model.conversation(np.asarray(read.image))
    answer(conversation, read.turns[-1].question)
    kept = np.asarray(conversation._vectors)
    answer(conversation, "how many digits are on the page ?")
    second = np.asarray(conversation._vectors)[len(kept) :]
    assert second.shape[0] == N
    alone = model.conversation(np.asarray(read.image))
    answer(alone, "how many digits are on the page ?")
    assert np.abs(np.asarray(alone._vectors)[: N - 1] - second[: N - 1]).max() > 1e-2


def test_an_image_file_an_array_and_none(model, records, tmp_path):
    record = records[0]
    file = tmp_path / "page.png"
    Image.fromarray(np.asarray(record.image)).save(file)
    question = record.turns[-1].question
    seen = answer(model.conversation(str(file)), question)
    assert seen == answer(model.conversation(np.asarray(record.image)), question)
    with pytest.raises(ConversationError, match="--image"):
        model.conversation(None)
    # Where a run may do without, there are no query tokens: the LLM is alone.
    blind = model.conversation(None, require_image=False)
    llm = model.apart["llm"], model.generating.llm
    row = Answering(eos_ids=model.eos).row(*llm)
    text = f"<s>{question} answer :"
    row.read(model.parts.llm_tokenizer.encode(text, add_special_tokens=False), 24)
    said = [token for chunk in row.write(24) for token in chunk]
    decode = model.parts.llm_tokenizer.decode
    assert answer(blind, question) == decode(said, skip_special_tokens=True)
    assert blind.timing.vision == blind.timing.fusion == 0


def test_an_interrupted_question_is_fused_anew(model, records, monkeypatch):
    record = records[0]
    question = record.turns[-1].question
    conversation = model.conversation(np.asarray(record.image))
    first = answer(conversation, question)
    module = __import__("vtscale_jax.conversation", fromlist=["fuse"])

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fuse", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask(question)
    monkeypatch.undo()
    second = answer(conversation, question)
    turns = (Turn(question, first), Turn(question, ""))
    assert second == model.answer_anew(record._replace(turns=turns))


def test_what_cannot_be_read_is_said(model, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.png.*no such file"):
        model.conversation(str(tmp_path / "missing.png")).ask("how many digits ?")


def test_a_question_without_answer_is_left_out(model, records):
    record = records[0]
    question = record.turns[-1].question
    conversation = model.conversation(np.asarray(record.image))
    conversation.ask("how many digits are on the page ?")  # its answer is not taken
    alone = model.conversation(np.asarray(record.image))
    assert answer(conversation, question) == answer(alone, question)
    assert np.array_equal(conversation._vectors, alone._vectors)


def test_a_question_that_was_interrupted_leaves_no_trace(model, records, monkeypatch):
    record = records[0]
    question = record.turns[-1].question
    conversation = model.conversation(np.asarray(record.image))
    first = answer(conversation, question)

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation._row, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("how many digits are on the page ?")
    monkeypatch.undo()
    turns = (Turn(question, first), Turn(question, ""))
    asked = record._replace(turns=turns)
    assert answer(conversation, question) == model.answer_anew(asked)


def test_what_is_too_long_is_refused_before_anything_is_fused(
    model, records, monkeypatch
):
    record = records[0]
    question = record.turns[-1].question
    conversation = model.conversation(np.asarray(record.image))
    conversation._row._limit = 30
    with pytest.raises(ConversationError, match="the model has 30 positions"):
        conversation.ask(question)
    assert conversation._caches is None
    module = __import__("vtscale_jax.conversation", fromlist=["FUSION_ROOM"])
    monkeypatch.setattr(module, "FUSION_ROOM", 8)
    short = model.conversation(np.asarray(record.image))
    with pytest.raises(ConversationError, match="fusion decoder has room"):
        for _ in range(12):
            answer(short, question)


CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} ; {% endfor %}"
    "{% if add_generation_prompt %}answer :{% endif %}"
)


def test_text_conversations_use_the_template_and_the_cache(model):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    llm = model.generating.llm
    answering = Answering(most=6, eos_ids=(70,))  # never ends by itself

    def start(system=None):
        return TextConversation(model.apart["llm"], llm, tokenizer, answering, system)

    talk = start()
    first = answer(talk, "how many digits")
    said = answer(talk, "and now")
    assert talk.timing.num_read < talk.timing.num_tokens
    text = f"user : how many digits ; assistant : {first} ; user : and now ; answer :"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert talk.timing.num_tokens == len(ids)
    row = answering.row(model.apart["llm"], llm)
    row.read(ids, 6)
    anew = [token for chunk in row.write(6) for token in chunk]
    assert said == tokenizer.decode(anew, skip_special_tokens=True)
    talk = start("the page")
    talk.ask("how many digits")
    text = "system : the page ; user : how many digits ; answer :"
    assert talk.timing.num_tokens == len(tokenizer.encode(text))
    # A refused question and an answer that was not taken are left out.
    talk = start()
    talk.ask("not taken")
    first = answer(talk, "how many digits")
    talk._row._limit = 30
    with pytest.raises(ConversationError, match="30 positions"):
        talk.ask("how many digits are on the page and where do they all stand ?")
    talk._row._limit = None
    assert answer(talk, "and now") == said

    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ConversationError, match="roles must alternate"):
        start().ask("how many digits")

    tokenizer.chat_template = None
    with pytest.raises(ConversationError, match="no chat template"):
        start()


def test_end_tokens_come_from_tokenizer_and_config():
    tokenizer = build_tokenizer()
    assert end_ids(tokenizer, (5, 2)) == (2, 5)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        end_ids(tokenizer)
