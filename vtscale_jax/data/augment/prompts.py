"""What the language model is asked, as text files beside this module.

A file is a conversation: blocks that begin with "=== user" or "=== assistant", in turn.
The first pairs are examples of what is wanted; the last user block has the places
$description, $topic and $answer, and the last assistant block is how the reply begins.

Each question has a prompt of its own, so that the k-th question about a description
does not depend on how many are asked for. What it should be about (a line of
topics.txt) and whether yes or no should be right are drawn by seed, record and kind;
the numbers of yes and no that are asked for differ by one at most for a description.
"""

import functools
import hashlib
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "prompts"
KINDS = ("yes_no", "choice")
ANSWERS = ("Yes", "No")
LETTERS = ("A", "B", "C", "D")
BEGINNING = "Question:"  # of every reply


class KindError(ValueError):
    """A kind of question that there is not."""


class Message(NamedTuple):
    """A block of a prompt: "user" or "assistant", and its text."""

    role: str
    content: str


class Ask(NamedTuple):
    """One question to be written: question `number` (from 0) of `kind` from the
    description of the record `record_id`, about `topic`, with `answer` as the right one
    (for yes_no; a choice leaves it open)."""

    record_id: str
    kind: str
    number: int
    description: str
    topic: str
    answer: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from all others."""
        return (self.record_id, self.kind, self.number)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that asks for it; it ends with a user's message."""
        # Made when it is needed: there are hundreds of thousands of asks.
        *examples, (role, asked), _ = conversation(self.kind)
        text = string.Template(asked).substitute(
            # On one line, as the examples are: a blank line ends the description.
            description=" ".join(self.description.split()),
            topic=self.topic,
            answer=self.answer,
        )
        return (*examples, Message(role, text))


def checked_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds, each once, in their order; KindError for an unknown one or none."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise KindError(
            f"--kinds is {','.join(kinds)!r}, expected some of {', '.join(KINDS)} with "
            "commas between them."
        )
    return tuple(dict.fromkeys(kinds))


def rng_of(seed: int, *names: str | int) -> np.random.Generator:
    """A generator that depends on the seed and these names, and on nothing else."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def asks(
    record_id: str, description: str, kind: str, number: int, seed: int
) -> list[Ask]:
    """The first `number` asks of one kind about a description."""
    rng = rng_of(seed, record_id, kind)
    topics = rng.permutation(len(topic_lines())).tolist()
    first = int(rng.integers(len(ANSWERS)))
    return [
        Ask(
            *(record_id, kind, k, description),
            topic_lines()[topics[k % len(topics)]],
            ANSWERS[(first + k) % len(ANSWERS)],
        )
        for k in range(number)
    ]


@functools.cache
def conversation(kind: str) -> tuple[Message, ...]:
    """The blocks of a kind's file."""
    blocks = _read(f"{kind}.txt").removeprefix("=== ").split("\n=== ")
    heads = (block.partition("\n") for block in blocks)
    found = tuple(Message(role, text.strip()) for role, _, text in heads)
    roles = ("user", "assistant") * (len(found) // 2)
    assert tuple(block.role for block in found) == roles
    assert found[-1].content == BEGINNING
    return found


@functools.cache
def topic_lines() -> tuple[str, ...]:
    """What a question may be asked to be about."""
    return tuple(_read("topics.txt").splitlines())


@functools.cache
def example_questions() -> frozenset[str]:
    """The questions of the examples, in lower case: they are about other pictures."""
    return frozenset(
        message.content.splitlines()[0].removeprefix(BEGINNING).strip().casefold()
        for kind in KINDS
        for message in conversation(kind)[1:-1:2]
    )


def prompts_sha256() -> dict[str, str]:
    """Hashes of the files of prompts by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.glob("*.txt"))
    }


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").strip()
