"""How long an answer takes for each M: rounds of real questions, timed part by part.

    measure(subject, rounds=30, new_tokens=32, folder=Path("runs/latency-m16"))

What is timed is what `ask` does: a new conversation, its first question, an answer. All
programs are compiled and run once before, and a repetition in which one was compiled is
an error. Each part ends when its result is there (`block_until_ready`). A round asks
once for every M, in an order of its own (`timing.order`).

Rounds are saved as they end, and the same command goes on after an interruption. Since
a round has every M, a machine that is another after the pause is so for all M alike;
which launch timed a round is kept with it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vtscale_jax.compilation import CompileClock
from vtscale_jax.conversation import ImageConversation
from vtscale_jax.cost import programs
from vtscale_jax.cost.peak import processor
from vtscale_jax.cost.subject import Subject
from vtscale_jax.cost.timing import order, undisturbed
from vtscale_jax.run_folder import (
    RunFolder,
    code_version,
    differences,
    held,
    versions,
)
from vtscale_jax.settings import fingerprint
from vtscale_jax.stream import CHUNK

ROUNDS = 30  # the fewest that medians and 95th percentiles are given for without a note
RESULT = "latency.json"
PARTS = ("text", "views", "transfer", "vision", "fusion", "prefill")


class LatencyError(ValueError):
    """Timings that cannot be made, or that would say something else than they seem."""


class Repetition(NamedTuple):
    """Seconds of one question and its answer.

    `parts` are those of `conversation.Timing`; `whole` was timed around all of them by
    itself; `decode` is the time of `new_tokens` more tokens after the first.
    """

    num_queries: int
    parts: dict[str, float]
    whole: float
    decode: float

    @property
    def first_token(self) -> float:
        """The parts together."""
        return sum(self.parts.values())


class Measured(NamedTuple):
    """The rounds of one measurement (a list of repetitions each), the bytes that were
    held for each M and who counted them."""

    inputs: dict[str, Any]
    rounds: list[list[Repetition]]
    launches: list[int]
    memory: dict[int, int]
    memory_how: str

    def of(self, num_queries: int) -> list[Repetition]:
        """The repetitions of one M, round by round."""
        return [
            one
            for found in self.rounds
            for one in found
            if one.num_queries == num_queries
        ]


def measure(
    subject: Subject,
    *,
    rounds: int,
    new_tokens: int,
    folder: Path,
    seed: int = 0,
    tick: Callable[[str], None] = lambda what: None,
) -> Measured:
    """Warms up, then times until there are `rounds` of them in `folder`; `tick` is told
    of every step that has been made ("warm-up" or "repetition").

    LatencyError for sizes that cannot be, a folder that holds another measurement or is
    in use, or a program that was compiled while time was taken.
    """
    if rounds < 1:
        raise LatencyError(f"--repetitions is {rounds}, expected 1 or more")
    if new_tokens < CHUNK or new_tokens % CHUNK:
        raise LatencyError(
            f"--new_tokens is {new_tokens}, expected a multiple of {CHUNK}: answers "
            f"are made in chunks of {CHUNK} tokens, and a part of one takes as long"
        )
    inputs = identity(subject, new_tokens, seed)
    store = RunFolder(folder)
    busy = LatencyError(
        f"--out {folder} is in use by another process: wait, or give another --out"
    )
    with held(folder, busy):
        found, launches = begun(store, inputs)
        if len(found) >= rounds:
            content = store.read(RESULT)
            counted = {int(m): each for m, each in content["memory"].items()}
            return Measured(
                *(inputs, found[:rounds], launches[:rounds], counted),
                content["memory_how"],
            )
        launch = 1 + max(launches, default=0)
        clock = CompileClock()
        try:
            held_bytes, how = _warm_up(subject, new_tokens, tick)
            while len(found) < rounds:
                turn = order(subject.queries, len(found), seed)
                with undisturbed():
                    repetitions = []
                    for num_queries in turn:
                        one = repeat(
                            lambda m=num_queries: subject.conversation(
                                m, 1 + new_tokens
                            ),
                            *(subject.question, num_queries, new_tokens, clock),
                        )
                        repetitions.append(one)
                        tick("repetition")
                found.append(repetitions)
                launches.append(launch)
                measured = Measured(inputs, found, launches, held_bytes, how)
                store.write(RESULT, as_json(measured))
        finally:
            clock.close()
    return Measured(inputs, found, launches, held_bytes, how)


def repeat(
    begin: Callable[[], ImageConversation],
    question: str,
    num_queries: int,
    new_tokens: int,
    clock: CompileClock,
) -> Repetition:
    """Asks once and takes the answer. LatencyError when anything was compiled."""
    compiled = clock.programs
    started = time.perf_counter()
    conversation = begin()
    reply = conversation.ask(question)
    read = time.perf_counter()
    for _ in reply:
        pass
    ended = time.perf_counter()
    if clock.programs != compiled:
        raise LatencyError(
            f"M = {num_queries}: {clock.programs - compiled} programs were compiled "
            "while time was taken, so the time says nothing; run it again, and if it "
            "stays so, report it: the warm-up missed a program"
        )
    if len(reply.ids) != 1 + new_tokens:
        raise LatencyError(
            f"M = {num_queries}: the answer has {len(reply.ids)} tokens, expected "
            f"{1 + new_tokens}: it ended by itself ({reply.ended})"
        )
    parts = conversation.timing.parts
    return Repetition(num_queries, parts, read - started, ended - read)


def identity(subject: Subject, new_tokens: int, seed: int) -> dict[str, Any]:
    """All that a measurement depends on: rounds of others are not added to it."""
    device = jax.devices()[0]
    return {
        "model": {"name": subject.name, "fingerprint": fingerprint(subject.config)},
        "dtypes": {
            "compute": subject.model.llm.blocks.dtype,
            "llm_params": subject.llm_dtype,
        },
        "num_queries": list(subject.queries),
        "image": subject.picture.about,
        "question": subject.question,
        "new_tokens": new_tokens,
        "seed": seed,
        "device": {
            "platform": device.platform,
            "kind": processor() if device.platform == "cpu" else device.device_kind,
        },
        "versions": versions(),
        "code": code_version(),
    }


def begun(
    store: RunFolder, inputs: Mapping[str, Any]
) -> tuple[list[list[Repetition]], list[int]]:
    """The rounds that are in the folder already, and the launch of each; none where
    there is no result. LatencyError when they are of something else."""
    if not (store.path / RESULT).exists():
        return [], []
    content = store.read(RESULT)
    differ = differences(content["inputs"], inputs, "when it was begun")
    if differ:
        raise LatencyError(
            f"--out {store.path} holds timings of something else:{differ}\nGive "
            "another --out; nothing was written over"
        )
    rounds = [
        [Repetition(**one) for one in found["repetitions"]]
        for found in content["rounds"]
    ]
    return rounds, [found["launch"] for found in content["rounds"]]


def as_json(measured: Measured) -> dict[str, Any]:
    """The measurement as `latency.json` has it while it goes on."""
    rounds = [
        {"launch": launch, "repetitions": [one._asdict() for one in found]}
        for found, launch in zip(measured.rounds, measured.launches, strict=True)
    ]
    return {
        "inputs": measured.inputs,
        "memory": {str(m): each for m, each in measured.memory.items()},
        "memory_how": measured.memory_how,
        "rounds": rounds,
    }


def _warm_up(
    subject: Subject, new_tokens: int, tick: Callable[[str], None]
) -> tuple[dict[int, int], str]:
    """Compiles and runs everything, twice for each M (what the first run leaves behind
    must be there for the second), with M rising: a device counts its most bytes since
    the process began, so that those of a smaller M are known before."""
    programs.compile_ahead(subject, 1 + new_tokens)
    found: dict[int, int] = {}
    counts = programs.counted_peak() is not None
    for num_queries in sorted(subject.queries):
        for _ in range(2):
            conversation = subject.conversation(num_queries, 1 + new_tokens)
            for _ in conversation.ask(subject.question):
                pass
            del conversation
        peak = programs.counted_peak() if counts else None
        if peak is None:
            peak = programs.compiled_peak(subject, num_queries, 1 + new_tokens)
        found[num_queries] = peak
        tick("warm-up")
    return found, programs.COUNTED if counts else programs.COMPILED


def rounds_left(folder: Path) -> int:
    """How many rounds are in a folder, for messages."""
    store = RunFolder(folder)
    exists = (folder / RESULT).exists()
    return len(store.read(RESULT)["rounds"]) if exists else 0


def check_queries(queries: Sequence[int]) -> tuple[int, ...]:
    """The M of --num_queries, rising; LatencyError for one twice or below 1."""
    twice = sorted({m for m in queries if list(queries).count(m) > 1})
    if twice or any(m < 1 for m in queries):
        raise LatencyError(
            f"--num_queries {','.join(map(str, queries))}: expected whole numbers of "
            "at least 1, each once"
        )
    return tuple(sorted(queries))
