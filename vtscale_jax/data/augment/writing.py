"""A language model that answers prompts in batches, each by its own random numbers.

What is drawn for a reply depends on the seed, the ask and the place in the reply, never
on the other rows of the batch, so any batch size draws the same. Batches have one shape
for each padded prompt length: the last one is filled up with empty rows, and a prompt
is padded by its own length alone. What remains is that sums of another batch size may
be rounded otherwise, which can tell only where two tokens are all but equally likely.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jinja2
import numpy as np

from vtscale_jax.data.augment.ledger import CUT, ENDED
from vtscale_jax.data.augment.prompts import BEGINNING, Ask


class WritingError(ValueError):
    """A language model that cannot be asked."""


class Text(NamedTuple):
    """The reply with its given beginning, ENDED or CUT, and how many tokens the model
    wrote of it."""

    text: str
    state: str
    tokens: int


@runtime_checkable
class Author(Protocol):
    """What writes questions: a language model (`LLMAuthor`), or a stand-in."""

    batch_size: int

    def prompt_ids(self, ask: Ask) -> list[int]:
        """The tokens of an ask's conversation, and of the reply's beginning."""
        ...

    def padded_length(self, prompt: list[int]) -> int | None:
        """To which length the prompt is padded; None where it leaves no room."""
        ...

    def write(self, asks: Sequence[Ask], prompts: Sequence[list[int]]) -> list[Text]:
        """Replies to at most `batch_size` prompts of one padded length."""
        ...


class LLMAuthor:
    """A language model with its tokenizer's chat template.

    `model` is what `open_llm` gives: where, config, params (layers apart), tokenizer,
    end_ids and limit. `temperature` 0 takes the likeliest token each time; then all
    questions of one prompt are the same, and the prompts alone make a difference.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ):
        from vtscale_jax.generate import Sampling

        if not model.tokenizer.chat_template:
            raise WritingError(
                f"{model.where}: the tokenizer has no chat template, so nobody knows "
                "how to put a question to this model; take an instruction-tuned one."
            )
        self.batch_size = batch_size
        self._model = model
        self._most = max_new_tokens
        self._sampling = Sampling(temperature, 0, top_p)
        self._seed = seed

    def prompt_ids(self, ask: Ask) -> list[int]:
        """The tokens of an ask's conversation, and of the reply's beginning."""
        tokenizer = self._model.tokenizer
        asked = [message._asdict() for message in ask.messages]
        try:
            templated = tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=False
            )
        except jinja2.TemplateError as error:
            raise WritingError(
                f"{self._model.where}: the chat template refuses the prompt ({error}): "
                "take another model."
            ) from error
        return tokenizer.encode(templated + BEGINNING, add_special_tokens=False)

    def padded_length(self, prompt: list[int]) -> int | None:
        """See `stream.padded_length`; None beyond the model's positions."""
        from vtscale_jax.stream import padded_length

        limit = self._model.limit
        if limit is not None and len(prompt) + self._most > limit:
            return None
        return padded_length(len(prompt))

    def write(self, asks: Sequence[Ask], prompts: Sequence[list[int]]) -> list[Text]:
        """Replies to at most `batch_size` prompts of one padded length."""
        import jax
        import jax.numpy as jnp

        from vtscale_jax import generate

        length = self.padded_length(prompts[0])
        assert length is not None and len(prompts) <= self.batch_size
        ids = np.zeros((self.batch_size, length), np.int32)
        keep = np.zeros((self.batch_size, length), bool)
        draws = np.zeros(self.batch_size, np.uint32)
        for row, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):
            ids[row, : len(prompt)], keep[row, : len(prompt)] = prompt, True
            draws[row] = _draw(ask)
        config = self._model.config
        same = {
            "config": config,
            "sampling": self._sampling,
            "eos_ids": self._model.end_ids,
        }
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(self._seed), jnp.asarray(draws)
        )
        state = generate.begin(config, self.batch_size, length + self._most)
        state = state._replace(keys=keys)
        state = generate.read(self._model.params, state, ids, keep, **same)
        first = np.asarray(state.ids)
        _, more = generate.write(
            self._model.params, state, num_steps=self._most - 1, **same
        )
        rows = np.concatenate([first[:, None], np.asarray(more)], axis=1)
        return [self._text(row.tolist()) for row in rows[: len(prompts)]]

    def _text(self, ids: list[int]) -> Text:
        ends = [place for place, token in enumerate(ids) if token in self._end_ids]
        state = ENDED if ends else CUT
        written = ids[: ends[0]] if ends else ids
        text = self._model.tokenizer.decode(written, skip_special_tokens=True)
        return Text(BEGINNING + str(text), state, len(written))

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return self._model.end_ids


def _draw(ask: Ask) -> int:
    """32 bits that tell one ask from another."""
    digest = hashlib.sha256(json.dumps(ask.key).encode()).digest()
    return int.from_bytes(digest[:4], "big")
