"""The text of a compiled program as computations and instructions, and how often its
loops run.

XLA's `as_text()` is the one form in which every backend shows what it made of a
program. An instruction is a line `%name = type opcode(%operands), attributes`; a
computation is a block of them, called by `while`, `fusion`, `call`, `conditional`.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple


class ProgramTextError(ValueError):
    """The text of a program that does not read as expected."""


class Instruction(NamedTuple):
    """One line. `operands` are names in the same computation; `argument` is the text
    between the parentheses (a constant's value stands there)."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute (`body`, `calls`, …) names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def number(self, attribute: str) -> int | None:
        """An attribute's whole number (`index=3`)."""
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found[1]) if found else None


class Computation(NamedTuple):
    """A block of instructions by name; `root` is its result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str


class Module(NamedTuple):
    """A program: its computations, its entry, and how many devices run it."""

    computations: Mapping[str, Computation]
    entry: str
    num_devices: int


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*-> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


def read_module(text: str) -> Module:
    """Reads `compiled.as_text()`. ProgramTextError for a text without an entry."""
    computations: dict[str, Computation] = {}
    entry, name, lines, root = None, None, {}, ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines, root = header[2], {}, ""
            entry = name if header[1] else entry
        # Metadata of a Pallas kernel has lines of its own, which begin with two.
        elif line.startswith("}") and not line.startswith("}}") and name is not None:
            computations[name] = Computation(name, lines, root)
            name = None
        elif name is not None and (found := _LINE.match(line)):
            lines[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    if entry is None:
        first = text.splitlines()[0][:80] if text else "nothing"
        raise ProgramTextError(
            f"a compiled program's text was expected, with an ENTRY computation, got "
            f"{first!r}"
        )
    head = text.splitlines()[0]
    counts = [
        re.search(rf"{n}=(\d+)", head) for n in ("replica_count", "num_partitions")
    ]
    devices = math.prod(int(found[1]) for found in counts if found)
    return Module(computations, entry, devices)


def _instruction(name: str, text: str) -> Instruction:
    end = _closed(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ProgramTextError(f"%{name}: no opcode in {text[:120]!r}")
    stop = _closed(text, opcode.end() - 1)
    argument = text[opcode.end() : stop - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name, text[:end], opcode[1], operands, argument, text[stop:])


def _closed(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ProgramTextError(f"unclosed parenthesis in {text[start : start + 80]!r}")


# Bits of an element by the type's name; one that is not here is an error.
_BITS = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("s2", "u2"), 2),
    **{"c128": 128, "token": 0, "opaque": 0},
}


def num_bytes(type_text: str) -> int:
    """Bytes of a type's arrays: "(f32[2,3]{1,0}, bf16[4]{0})" has 32."""
    bits = 0
    for name, dims in re.findall(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]", type_text):
        if name not in _BITS and not name.startswith("f8"):
            raise ProgramTextError(f"element type {name!r} in {type_text!r} is unknown")
        lengths = [int(dim.lstrip("<=")) for dim in dims.split(",") if dim]
        bits += math.prod(lengths) * _BITS.get(name, 8)
    return -(-bits // 8)


class Caller(NamedTuple):
    """The loop that runs a computation, and where that loop stands."""

    computation: Computation
    loop: Instruction
    caller: "Caller | None"


def trip_count(
    module: Module,
    computation: Computation,
    loop: Instruction,
    caller: Caller | None = None,
) -> int:
    """How often a `while` runs its body.

    XLA writes `known_trip_count` beside most loops. Where it does not (TPU), the loop
    must count: its condition compares element i of what it carries with a constant, and
    its body adds a constant to it. `caller` is the loop around this one.
    ProgramTextError when the loop does not read so.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition") or ""]
    body = module.computations[loop.called("body") or ""]
    test = condition.instructions[condition.root]
    direction = test.attributes.partition("direction=")[2][:2]
    place = _place(condition, test.operands[0]) if test.operands else None
    if test.opcode == "compare" and direction in ("LT", "LE") and place is not None:
        start = _carried(module, computation, loop, place, caller)
        bound = _constant(condition, test.operands[1])
        other = _place(condition, test.operands[1])
        if bound is None and other is not None:
            bound = _carried(module, computation, loop, other, caller)
        step = _increment(body, place)
        if start is not None and bound is not None and step:
            return -(-(bound - start + (direction == "LE")) // step)
    raise ProgramTextError(
        f"%{loop.name}: no known_trip_count, and its condition %{condition.name} is "
        f"not a counter below a constant (its root is {test.opcode}({test.argument}))"
    )


def _source(
    computation: Computation, name: str, through: tuple[str, ...] = ("copy", "bitcast")
) -> Instruction | None:
    """The instruction of that name, or what it only hands on."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in through:
        found = computation.instructions.get(found.operands[0])
    return found


def _place(computation: Computation, name: str) -> int | None:
    """The place in the carried tuple that an instruction reads, if it reads one."""
    found = _source(computation, name)
    if found is None or found.opcode != "get-tuple-element":
        return None
    source = computation.instructions[found.operands[0]]
    return found.number("index") if source.opcode == "parameter" else None


def _constant(computation: Computation, name: str) -> int | None:
    found = _source(computation, name, ("copy", "bitcast", "convert"))
    if found is None or found.opcode != "constant":
        return None
    return int(found.argument) if re.fullmatch(r"-?\d+", found.argument) else None


def _carried(
    module: Module,
    computation: Computation,
    loop: Instruction,
    place: int,
    caller: Caller | None,
) -> int | None:
    """The constant that a loop starts with at a place of its tuple."""
    start = computation.instructions[loop.operands[0]]
    if start.opcode != "tuple":
        return None
    name = start.operands[place]
    value = _constant(computation, name)
    outer = _place(computation, name)
    if value is not None or outer is None or caller is None:
        return value
    # What the loop around this one hands through unchanged is what that started with.
    root = computation.instructions[computation.root]
    if root.opcode != "tuple" or _place(computation, root.operands[outer]) != outer:
        return None
    return _carried(module, caller.computation, caller.loop, outer, caller.caller)


def _increment(body: Computation, place: int) -> int | None:
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    found = _source(body, root.operands[place])
    if found is None or found.opcode != "add":
        return None
    for one, other in (found.operands, found.operands[::-1]):
        if _place(body, one) == place:
            return _constant(body, other)
    return None
