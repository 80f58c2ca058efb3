"""Descriptions -> questions by a language model -> a prepared folder.

OUT/
  augment.json    what was asked of whom: the folder goes on only with the same
  replies.jsonl   every reply as it came (`ledger`)
  records.jsonl  manifest.json  report.json   written when all replies are there
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from vtscale_jax.data.augment.descriptions import (
    Description,
    DescriptionError,
    checked_image,
    read_descriptions,
)
from vtscale_jax.data.augment.ledger import CUT, NO_ROOM, Ledger, Reply
from vtscale_jax.data.augment.prompts import Ask, asks, prompts_sha256
from vtscale_jax.data.augment.records import (
    Accepted,
    answer_shares,
    placed,
    record_of,
)
from vtscale_jax.data.augment.replies import Malformed, Written, parse_reply
from vtscale_jax.data.augment.writing import Author
from vtscale_jax.data.prepared_folder import (
    MANIFEST,
    Reasons,
    check_empty,
    file_facts,
    records_file,
    write_prepared,
)
from vtscale_jax.run_folder import differences, held, write_whole

JOB = "augment.json"


class AugmentError(ValueError):
    """A work folder of another augmentation, or in use."""


class Choice(NamedTuple):
    """Which questions are asked about which records.

    `source` is what the records' ids begin with, `min_chars` the shortest description,
    `limit` the most descriptions (None: all), `balance` see `records`.
    """

    kinds: tuple[str, ...] = ("yes_no", "choice")
    per_description: int = 2
    source: str = ""
    min_chars: int = 200
    limit: int | None = None
    balance: bool = False


def augment(
    path: Path,
    out: Path,
    author: Author,
    about: Mapping[str, Any],
    choice: Choice,
    *,
    seed: int,
    images: str | None = None,
) -> dict[str, Any]:
    """Writes the prepared folder `out` from the records of `path`; returns its report.

    `about` says which model writes and how (hashes of its weights and of how it reads,
    sampling): replies that are there already are of the same one, else AugmentError.
    More kinds, questions or descriptions may be asked for than before, and only those
    are asked. `images` is the image root, by default that of the prepared folder.

    Raises ValueError subclasses: PreparedFolderError and RecordError for the input (the
    first also for an `out` with other files in it), DescriptionError where nothing in
    the input is a description, RepliesError for a damaged replies.jsonl.
    """
    file, root = records_file(path)
    left_out = Reasons()
    descriptions = _descriptions(file, left_out, choice)
    in_use = AugmentError(
        f"--out {out} is in use by another process: wait for its end, or choose "
        "another --out."
    )
    facts = file_facts(file)
    job = {
        "records_sha256": facts["sha256"],
        "prompts_sha256": prompts_sha256(),
        "seed": seed,
        "llm": dict(about),
    }
    with held(out, in_use), _claimed(out, job):
        todo = [
            ask
            for one in descriptions
            for kind in choice.kinds
            for ask in asks(
                *(one.record_id, one.text, kind, choice.per_description, seed)
            )
        ]
        replies = write_replies(todo, author, Ledger(out))
        tally = {kind: Reasons() for kind in choice.kinds}
        accepted = accept(descriptions, todo, replies, tally)
        final = placed(accepted, seed, choice.balance)

        def report() -> dict[str, Any]:
            return _report(left_out, descriptions, todo, tally, accepted, final)

        write_prepared(
            out,
            (record_of(one, written) for one, written in final),
            source="augment",
            inputs=facts,
            images=root if images is None else images,
            options={**choice._asdict(), "seed": seed},
            report=report,
            more={"llm": dict(about), "prompts_sha256": prompts_sha256()},
        )
        return report()


def write_replies(
    todo: Sequence[Ask], author: Author, ledger: Ledger
) -> dict[tuple[str, str, int], Reply]:
    """Replies to all asks by key; those in the ledger are not asked again.

    Batches are formed over all asks, also those that are done, so that a run that was
    interrupted computes in the same batches as one that was not.
    """
    done = ledger.read()
    bar = tqdm(total=len(todo), desc="augment", unit="question", disable=None)
    with bar, ledger.writing():
        bar.update(sum(ask.key in done for ask in todo))
        for batch in _batches(todo, author, done):
            missing = {ask.key for ask, _ in batch} - done.keys()
            if not missing:
                continue
            if author.padded_length(batch[0][1]) is None:
                made = [Reply(*ask.key, "", NO_ROOM, 0) for ask, _ in batch]
            else:
                texts = author.write(
                    [ask for ask, _ in batch], [prompt for _, prompt in batch]
                )
                made = [
                    Reply(*ask.key, *text)
                    for (ask, _), text in zip(batch, texts, strict=True)
                ]
            new = [reply for reply in made if reply.key in missing]
            ledger.append(new)
            done |= {reply.key: reply for reply in new}
            bar.update(len(new))
    return done


def _batches(
    todo: Sequence[Ask], author: Author, done: Mapping[Any, Reply]
) -> Iterator[list[tuple[Ask, list[int]]]]:
    """Asks with their prompts' tokens, `batch_size` of one padded length each."""
    if all(ask.key in done for ask in todo):
        return  # nothing is tokenised
    waiting: dict[int | None, list[tuple[Ask, list[int]]]] = {}
    for ask in todo:
        prompt = author.prompt_ids(ask)
        of_length = waiting.setdefault(author.padded_length(prompt), [])
        of_length.append((ask, prompt))
        if len(of_length) == author.batch_size:
            yield waiting.pop(author.padded_length(prompt))
    yield from waiting.values()


def accept(
    descriptions: Sequence[Description],
    todo: Sequence[Ask],
    replies: Mapping[tuple[str, str, int], Reply],
    tally: Mapping[str, Reasons],
) -> list[Accepted]:
    """The questions among the replies, in the order of the asks; `tally` counts the
    other replies of each kind by reason. Of a question that is there twice about one
    image the first is kept."""
    image_of = {one.record_id: one.image for one in descriptions}
    seen: set[tuple[str, str, str]] = set()
    accepted = []
    for ask in todo:
        reply = replies[ask.key]
        image = image_of[ask.record_id]
        try:
            written = _parsed(reply)
            key = (image, ask.kind, written.question.casefold())
            if key in seen:
                raise Malformed("the same question about the same image")
            seen.add(key)
            accepted.append(Accepted(ask.record_id, image, ask.number, written))
        except Malformed as why:
            example = {"id": ask.record_id, "number": ask.number, "reply": reply.text}
            tally[ask.kind].add(why.reason, example)
    return accepted


def _parsed(reply: Reply) -> Written:
    if reply.state == NO_ROOM:
        raise Malformed("prompt too long for the model")
    if reply.state == CUT:
        raise Malformed("cut at --max_new_tokens")
    return parse_reply(reply.kind, reply.text)


def _descriptions(file: Path, left_out: Reasons, choice: Choice) -> list[Description]:
    found: list[Description] = []
    for one in read_descriptions(
        file, left_out, min_chars=choice.min_chars, source=choice.source
    ):
        if choice.limit is not None and len(found) >= choice.limit:
            left_out.add("beyond --limit", {"id": one.record_id})
            continue
        checked_image(one.image, one.record_id)
        found.append(one)
    if not found:
        reasons = "; ".join(f"{n} {why}" for why, n in left_out.counts().items())
        raise DescriptionError(
            f"{file} holds no description ({reasons or 'it is empty'}); expected "
            "records with an image, one turn, and an answer of at least --min_chars "
            f"{choice.min_chars} characters."
        )
    return found


@contextlib.contextmanager
def _claimed(out: Path, job: Mapping[str, Any]) -> Iterator[None]:
    """The folder is new, or this job's; AugmentError says how the other one differs."""
    file = out / JOB
    if file.exists():
        differ = differences(json.loads(file.read_text(encoding="utf-8")), job, "there")
        if differ:
            raise AugmentError(
                f"--out {out} holds the replies of another augmentation:{differ}\n"
                "Choose another --out, or the same options to go on; nothing was "
                "written over."
            )
    elif (out / MANIFEST).exists():
        raise AugmentError(
            f"--out {out} is a prepared folder of something else: choose a new or "
            "empty folder; nothing was written over."
        )
    else:
        check_empty(out)
    write_whole(file, (json.dumps(job, indent=2) + "\n").encode())
    yield


def _report(
    left_out: Reasons,
    descriptions: Sequence[Description],
    todo: Sequence[Ask],
    tally: Mapping[str, Reasons],
    accepted: Sequence[Accepted],
    final: Sequence[tuple[Accepted, Written]],
) -> dict[str, Any]:
    kinds = {}
    for kind, rejected in tally.items():
        asked = sum(ask.kind == kind for ask in todo)
        taken = sum(one.written.kind == kind for one in accepted)
        kept = sum(written.kind == kind for _, written in final)
        kinds[kind] = {
            "asked": asked,
            "accepted": taken,
            "share_accepted": taken / asked if asked else None,
            "rejected": rejected.report(),
            "left_out_for_balance": taken - kept,
        }
    return {
        "descriptions": {"chosen": len(descriptions), "left_out": left_out.report()},
        "questions": kinds,
        "as_written": answer_shares([one.written for one in accepted]),
        "as_kept": answer_shares([written for _, written in final]),
    }
