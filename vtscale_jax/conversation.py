"""Conversations: about an image with a whole model, or in text with a language model.

Each question is answered in the light of those before. The vision tower runs once for
an image, the fusion decoder reads each question once, and the language model reads what
is new. Both kinds have

    reply = conversation.ask("What is shown?")
    for piece in reply: print(piece.text, end="")
    conversation.timing

A question that got no answer (an empty one, or one cut at its beginning by a stop
string) is left out of what follows.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from vtscale_jax.encoding import Encoding, encode_questions, see
from vtscale_jax.generate import Sampling
from vtscale_jax.images import ImageLike
from vtscale_jax.layers import empty_caches
from vtscale_jax.stream import ConversationError, Reply, Row, Vectors, padded_length
from vtscale_jax.tokens import (
    QueryLayout,
    Tokenizer,
    fusion_slots,
    llm_sequence,
    llm_slots,
)
from vtscale_jax.types import FusionInput, Kind, Record, TokenSequence, Turn
from vtscale_jax.vlm import VLM, ModelConfig, look

FUSION_ROOM = 1024  # places for follow-up questions and their queries


class Timing(NamedTuple):
    """Seconds until the first token of an answer was there, by part, and what was read.

    `text` is making tokens of the question and `views` preparing the image, both on
    the host; `transfer` is the way of the pixels to the device, `vision` the vision
    tower, `fusion` the fusion decoder with the projector, `prefill` the language
    model's reading of `num_read` of the `num_tokens` tokens of the conversation. A part
    that was not needed took 0.
    """

    views: float
    vision: float
    fusion: float
    prefill: float
    num_read: int
    num_tokens: int
    text: float = 0.0
    transfer: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, in the order in which they begin."""
        names = ("text", "views", "transfer", "vision", "fusion", "prefill")
        return {name: getattr(self, name) for name in names}

    @property
    def first_token(self) -> float:
        """All parts together: the time to the first token."""
        return sum(self.parts.values())


class Answering(NamedTuple):
    """How answers are made: see `generate.Sampling` and `stream.Reply`.

    `limit` is the number of positions that the language model was trained for, or None
    where nobody said.
    """

    most: int = 256
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    limit: int | None = None

    def row(self, params: Mapping[str, Any], config: Any) -> Row:
        """An empty row to be answered so."""
        return Row(
            params,
            config,
            eos_ids=self.eos_ids,
            sampling=self.sampling,
            seed=self.seed,
            limit=self.limit,
        )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, computed to its end, and the seconds that took."""
    started = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - started


class TextConversation:
    """Questions to a language model, in its tokenizer's own chat template.

    Raises ConversationError where the tokenizer has none: a base model that was not
    trained to talk.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        answering: Answering,
        system: str | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConversationError(
                "the tokenizer has no chat template, so nobody knows how to put a "
                "question to this model; take an instruction-tuned one, or set "
                "chat_template in its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._answering = answering
        self._row = answering.row(params, config)
        self._said: list[dict[str, str]] = []
        if system is not None:
            self._said.append({"role": "system", "content": system})
        self._reply: Reply | None = None
        self.timing = Timing(0, 0, 0, 0, 0, 0)

    def ask(self, question: str) -> Reply:
        """Reads a question (after the answer before it has been taken); iterate over
        the reply for the answer."""
        started = time.perf_counter()
        said = list(self._said)
        if self._reply is not None and not self._reply.text:
            said.pop()
        elif self._reply is not None:
            said.append({"role": "assistant", "content": self._reply.text})
        asked = [*said, {"role": "user", "content": question}]
        try:
            text: Any = self._tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=False
            )
        except jinja2.TemplateError as error:
            raise ConversationError(
                f"the model's chat template refuses the conversation: {error}"
            ) from error
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        words = time.perf_counter() - started
        answering = self._answering
        read, seconds = timed(lambda: self._row.read(ids, answering.most))
        self._said = asked
        self.timing = Timing(0, 0, 0, seconds, read, len(ids), text=words)
        self._reply = Reply(
            self._row,
            self._tokenizer,
            answering.most,
            answering.eos_ids,
            answering.stop,
        )
        return self._reply


@functools.partial(jax.jit, static_argnames="config", donate_argnames="caches")
def fuse(
    params: Mapping[str, Any],
    inputs: FusionInput,
    tokens: jax.Array | None,
    start: jax.Array,
    caches: Any,
    *,
    config: ModelConfig,
) -> Any:
    """Query vectors of a question, and the fusion caches after it: `VLM.ask` as a
    program, to which the caches are given up."""
    return VLM(config).apply(
        {"params": params}, inputs, tokens, start, caches, method=VLM.ask
    )


class ImageConversation:
    """Questions about one image, or about none, to the whole model.

    `params` are those of a `VLM` with `config`, and `encoding` and `layout` those of
    its run: the first question has M query tokens, each later one N. Raises
    ConversationError for no image where the run had one with every question.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        config: ModelConfig,
        encoding: Encoding,
        layout: QueryLayout,
        image: ImageLike | None,
        answering: Answering,
    ) -> None:
        if image is None and encoding.require_image:
            raise ConversationError(
                "the model was trained with an image for every question: give one "
                "(--image FILE)"
            )
        self._params = {
            name: params[name] for name in ("vision", "fusion", "projector")
        }
        self._config = config
        self._encoding = encoding
        self._layout = layout
        self._answering = answering
        self._row = answering.row(params["llm"], config.llm)
        self._turns: tuple[Turn, ...] = ()
        self._reply: Reply | None = None
        self._image = image
        self._caches: Any = None
        self._fused = 0  # places of the fusion decoder's row that are filled
        self._vectors: Any = None
        self.timing = Timing(0, 0, 0, 0, 0, 0)

    def ask(self, question: str) -> Reply:
        """Reads a question (after the answer before it has been taken); iterate over
        the reply for the answer. Raises ValueError, naming what is wrong, for an image
        that cannot be read or a conversation that is too long."""
        started = time.perf_counter()
        turns = self._turns
        if self._reply is not None:
            turns = (*turns[:-1], turns[-1]._replace(answer=self._reply.text))
            if not self._reply.text:
                turns, self._caches = turns[:-1], None  # fused without it
        turns = (*turns, Turn(question, ""))
        encoding, answering = self._encoding, self._answering
        has_image = self._image is not None
        # Only whether there is an image matters to the sequences.
        record = Record("question", "image" if has_image else None, turns)
        tokenizer = cast(PreTrainedTokenizerBase, encoding.llm_tokenizer)
        sequence = llm_sequence(
            record, cast(Tokenizer, tokenizer), str(encoding.template), self._layout
        )
        self._row.check(len(sequence.ids), answering.most)  # before anything is fused
        asked = encode_questions(record, encoding, self._layout) if has_image else None
        text = time.perf_counter() - started
        views = transfer = vision = fusion = 0.0
        vectors = None
        if asked is not None:
            views, transfer, vision, fusion = self._fuse(asked, len(turns))
            vectors = Vectors(self._vectors, llm_slots(sequence))
        ids = sequence.ids.tolist()
        try:
            read, prefill = timed(lambda: self._row.read(ids, answering.most, vectors))
        except BaseException:
            self._caches = None  # this question was not asked: it is fused anew
            raise
        self._turns = turns
        self.timing = Timing(
            *(views, vision, fusion, prefill, read, len(ids)),
            text=text,
            transfer=transfer,
        )
        self._reply = Reply(
            self._row, tokenizer, answering.most, answering.eos_ids, answering.stop
        )
        return self._reply

    def _fuse(
        self, whole: TokenSequence, num_turns: int
    ) -> tuple[float, float, float, float]:
        """Appends the query vectors of the last of the questions in `whole`; the
        seconds that views, transfer, vision and fusion took."""
        tokens, views, transfer, vision = None, 0.0, 0.0, 0.0
        crops, caches = np.zeros((0, 1, 1, 3), np.float32), self._caches
        if caches is None:  # also after an interrupted question
            assert self._image is not None
            self._fused = 0
            started = time.perf_counter()
            crops = see(self._image, self._encoding).crops
            views = time.perf_counter() - started
            pixels, transfer = timed(lambda: jax.device_put(crops))
            tokens, vision = timed(
                lambda: look(self._params, pixels, config=self._config)
            )
            self._num_seen = tokens.shape[0] * tokens.shape[1]
            self._room = fusion_room(self._num_seen + len(whole.ids))
        seen = self._num_seen if tokens is not None else 0
        begun = max(self._fused - self._num_seen, 0)
        new = TokenSequence(whole.ids[begun:], whole.kinds[begun:])
        if self._fused + seen + len(new.ids) > self._room:
            raise ConversationError(
                f"the fusion decoder has room for {self._room} tokens, but the image "
                f"and {num_turns} questions need "
                f"{self._fused + seen + len(new.ids)}: begin a new conversation"
            )
        inputs = fusion_input(len(crops), seen, new)
        start = jnp.full(1, self._fused, jnp.int32)
        self._caches = None

        def fused() -> tuple[np.ndarray, Any]:
            held = caches
            if held is None:
                held = empty_caches(self._config.fusion.blocks, 1, self._room)
            vectors, after = fuse(
                self._params, inputs, tokens, start, held, config=self._config
            )
            # On the host: joined or cut on a device, each length would be a program.
            return np.asarray(vectors[0]), after

        (vectors, self._caches), fusion = timed(fused)
        self._fused += seen + len(new.ids)
        if tokens is None:
            vectors = np.concatenate([self._vectors, vectors])
        self._vectors = vectors
        return views, transfer, vision, fusion


def fusion_room(length: int) -> int:
    """Places of the fusion decoder's caches for a first question of `length` tokens,
    vision tokens included."""
    return padded_length(length) + FUSION_ROOM


def fusion_input(num_crops: int, num_seen: int, sequence: TokenSequence) -> FusionInput:
    """One row of the fusion decoder: vision tokens, if any are new, then a question."""
    used = num_seen + len(sequence.ids)
    length = num_seen + padded_length(len(sequence.ids))
    ids = np.zeros((1, length), np.int32)
    kinds = np.full((1, length), int(Kind.PAD), np.int32)
    kinds[0, :num_seen] = int(Kind.IMG)
    ids[0, num_seen:used], kinds[0, num_seen:used] = sequence
    return FusionInput(
        crops=np.zeros((0, 1, 1, 3), np.float32),  # seen already: not read again
        crop_row=np.zeros(num_crops, np.int32),
        crop_rank=np.arange(num_crops, dtype=np.int32),
        ids=ids,
        kinds=kinds,
        slots=(num_seen + fusion_slots(sequence))[None],
    )


Conversation = TextConversation | ImageConversation
