"""One growing row of the language model, and its answers as text while they are made.

A row remembers which tokens its caches hold. A longer conversation is given whole, and
only what follows the common beginning is read: turns before cost nothing again, and the
answer is that of the whole conversation read anew.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vtscale_jax import generate
from vtscale_jax.generate import GREEDY, Sampling
from vtscale_jax.llm import LLMConfig

SMALLEST = 32  # the shortest padded length: fewer tokens are no faster to read
CHUNK = 8  # tokens made between two looks at the text


class ConversationError(ValueError):
    """A conversation that cannot go on, or a model that cannot have one."""


@runtime_checkable
class Writer(Protocol):
    """What makes an answer's tokens: a `Row`."""

    def write(self, most: int) -> Iterator[list[int]]:
        """At most `most` tokens in chunks."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """What is asked of a tokenizer here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> Any:
        """The text of tokens."""
        ...


class Vectors(NamedTuple):
    """Vectors that stand for tokens of the row: `values[k]` at place `places[k]`."""

    values: Float[np.ndarray, "K E"]
    places: Int[np.ndarray, " K"]


class Piece(NamedTuple):
    """Text that was added to an answer, when, and how many tokens there are now."""

    text: str
    num_tokens: int
    seconds: float


def padded_length(length: int) -> int:
    """The next length of a small set, so that few programs are compiled: 32, 64, 128,
    256, where padding costs little; then 384, 512, 768, 1,024 and steps of 512.

    >>> [padded_length(length) for length in (9, 200, 300, 400, 600, 1030)]
    [32, 256, 384, 512, 768, 1536]
    """
    if length > 1024:
        return -(-length // 512) * 512
    size = max(SMALLEST, 1 << (length - 1).bit_length())
    smaller = size * 3 // 4
    return smaller if smaller >= max(length, 384) else size


class Row:
    """A row of tokens in the language model's cache.

    `params` are those of an `LLM` with `config`. Answers end at a token of `eos_ids`,
    the first of which also fills up. `limit` is the number of positions the model was
    trained for, or None.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        config: LLMConfig,
        *,
        eos_ids: tuple[int, ...],
        sampling: Sampling = GREEDY,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self._params = params
        self._fixed: Any = {"config": config, "sampling": sampling, "eos_ids": eos_ids}
        self._seed = seed
        self._limit = limit
        self._ids: list[int] = []  # what the caches hold
        self._room = 0
        self._unsaid = False  # read, and the answer not begun
        self._state: generate.State | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that the caches hold; the one chosen last is not among them."""
        return tuple(self._ids)

    def check(self, length: int, room: int) -> None:
        """ConversationError when the model has no positions for `length` tokens and
        `room` more."""
        if length == 0:
            raise ConversationError("got an empty prompt, expected at least one token")
        if self._limit is not None and length + room > self._limit:
            raise ConversationError(
                f"the conversation has {length} tokens and asks for {room} more, but "
                f"the model has {self._limit} positions: begin a new conversation, "
                "shorten the question, or lower --max_new_tokens"
            )

    def read(
        self, ids: Sequence[int], room: int, vectors: Vectors | None = None
    ) -> int:
        """Makes the row hold `ids`, with room for `room` more, and chooses the next
        token. Returns how many tokens had to be read.

        `vectors` are those of the whole row; equal tokens at its beginning are taken to
        have the vectors that they had. Raises as `check` does.
        """
        self.check(len(ids), room)
        self._make_room(len(ids) + room)
        assert self._state is not None
        # At least one token is read: its logits choose the next one.
        same = 0
        while same < min(len(self._ids), len(ids) - 1) and self._ids[same] == ids[same]:
            same += 1
        new = np.asarray(ids[same:], np.int32)
        size = padded_length(len(new))
        row = np.zeros((1, size), np.int32)
        row[0, : len(new)] = new
        spliced = ()
        if vectors is not None:
            here = vectors.places >= same
            places = (vectors.places[here] - same).astype(np.int32)
            spliced = (vectors.values[here][None], places[None])
        state = self._state._replace(lengths=jnp.full(1, same, jnp.int32))
        keep = (np.arange(size) < len(new))[None]
        # Until it is read the row holds nothing: an interrupt must not leave a lie.
        self._ids, self._state = [], None
        self._state = generate.read(
            self._params, state, row, keep, *spliced, **self._fixed
        )
        # Until it is there: the time to the first token ends here, and so do errors.
        jax.block_until_ready(self._state.ids)
        self._ids, self._unsaid = list(ids), True
        return len(new)

    def write(self, most: int) -> Iterator[list[int]]:
        """The answer's tokens in chunks, `most` in all at most; an end token that
        comes is the last. The caches hold what was given out, but for the last token.
        """
        assert self._state is not None and self._unsaid, "read comes first"
        if len(self._ids) + most > self._room:
            raise ConversationError(
                f"asked for {most} tokens after {len(self._ids)}, but read made room "
                f"for {self._room} in all: give read the room"
            )
        self._unsaid = False
        last = int(self._state.ids[0])
        made, ended = 1, bool(self._state.ended[0])
        yield [last]
        while made < most and not ended:
            # Always the same number of steps, hence one program; what is beyond `most`
            # is made and taken back (and what is beyond the caches, not written).
            state, self._state, held = self._state, None, self._ids
            self._ids = []
            state, tokens = generate.write(
                self._params, state, num_steps=CHUNK, **self._fixed
            )
            row = np.asarray(tokens[0])[: most - made].tolist()
            for number, token in enumerate(row):
                if token in self._fixed["eos_ids"]:
                    row, ended = row[: number + 1], True
                    break
            self._ids = [*held, last, *row[:-1]]
            self._state = state
            last, made = row[-1], made + len(row)
            yield row

    def _make_room(self, needed: int) -> None:
        """Caches of at least `needed` places; those there are keep what they hold."""
        room = padded_length(needed)
        config = self._fixed["config"]
        scaling = config.blocks.rope_scaling
        turned = False
        if scaling is not None and scaling.kind == "longrope":
            # Rows of up to this length turn their keys otherwise than longer ones:
            # it is not passed by rounding up, and when it is, all is read anew.
            border = scaling.original_length
            room = min(room, border) if needed <= border else room
            turned = self._room <= border < room
        if self._state is None or turned:
            self._ids, self._state = [], None
            self._state = generate.begin(config, 1, room, self._seed)
            self._room = room
        elif room > self._room:
            widen = [(0, 0), (0, 0), (0, 0), (0, room - self._room), (0, 0)]
            self._state = self._state._replace(
                caches=jax.tree.map(
                    lambda x: jnp.pad(x, widen[-x.ndim :]), self._state.caches
                )
            )
            self._room = room


class Reply:
    """An answer while it is made: iterate over its pieces; `text`, `ids` and `ended`
    then hold the whole.

    `ended` is "end" (the model ended it), "stop" (one of the strings `stop` came, which
    is not part of the text) or "length" (`most` tokens are made).
    """

    def __init__(
        self,
        row: Writer,
        tokenizer: Decoder,
        most: int,
        eos_ids: tuple[int, ...],
        stop: Sequence[str] = (),
    ) -> None:
        self._row = row
        self._tokenizer = tokenizer
        self._most = most
        self._eos_ids = eos_ids
        self._stop = [text for text in stop if text]
        self.text = ""
        self.ids: list[int] = []
        self.ended = "length"

    def __iter__(self) -> Iterator[Piece]:
        started, sent = time.perf_counter(), 0
        for chunk in self._row.write(self._most):
            self.ids += chunk
            if chunk[-1] in self._eos_ids:
                self.ended = "end"
            text = self._decoded()
            found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
            if found:
                text, self.ended = text[: min(found)], "stop"
            last = self.ended != "length" or len(self.ids) >= self._most
            safe = len(text) if last else len(text) - self._held(text)
            self.text = text
            yield Piece(text[sent:safe], len(self.ids), time.perf_counter() - started)
            sent = max(sent, safe)
            if found:
                return

    def _decoded(self) -> str:
        ids = self.ids[:-1] if self.ended == "end" else self.ids
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _held(self, text: str) -> int:
        """How many characters at the end may still change: bytes of an unfinished
        character, or the beginning of a stop string."""
        broken = len(text) - len(text.rstrip("\ufffd"))
        begun = [
            size
            for stop in self._stop
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        ]
        return max([broken, *begun])
