"""What a compiled program sends between its devices.

Bytes are those that one device sends, by the formulas of a ring of g devices, which are
also the least that any algorithm without in-network reduction can do. n bytes are what
the device brings:

    all-gather          n·(g − 1)      its part goes once round
    reduce-scatter      n·(g − 1)/g    g − 1 partial sums of one part each
    all-reduce          2n·(g − 1)/g   the latter, then the former
    all-to-all          n·(g − 1)/g    all but its own part
    collective-permute  n              to one other device
    collective-broadcast  n            handed on round the ring

A collective in a loop counts as often as the loop runs; of the branches of a condition
that which sends most counts.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from vtscale_jax.parallel.plans.hlo import (
    Caller,
    Computation,
    Instruction,
    Module,
    ProgramTextError,
    num_bytes,
    read_module,
    trip_count,
)

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)


class Collective(NamedTuple):
    """One collective instruction: `group` devices take part, one device sends `message`
    bytes each time, and it runs `runs` times in a step."""

    name: str
    kind: str
    group: int
    message: int
    runs: int

    @property
    def sent(self) -> int:
        """Bytes that one device sends in a step."""
        return self.message * self.runs


class Total(NamedTuple):
    """All collectives of one kind: how often they run, and bytes a device sends."""

    runs: int
    sent: int


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of `compiled.as_text()`; those among one device are left out.

    An asynchronous one counts at its start, however many pieces it has.
    ProgramTextError when the text does not read as a program's, or a loop around a
    collective has no constant trip count.
    """
    module = read_module(text)
    return _once(_of(module, module.computations[module.entry], 1, None))


def total_sent(found: Iterable[Collective]) -> int:
    """Bytes that one device sends in a step."""
    return sum(one.sent for one in found)


def by_kind(found: Iterable[Collective]) -> dict[str, Total]:
    """Totals of every kind that occurs, in the order of `KINDS`."""
    found = tuple(found)
    rows = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    return {
        kind: Total(sum(one.runs for one in ones), total_sent(ones))
        for kind, ones in rows.items()
        if ones
    }


class _Found(NamedTuple):
    """A collective on the way. TPU programs spread one over several fusions, which
    compute something else meanwhile: the first `starts` it, the others, with the same
    channel, must not count."""

    collective: Collective
    channel: int | None
    fused: bool
    starts: bool


def _once(found: Iterable[_Found]) -> tuple[Collective, ...]:
    found = tuple(found)
    started = {one.channel for one in found if one.starts}
    return tuple(
        one.collective
        for one in found
        if one.starts or not (one.fused and one.channel in started)
    )


def _of(
    module: Module,
    computation: Computation,
    runs: int,
    caller: Caller | None,
    fused: bool = False,
) -> tuple[_Found, ...]:
    found: list[_Found] = []
    starts = fused and any(
        'custom_call_target="AsyncCollectiveStart"' in line.attributes
        for line in computation.instructions.values()
    )
    for line in computation.instructions.values():
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            one = _collective(module, computation, line, kind, runs)
            if one.message:
                found.append(_Found(one, line.number("channel_id"), fused, starts))
        elif line.opcode == "while":
            body = module.computations[line.called("body") or ""]
            # A loop that sends nothing need not be counted.
            if _sends(module, body):
                trips = trip_count(module, computation, line, caller)
                here = Caller(computation, line, caller)
                found += _of(module, body, runs * trips, here)
        elif line.opcode == "conditional":
            branches = [
                _of(module, module.computations[name], runs, None)
                for name in _branches(line)
            ]
            found += max(branches, key=lambda one: total_sent(_once(one)), default=())
        else:
            name = line.called("calls") or line.called("to_apply") or ""
            if name in module.computations:
                inner, fusion = module.computations[name], line.opcode == "fusion"
                found += _of(module, inner, runs, None, fused or fusion)
    return tuple(found)


def _sends(module: Module, computation: Computation) -> bool:
    """Whether a computation, or one that it calls, sends anything."""
    for line in computation.instructions.values():
        if line.opcode.removesuffix("-start") in KINDS:
            return True
        called = [line.called(name) or "" for name in ("body", "calls", "to_apply")]
        inner = [*called, *_branches(line)]
        if any(_sends(module, module.computations[n]) for n in inner if n):
            return True
    return False


def _branches(line: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", line.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    pair = [line.called(f"{which}_computation") for which in ("true", "false")]
    return [name for name in pair if name]


def _collective(
    module: Module, computation: Computation, line: Instruction, kind: str, runs: int
) -> Collective:
    brought = sum(
        num_bytes(computation.instructions[name].type) for name in line.operands
    )
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", line.attributes)
        moves = sum(source != target for source, target in pairs)
        return Collective(line.name, kind, moves, brought if moves else 0, runs)
    group = _group_size(module, line)
    message = {
        "all-gather": brought * (group - 1),
        "all-reduce": 2 * brought * (group - 1) // group,
        "collective-broadcast": brought if group > 1 else 0,
    }.get(kind, brought * (group - 1) // group)
    return Collective(line.name, kind, group, message, runs)


def _group_size(module: Module, line: Instruction) -> int:
    """Devices of one group; XLA writes groups in three ways:

    {{0,1},{2,3}}, [2,4]<=[8] (two groups of four), mesh['x'=2,'y'=4] {'y'}.
    """
    text = line.attributes.partition("replica_groups=")[2]
    if text.startswith("{}") or not text:
        return module.num_devices
    if listed := re.match(r"\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if tiled := re.match(r"\[([\d,]+)\]<=", text):
        return math.prod(map(int, tiled[1].split(",")[1:]))
    if named := re.match(r"@?\w*mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        # An axis may be taken in part: 'x':(2)4 are four devices of it.
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    raise ProgramTextError(f"%{line.name}: groups {text[:80]!r} are in no known form")
