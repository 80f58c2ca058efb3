"""A file of pairs -> a prepared folder of those that meet the four criteria."""

import dataclasses
import functools
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from vtscale_jax.data.clean.criteria import (
    Measured,
    Thresholds,
    measure,
    rejection,
)
from vtscale_jax.data.clean.encoders import MPNET, Encoder, cosines
from vtscale_jax.data.clean.pairs import FORM, Pair, PairsError, read_pairs
from vtscale_jax.data.clean.questions import SEED, question
from vtscale_jax.data.prepared_folder import (
    MANIFEST,
    Reasons,
    check_empty,
    file_facts,
    read_manifest,
    write_prepared,
)
from vtscale_jax.data.workers import in_order
from vtscale_jax.run_folder import held

SOURCE = "clean"
REJECTED = "rejected.jsonl"
TOO_FEW, TOO_MANY = "record of too few characters", "record of too many characters"
CHARS = (25, 5000)  # of question and answer, both included (spec: data, section 9)
CHUNK = 64  # pairs that are measured and encoded together


class CleanError(ValueError):
    """A cleaning that cannot be done there."""


class Judged(NamedTuple):
    """A pair, its values, and why it is rejected (None: it is kept)."""

    pair: Pair
    values: Measured
    reason: str | None


def judge(
    pairs: Iterable[Pair], limits: Thresholds, encoder: Encoder, *, workers: int = 1
) -> Iterator[Judged]:
    """Each pair with its values, in order. Words are counted by `workers` processes;
    only pairs that meet the first three criteria are encoded, here."""
    begun: deque[list[Pair]] = deque()

    def chunks() -> Iterator[list[Pair]]:
        left = iter(pairs)
        while chunk := list(itertools.islice(left, CHUNK)):
            begun.append(chunk)
            yield chunk

    work = functools.partial(_measured, window=limits.window)
    for values in in_order(work, chunks(), workers):
        chunk = begun.popleft()
        judged = [
            Judged(pair, one, rejection(one, limits))
            for pair, one in zip(chunk, values, strict=True)
        ]
        yield from _encoded(judged, limits, encoder)


def _measured(pairs: list[Pair], window: int) -> list[Measured]:
    return [measure(pair.generated, pair.src, window) for pair in pairs]


def _encoded(
    judged: Sequence[Judged], limits: Thresholds, encoder: Encoder
) -> Iterator[Judged]:
    open_ones = [one.pair for one in judged if one.reason is None]
    similar: Iterator[float] = iter(())
    if open_ones:
        ours = encoder.encode([pair.generated.strip() for pair in open_ones])
        theirs = encoder.encode([pair.src.strip() for pair in open_ones])
        similar = iter(cosines(ours, theirs).tolist())
    for one in judged:
        if one.reason is None:
            values = one.values._replace(similarity=next(similar))
            one = one._replace(values=values, reason=rejection(values, limits))
        yield one


def record_of(pair: Pair, seed: int = SEED) -> dict[str, Any]:
    """The record of a pair that is kept; its id is the image's path."""
    messages = [
        {"role": "user", "content": question(pair.image, seed)},
        {"role": "assistant", "content": pair.generated.strip()},
    ]
    return {"id": pair.image, "image": pair.image, "messages": messages}


def clean(
    path: Path,
    out: Path,
    *,
    limits: Thresholds,
    encoder: Encoder,
    images: str | None = None,
    seed: int = SEED,
    chars: tuple[int, int] = CHARS,
    workers: int = 1,
) -> dict[str, Any]:
    """Writes the prepared folder `out`, and OUT/rejected.jsonl with row, reason and
    values of each pair that is not in it; the same bytes for any number of `workers`.
    Returns the report. Records of fewer or more characters than `chars` say are
    rejected too: what reads a prepared folder takes all of it.

    Raises ValueError subclasses: PairsError for a file without pairs, CleanError when
    `out` is in use or of another source, PreparedFolderError when it has other files,
    EncoderError for vectors that are none.
    """
    in_use = CleanError(
        f"--out {out} is in use by another process: wait for its end, or choose "
        "another --out."
    )
    with held(out, in_use):
        if (out / MANIFEST).exists() and read_manifest(out).get("source") != SOURCE:
            raise CleanError(
                f"--out {out} is a prepared folder of something else: choose another "
                "--out; nothing was written over."
            )
        # A run that was ended leaves this file before any other.
        if not (out / MANIFEST).exists() and not (out / REJECTED).exists():
            check_empty(out)
        return _clean(path, out, limits, encoder, images, seed, chars, workers)


def _clean(
    path: Path,
    out: Path,
    limits: Thresholds,
    encoder: Encoder,
    images: str | None,
    seed: int,
    chars: tuple[int, int],
    workers: int,
) -> dict[str, Any]:
    rejected = Reasons()
    kept = 0
    if not path.is_file():
        raise PairsError(f"{path}: no such file; expected {FORM}.")
    partial = out / f".{REJECTED}.partial"

    def records() -> Iterator[dict[str, Any]]:
        with partial.open("w", encoding="utf-8") as log:
            yield from judged(log)
        partial.replace(out / REJECTED)

    def judged(log: IO[str]) -> Iterator[dict[str, Any]]:
        def reject(reason: str, about: Mapping[str, Any]) -> None:
            rejected.add(reason, about)
            log.write(json.dumps({"reason": reason, **about}) + "\n")

        nonlocal kept
        pairs = read_pairs(path, reject)
        bar = tqdm(pairs, desc="clean", unit="pair", disable=None)
        for one in judge(iter(bar), limits, encoder, workers=workers):
            record = record_of(one.pair, seed)
            size = sum(len(message["content"]) for message in record["messages"])
            if one.reason is not None:
                reject(one.reason, _about(one))
            elif not chars[0] <= size <= chars[1]:
                reason = TOO_FEW if size < chars[0] else TOO_MANY
                reject(reason, _about(one) | {"characters": size})
            else:
                kept += 1
                yield record

    def report() -> dict[str, Any]:
        return {
            "pairs": kept + rejected.total(),
            "kept": kept,
            "rejected": rejected.report(),
            "encoder": {"name": encoder.name, "texts_cut": encoder.truncated},
        }

    write_prepared(
        out,
        records(),
        source=SOURCE,
        inputs=file_facts(path),
        images=images,
        options={
            **dataclasses.asdict(limits),
            "encoder": encoder.name,
            "thresholds_are_for": MPNET,
            "characters": list(chars),
            "seed": seed,
        },
        report=report,
    )
    return report()


def _about(one: Judged) -> dict[str, Any]:
    pair = one.pair
    return {"row": pair.row, "image": pair.image, **one.values._asdict()}
