"""Asking a model every item of a task, in batches, so that nothing is lost.

What was answered stands in the ledger; only what is not there is asked. A batch that
fails is asked item by item, and an item that fails alone is a counted failure with its
error in the ledger, never an empty answer. Where item after item fails, something else
is wrong than the items: the evaluation ends with that error, and what was answered
stays.

Three steps overlap, each in threads of its own and in the items' order: items are read,
batches are prepared on the host, and the devices answer them.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from tqdm import tqdm

from vtscale_jax.eval.ledger import (
    EMPTY,
    EXCEPTION,
    IMAGES_LEFT_OUT,
    NO_ANSWER,
    TRUNCATED,
    Entry,
    Ledger,
)
from vtscale_jax.eval.models import Answer, AnsweringModel, Prepared, Question
from vtscale_jax.pools import pooled

Explain = Callable[[BaseException], Exception | None]
MOST_FAILURES = 16  # in a row, before the evaluation gives up
AHEAD = 3  # batches that are read, and others that are prepared, at the same time


class AskingError(ValueError):
    """A model that fails at one item after the other."""


@runtime_checkable
class Items(Protocol):
    """The items of a task, read when they are asked for; each index is there once."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def indices(self) -> Sequence[str]:
        """Names of the items, in their order."""
        ...

    def question(self, i: int) -> Question:
        """Item i; ValueError where it cannot be read."""
        ...


def ask_items(
    model: AnsweringModel,
    items: Items,
    ledger: Ledger | None,
    done: Sequence[str],
    *,
    reached: Callable[[str], None] = lambda _: None,
    explain: Explain = lambda _: None,
) -> list[Entry]:
    """Asks all items but those `done`, and returns their entries in order.

    Each batch's entries are in the `ledger` (None: kept by another process) as soon as
    they and those before them are there. `reached` is told how far it is. What
    `explain` makes of a model's error is raised in its place (a lost host is no failure
    of an item). AskingError after MOST_FAILURES failures without an answer between
    them.
    """
    there = set(done)
    pending = [i for i, index in enumerate(items.indices) if index not in there]
    entries: list[Entry] = []
    failures = 0
    bar = tqdm(
        total=len(items.indices),
        initial=len(items.indices) - len(pending),
        desc=items.name,
        unit="item",
        disable=None,
    )
    starts = range(0, len(pending), model.batch_size)
    chunks = [pending[start : start + model.batch_size] for start in starts]
    # While devices answer, the next batches are read and prepared.
    with (
        bar,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(AHEAD) as host,
        ThreadPoolExecutor(model.batches_at_once) as devices,
    ):
        read = pooled(reader, partial(_read, items), chunks, AHEAD)
        ready = pooled(host, partial(_prepare, model), read, AHEAD)
        asked = pooled(
            *(devices, partial(_asked, model, explain), ready, model.batches_at_once)
        )
        for chunk, answered in zip(chunks, asked, strict=True):
            made = [
                entry_of(items.indices[i], one, said)
                for i, (one, said) in zip(chunk, answered, strict=True)
            ]
            if ledger is not None:
                ledger.append(made)
            entries += made
            for entry in made:
                failures = failures + 1 if entry.error else 0
            if failures >= MOST_FAILURES:
                raise AskingError(
                    f"{items.name}: {failures} items in a row got no answer, the last "
                    f"one, {made[-1].index!r}, because of\n  {made[-1].error}\n"
                    "Mend that, then the same command with --retry_failures goes on; "
                    "what was answered is kept"
                )
            bar.update(len(made))
            reached(f"{items.name} {bar.n}/{bar.total}")
    return entries


def _read(items: Items, chunk: Sequence[int]) -> list[Question | Exception]:
    read: list[Question | Exception] = []
    for i in chunk:
        try:
            read.append(items.question(i))
        except ValueError as error:  # what is wrong with the item's own cells
            read.append(error)
    return read


class _Batch(NamedTuple):
    """Items that were read, an error where one could not be; `prepared` answers the
    questions among them, or is why the model could not read them."""

    read: list[Question | Exception]
    prepared: Prepared | Exception

    @property
    def questions(self) -> list[Question]:
        return [one for one in self.read if isinstance(one, Question)]


def _prepare(model: AnsweringModel, read: list[Question | Exception]) -> _Batch:
    batch = _Batch(read, list)
    if not batch.questions:
        return batch
    try:
        return batch._replace(prepared=model.prepare(batch.questions))
    except Exception as error:
        return batch._replace(prepared=error)


def _asked(
    model: AnsweringModel, explain: Explain, batch: _Batch
) -> list[tuple[Question | Exception, Answer | Exception]]:
    """Each item with its answer, or with what was wrong."""
    answers = iter(_answers(model, explain, batch))
    return [
        (one, one if isinstance(one, Exception) else next(answers))
        for one in batch.read
    ]


def _answers(
    model: AnsweringModel, explain: Explain, batch: _Batch
) -> list[Answer | Exception]:
    questions = batch.questions
    try:
        if isinstance(batch.prepared, Exception):
            raise batch.prepared
        return list(batch.prepared())
    except Exception as error:
        lost = explain(error)
        if lost is not None:
            raise lost from error
        if len(questions) == 1:
            return [error]
    alone = [_answers(model, explain, _prepare(model, [one])) for one in questions]
    return [answer for (answer,) in alone]


def entry_of(
    index: str, question: Question | Exception, answer: Answer | Exception
) -> Entry:
    """The ledger's line of an item: what was answered, or what was wrong."""
    if isinstance(question, Exception):
        return _failed(index, None, question)
    if isinstance(answer, Exception):
        return _failed(index, question, answer)
    flags = []
    if not answer.text.strip():
        flags.append(EMPTY)
    if not answer.ended:
        flags.append(TRUNCATED)
    if answer.images_seen < len(question.images):
        flags.append(IMAGES_LEFT_OUT)
    return Entry(
        index,
        prompt_sha256(question),
        answer.text,
        answer.prompt_tokens,
        answer.vision_tokens,
        len(question.images),
        answer.images_seen,
        tuple(flags),
    )


def _failed(index: str, question: Question | None, error: Exception) -> Entry:
    digest = "" if question is None else prompt_sha256(question)
    images = 0 if question is None else len(question.images)
    said = f"{type(error).__name__}: {error}"
    return Entry(index, digest, NO_ANSWER, 0, 0, images, 0, (EXCEPTION,), said)


def prompt_sha256(question: Question) -> str:
    """A hash of all that a model is asked: the pixels of the images, the text, and the
    limit of the answer."""
    digest = hashlib.sha256()
    for image in question.images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    digest.update(f"\n{question.text}\n{question.max_new_tokens}".encode())
    return digest.hexdigest()
