"""Timings as rows of a table, each with what it implies, and rejected where that is
more than the device can do.

Operations and bytes of a row are those that its programs had to make at least: rows of
tokens are computed with their padding (`subject.Prompt.padded`), attention takes a
token with those before it, weights are read once. A part that took less time than its
roofline was not timed well, whatever the reason; its row is not given as a time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from vtscale_jax.cost.answer import (
    PartCost,
    first_token,
    least_seconds,
    linear_flops,
    next_token,
)
from vtscale_jax.cost.audit import (
    IMPOSSIBLE,
    OF_TOKENS,
    POSSIBLE,
    PairVerdict,
    TimedRow,
    pair_verdict,
)
from vtscale_jax.cost.latency import PARTS, Measured, Repetition
from vtscale_jax.cost.peak import Peak
from vtscale_jax.cost.subject import Subject
from vtscale_jax.cost.timing import Summary, summary, upper_median
from vtscale_jax.cost.verdicts import milli

# What is timed as one, and the parts of the arithmetic that it holds.
TIMED: dict[str, tuple[str, ...]] = {
    "vision": ("vision", "merge"),
    "fusion": ("fusion", "projector"),
    "prefill": ("prefill", "head"),
}
AGREEMENT = 0.05  # of the whole, that may lie between the timed parts unnoticed
TOO_FEW = "too few repetitions to say"


class Rate(NamedTuple):
    """What a part implies: operations and bytes per second, the shares of the device's
    peak that these are, and the least seconds that it could have taken."""

    flops: int
    flops_per_s: float
    flops_share: float
    bytes: int
    bytes_per_s: float
    bytes_share: float
    least_s: float


class Row(NamedTuple):
    """All about one M. Seconds: `first_token` timed as a whole, `parts` each by itself,
    `decode` of all new tokens; `between` is the share of the whole that no part has.

    `flops` are those of the question without padding, by part of the arithmetic, as
    (whole attention, causal attention). `rejected` says why the row is not to be
    believed, or is "".
    """

    num_queries: int
    prompt_tokens: int
    padded_tokens: int
    repetitions: int
    first_token: Summary
    parts: dict[str, Summary]
    decode: Summary
    decode_tokens_per_s: float
    between: float
    memory: int
    rates: dict[str, Rate]
    flops: dict[str, tuple[int, int]]
    rejected: str
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """ "possible", or why the row was rejected."""
        return f"rejected: {self.rejected}" if self.rejected else POSSIBLE


class Work(NamedTuple):
    """The arithmetic of one M: its parts without padding; the same as they are computed
    (bytes without padding, which is not kept), of which the language model reads
    `tokens`; and a token after the first, on average."""

    real: tuple[PartCost, ...]
    computed: tuple[PartCost, ...]
    tokens: int
    decode: PartCost


class Judged(NamedTuple):
    """A row for each M, rising, and every pair of them."""

    rows: tuple[Row, ...]
    pairs: tuple[PairVerdict, ...]

    @property
    def impossible(self) -> tuple[PairVerdict, ...]:
        """The pairs that cannot both be right."""
        return tuple(pair for pair in self.pairs if pair.verdict == IMPOSSIBLE)


def judge(
    measured: Measured, subject: Subject, peak: Peak, *, noise: float = 0.01
) -> Judged:
    """What was measured, against what the device can do."""
    tokens = measured.inputs["new_tokens"]
    works = {m: work_of(subject, m, tokens) for m in sorted(subject.queries)}
    rows = tuple(_row(m, measured, subject, work, peak) for m, work in works.items())
    return Judged(rows, _pairs(measured, subject, works, peak, noise))


def work_of(subject: Subject, num_queries: int, new_tokens: int) -> Work:
    """The arithmetic of the subject's question with M = `num_queries`."""
    # Counted from stacked layers, which are the same and quicker to trace.
    blocks = dataclasses.replace(subject.model.llm.blocks, stacked=True)
    llm = dataclasses.replace(subject.model.llm, blocks=blocks)
    model = dataclasses.replace(subject.model, llm=llm)
    # Trainable parameters are float32 in memory, but a program might keep them as it
    # computes with them: the least counts.
    widths = {
        "bytes_each": jnp.dtype(blocks.dtype).itemsize,
        "llm_bytes": jnp.dtype(subject.llm_dtype).itemsize,
    }
    prompt = subject.prompt(num_queries)
    real = first_token(model, prompt.real, **widths)
    padded = first_token(model, prompt.padded, **widths)
    computed = tuple(
        long._replace(bytes=short.bytes)
        for short, long in zip(real, padded, strict=True)
    )
    # A token costs more with each before it, always by as much: the mean of the first
    # and the last is the mean of all.
    begun = prompt.real.prompt_tokens
    first = next_token(model, begun, **widths)
    last = next_token(model, begun + new_tokens - 1, **widths)
    mean = PartCost(
        "decode",
        *((one + other) // 2 for one, other in zip(first[1:], last[1:], strict=True)),
    )
    return Work(real, computed, prompt.padded.prompt_tokens, mean)


def _pairs(
    measured: Measured,
    subject: Subject,
    works: Mapping[int, Work],
    peak: Peak,
    noise: float,
) -> tuple[PairVerdict, ...]:
    """The pair test of `audit` on the own rows: on fusion and prefill alone, which are
    what M changes, with the padded lengths.

    The time between two rows is the median over rounds of their difference, and of that
    the upper limit that is certain to 99.9 % (`timing.upper_median`), so that a busy
    machine accuses nobody; with fewer than 10 rounds there is none, and no verdict.
    """
    weights = linear_flops(subject.model.llm.blocks)
    queries = list(works)
    seconds = {m: [_of_tokens(one) for one in measured.of(m)] for m in queries}
    found = []
    for number, a in enumerate(queries):
        for b in queries[number + 1 :]:
            first = summary(seconds[a]).median
            both = zip(seconds[a], seconds[b], strict=True)
            differences = [long - short for short, long in both]
            upper = upper_median(differences)
            extra = summary(differences).median if upper is None else upper
            # As a table of times would have it, were it as long as it can be.
            verdict = pair_verdict(
                TimedRow(a, first),
                TimedRow(b, first + extra),
                *(works[a].computed, works[b].computed, weights, peak, noise),
            )
            # What the weights are multiplied with is padded too.
            more = weights * (works[b].tokens - works[a].tokens)
            verdict = verdict._replace(weight_flops=more)
            if upper is None:
                verdict = verdict._replace(verdict=TOO_FEW)
            found.append(verdict)
    return tuple(found)


def higher(a: Peak, b: Peak) -> Peak:
    """Of one device measured twice: the most that it was seen to do."""
    return a._replace(
        flops=max(a.flops, b.flops), bandwidth=max(a.bandwidth, b.bandwidth)
    )


def as_json(row: Row) -> dict[str, Any]:
    """The row as `latency.json` has it."""
    content = row._asdict()
    content["first_token"] = row.first_token._asdict()
    content["decode"] = row.decode._asdict()
    content["parts"] = {name: one._asdict() for name, one in row.parts.items()}
    content["rates"] = {name: one._asdict() for name, one in row.rates.items()}
    return {**content, "verdict": row.verdict}


def _row(
    num_queries: int, measured: Measured, subject: Subject, work: Work, peak: Peak
) -> Row:
    repetitions = measured.of(num_queries)
    prompt, tokens = subject.prompt(num_queries), measured.inputs["new_tokens"]
    parts = {name: summary([one.parts[name] for one in repetitions]) for name in PARTS}
    decode = summary([one.decode for one in repetitions])
    costs = {part.name: part for part in work.computed}
    timed = {
        name: tuple(costs[one] for one in within) for name, within in TIMED.items()
    }
    timed["decode"] = (work.decode,) * tokens
    medians = {name: one.median for name, one in parts.items()}
    medians["decode"] = decode.median
    rates = {name: rate(timed[name], medians[name], peak) for name in timed}
    between = summary([1 - one.first_token / one.whole for one in repetitions]).median
    notes = []
    if between > AGREEMENT:
        notes.append(
            f"{between:.0%} of the time to the first token lies between the timed parts"
        )
    return Row(
        num_queries,
        prompt.real.prompt_tokens,
        prompt.padded.prompt_tokens,
        len(repetitions),
        summary([one.whole for one in repetitions]),
        parts,
        decode,
        tokens / decode.median,
        between,
        measured.memory[num_queries],
        rates,
        {part.name: (part.flops, part.causal_flops) for part in work.real},
        "; ".join(_beyond(rates, medians, peak)),
        tuple(notes),
    )


def rate(parts: Sequence[PartCost], seconds: float, peak: Peak) -> Rate:
    """What parts that took `seconds` together imply."""
    flops = sum(part.causal_flops for part in parts)
    moved = sum(part.bytes for part in parts)
    return Rate(
        *(flops, flops / seconds, flops / seconds / peak.flops),
        *(moved, moved / seconds, moved / seconds / peak.bandwidth),
        sum(least_seconds(part, peak) for part in parts),
    )


def _beyond(rates: dict[str, Rate], medians: dict[str, float], peak: Peak) -> list[str]:
    """The parts that were faster than the device can be."""
    return [
        f"{name} in {milli(medians[name])}, but {peak.name} takes "
        f"{milli(found.least_s)} at least"
        for name, found in rates.items()
        if medians[name] < found.least_s
    ]


def _of_tokens(one: Repetition) -> float:
    """Seconds of the parts that M changes."""
    return sum(
        one.parts[name]
        for name, within in TIMED.items()
        if set(within) <= set(OF_TOKENS)
    )
