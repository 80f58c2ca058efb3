"""LLaVA, with a token reducer or without, as a model to be evaluated.

Every batch has the same number of rows, filled up where questions are missing. A row is
as long as the image's vectors and the smallest of a ladder of lengths that holds the
text, so that few programs are compiled whatever is asked.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32
from transformers import PreTrainedTokenizerBase

from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.eval.baselines.pixels import check_variant, prepare
from vtscale_jax.eval.baselines.prompt import PromptIds, check_style, prompt_ids
from vtscale_jax.eval.baselines.reducers import Plan, Reducer, image_key
from vtscale_jax.eval.decoding import batches_at_once
from vtscale_jax.eval.models import Answer, AnsweringModel, Prepared, Question
from vtscale_jax.eval.run_model import SHORTEST, rung
from vtscale_jax.generate import generate


class QuestionError(ValueError):
    """A question that the model cannot answer."""


class Reading(NamedTuple):
    """How a model is asked: a style of `prompt.STYLES`, a variant of `pixels.VARIANTS`,
    the tokenizer with the id of `<image>` where it has one, and the ids that end an
    answer. `limit` is the number of positions the LLM was trained for, or None."""

    prompt: str
    pixels: str
    tokenizer: PreTrainedTokenizerBase
    image_token_id: int | None
    end_ids: tuple[int, ...]
    limit: int | None = None


class Rows(NamedTuple):
    """Right-padded prompts. Vector k of row b's image stands at `slots[b, k]`, which is
    beyond the row where there is no image; then its pixels are zeros, and None when no
    row has an image."""

    pixels: Float[Any, "B height width 3"] | None
    keys: UInt32[Any, "B 2"]
    ids: Int[Any, "B S"]
    keep: Bool[Any, "B S"]
    slots: Int[Any, "B K"]


class LlavaModel(AnsweringModel):
    """The parameters of a `Llava` with `config`, asked about the first image of each
    question; a question without an image is text only.

    `n` vectors of an image are left by `reducer`. `source` says in JSON which weights
    these are. `place` brings a batch to the devices, `fetch` a result from them. Raises
    ReducerError when the reducer cannot leave `n`, PromptError and PixelsError for a
    style or variant that is not known.
    """

    def __init__(
        self,
        params: dict[str, Any],
        config: LlavaConfig,
        reading: Reading,
        *,
        reducer: Reducer,
        n: int,
        batch_size: int,
        source: dict[str, Any],
        place: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
    ) -> None:
        check_style(reading.prompt)
        check_variant(reading.pixels)
        self.plan = reducer.settle(config.num_patches, n)
        self.batch_size = batch_size
        self.batches_at_once = batches_at_once(params)
        self._params = params
        self._config = config
        self._reading = reading
        self._reducer = reducer
        self._source = source
        self._place = place
        self._fetch = fetch
        whole = config.num_tokens if reducer.name == "none" else self.plan.n
        self._num_vectors = whole
        grid = self.plan.grid or config.vision.grid
        self._side = grid * config.vision.patch_size

    @property
    def identity(self) -> dict[str, Any]:
        """Weights, prompt, pixels, dtype and the reducer with all its sizes."""
        return {
            "kind": "llava",
            **self._source,
            "prompt": self._reading.prompt,
            "pixels": self._reading.pixels,
            "dtype": self._config.llm.blocks.dtype,
            "feature_layers": list(self._config.feature_layers),
            "keep_class": self._config.keep_class,
            "reducer": dataclasses.asdict(self.plan),
            "vision_tokens": self._num_vectors,
        }

    def prepare(self, questions: Sequence[Question]) -> Prepared:
        """Encodes the questions: the call that is returned gives the greedy answers.
        QuestionError for a question that is too long for the model's positions,
        PromptError for one that cannot be asked."""
        if not 1 <= len(questions) <= self.batch_size:
            raise QuestionError(
                f"got {len(questions)} questions at once, expected 1 to batch_size "
                f"{self.batch_size}"
            )
        prompts = [self._prompt(question) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            self._check_length(question, prompt)
        rows = self._rows(questions, prompts)
        return lambda: self._answer(questions, prompts, rows)

    def _answer(
        self,
        questions: Sequence[Question],
        prompts: Sequence[PromptIds],
        rows: Rows,
    ) -> list[Answer]:
        tokens = self._fetch(
            _greedy(
                self._params,
                self._place(rows),
                config=self._config,
                reducer=self._reducer,
                plan=self.plan,
                max_new_tokens=max(one.max_new_tokens for one in questions),
                end_ids=self._reading.end_ids,
            )
        )
        return [
            self._said(question, prompt, row)
            for question, prompt, row in zip(
                questions, prompts, np.asarray(tokens).tolist(), strict=False
            )
        ]

    def _prompt(self, question: Question) -> PromptIds:
        return prompt_ids(
            self._reading.prompt,
            question.text,
            self._reading.tokenizer,
            has_image=bool(question.images),
            image_token_id=self._reading.image_token_id,
        )

    def _length(self, question: Question, prompt: PromptIds) -> int:
        """Positions that the LLM reads before it answers."""
        vectors = self._num_vectors if question.images else 0
        return len(prompt.before) + vectors + len(prompt.after)

    def _check_length(self, question: Question, prompt: PromptIds) -> None:
        length, limit = self._length(question, prompt), self._reading.limit
        if limit is not None and length + question.max_new_tokens > limit:
            raise QuestionError(
                f"question {question.text[:80]!r}: it has {length} positions and asks "
                f"for {question.max_new_tokens} new tokens, but the model has {limit} "
                "positions: shorten the question, or lower its limit of new tokens"
            )

    def _rows(
        self, questions: Sequence[Question], prompts: Sequence[PromptIds]
    ) -> Rows:
        """The batch, the last question repeated where rows are missing."""
        missing = self.batch_size - len(questions)
        questions = [*questions, *[questions[-1]] * missing]
        prompts = [*prompts, *[prompts[-1]] * missing]
        texts = [len(one.before) + len(one.after) for one in prompts]
        length = self._num_vectors + rung(max(texts), SHORTEST)
        size = len(questions)
        ids = np.zeros((size, length), np.int32)
        keep = np.zeros((size, length), bool)
        slots = np.full((size, self._num_vectors), length, np.int32)
        keys = np.zeros((size, 2), np.uint32)
        pixels = np.zeros((size, self._side, self._side, 3), np.float32)
        # Rows of images by identity: those of fillers and shared cells are not new.
        seen: dict[int, int] = {}
        for row, (question, (before, after)) in enumerate(
            zip(questions, prompts, strict=True)
        ):
            number, start = self._length(question, prompts[row]), len(before)
            keep[row, :number] = True
            ids[row, :start] = before
            ids[row, number - len(after) : number] = after
            if not question.images:
                continue
            slots[row] = start + np.arange(self._num_vectors)
            image = question.images[0]
            first = seen.setdefault(id(image), row)
            if first == row:
                pixels[row] = prepare(image, self._side, self._reading.pixels)
                keys[row] = image_key(np.asarray(image.convert("RGB")))
            else:
                pixels[row], keys[row] = pixels[first], keys[first]
        return Rows(pixels if seen else None, keys, ids, keep, slots)

    def _said(self, question: Question, prompt: PromptIds, row: list[int]) -> Answer:
        row = row[: question.max_new_tokens]
        ends = [i for i, one in enumerate(row) if one in self._reading.end_ids]
        words = row[: ends[0]] if ends else row
        text: Any = self._reading.tokenizer.decode(words, skip_special_tokens=True)
        return Answer(
            text.strip(),
            ended=bool(ends),
            prompt_tokens=self._length(question, prompt),
            vision_tokens=self._num_vectors if question.images else 0,
            images_seen=min(1, len(question.images)),
        )


@functools.partial(
    jax.jit,
    static_argnames=("config", "reducer", "plan", "max_new_tokens", "end_ids"),
)
def _greedy(
    params: dict,
    rows: Rows,
    *,
    config: LlavaConfig,
    reducer: Reducer,
    plan: Plan,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
) -> Int[Array, "B N"]:
    """The most likely continuation of every row; the tower runs once."""
    vectors: Any = None
    if rows.pixels is not None:
        seeing = {name: params[name] for name in ("vision", "projector")}
        vectors = Llava(config).apply(
            {"params": seeing},
            *(rows.pixels, rows.keys),
            reducer=reducer,
            plan=plan,
            method=Llava.look,
        )
    return generate(
        params["llm"],
        rows.ids,
        rows.keep,
        vectors,
        None if vectors is None else rows.slots,
        config=config.llm,
        max_new_tokens=max_new_tokens,
        eos_ids=end_ids,
    )
