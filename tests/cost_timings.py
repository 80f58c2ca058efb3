"""Made-up timings of real sizes, for tests that measure nothing."""

import importlib

import numpy as np
from ml_collections import ConfigDict

from vtscale_jax.cost.answer import least_seconds
from vtscale_jax.cost.latency import PARTS, Measured, Repetition
from vtscale_jax.cost.peak import Peak
from vtscale_jax.cost.rows import TIMED, work_of
from vtscale_jax.cost.subject import Subject, picture_of, sizes_of

A100 = Peak("an A100", 312e12, 1555e9, 40 * 2**20, 40 * 2**30, "data sheet")
PUBLISHED = {1: 0.2137, 256: 0.3013, 768: 0.3038}
BETWEEN = 0.0001  # seconds between the parts


def config(preset: str, **more) -> ConfigDict:
    """A preset's config; `more` has dots written as `__`."""
    found = importlib.import_module("configs.base").with_queries(4)(preset)
    with found.ignore_type():
        changes = {name.replace("__", "."): value for name, value in more.items()}
        found.update_from_flattened_dict(changes)
    return found


def paper(queries: tuple[int, ...] = (1, 256, 768)) -> Subject:
    """The paper's sizes, as a GPU would have them, and no weights."""
    given = config("paper", model__dtype="bfloat16", model__llm_param_dtype="bfloat16")
    return sizes_of(given, queries, picture_of("640x480"), question_tokens=64)


def honest(
    subject: Subject,
    rounds: int,
    peak: Peak = A100,
    *,
    efficiency: float = 0.5,
    spread: float = 0.02,
    new_tokens: int = 32,
    seed: int = 0,
) -> Measured:
    """Every part takes what its roofline asks for at an efficiency, give or take."""
    rng = np.random.default_rng(seed)
    least = {m: _least(subject, m, peak, new_tokens) for m in subject.queries}

    def repetition(num_queries: int) -> Repetition:
        def vary(seconds: float) -> float:
            return seconds / efficiency * (1 + spread * rng.uniform(-1, 1))

        times = {name: vary(s) for name, s in least[num_queries].items()}
        decode = times.pop("decode")
        parts = {name: times.get(name, vary(0.001)) for name in PARTS}
        whole = sum(parts.values()) + BETWEEN
        return Repetition(num_queries, parts, whole, decode)

    found = [[repetition(m) for m in subject.queries] for _ in range(rounds)]
    inputs = {
        "model": {"name": subject.name},
        "new_tokens": new_tokens,
        "image": subject.picture.about,
        "device": {"platform": "gpu", "kind": peak.name},
        "versions": {"jax": "0.0.0"},
    }
    memory = {m: 2**30 + m for m in subject.queries}
    return Measured(inputs, found, [1] * rounds, memory, "counted by nobody")


def changed(measured: Measured, num_queries: int, part: str, factor: float) -> Measured:
    """The same, with one part of one M so many times as long."""

    def mend(one: Repetition) -> Repetition:
        if one.num_queries != num_queries:
            return one
        if part == "decode":
            return one._replace(decode=factor * one.decode)
        parts = {**one.parts, part: factor * one.parts[part]}
        return one._replace(parts=parts, whole=sum(parts.values()) + BETWEEN)

    rounds = [[mend(one) for one in found] for found in measured.rounds]
    return measured._replace(rounds=rounds)


def _least(subject: Subject, m: int, peak: Peak, new_tokens: int) -> dict[str, float]:
    work = work_of(subject, m, new_tokens)
    by_name = {part.name: least_seconds(part, peak) for part in work.computed}
    least = {name: sum(by_name[p] for p in within) for name, within in TIMED.items()}
    return {**least, "decode": new_tokens * least_seconds(work.decode, peak)}
