"""Counts of what became of the rows, with examples; filled in the order of the rows, so
that it is the same for any number of processes."""

from collections import Counter
from typing import Any, NamedTuple

from vtscale_jax.data.image_check import ImageFacts, ImageFault

MAX_EXAMPLES = 5  # of each origin and reason
MAX_ORIGINS = 60  # a source that names more has them counted together
OTHERS = "(others)"
CHARACTERS = (25, 50, 100, 200, 500, 1000, 2000, 5000)
MESSAGES = (2, 4, 8, 16, 32, 48)
_EXAMPLE_LENGTH = 300  # characters


class Example(NamedTuple):
    """One of the parts left out: its row, the id that the row itself has, and what was
    wrong with it."""

    row: int
    id: str
    detail: str


class Tally:
    """Counts by origin (part of a set) and reason, and of messages, boxes and lengths.

    Every message is read and then kept, cut off or left out, which `check` sees.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.left: Counter[tuple[str, str, str]] = Counter()
        self.left_messages: Counter[tuple[str, str, str]] = Counter()
        self.examples: dict[tuple[str, str, str], list[Example]] = {}
        self.messages: Counter[str] = Counter(read=0, kept=0, cut=0, left=0)
        self.notes: Counter[str] = Counter()
        self.boxes: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self._origins: set[str] = set()

    def read(self, origin: str, messages: int) -> str:
        """A row; what it is counted under from here on."""
        if origin not in self._origins and len(self._origins) >= MAX_ORIGINS:
            origin = OTHERS
        self._origins.add(origin)
        self.rows[origin] += 1
        self.messages["read"] += messages
        return origin

    def keep(
        self,
        origin: str,
        sizes: tuple[int, int],
        cut: int,
        boxes: int,
        notes: list[str],
    ) -> None:
        """A record; `sizes` are its messages and characters."""
        messages, characters = sizes
        self.records[origin] += 1
        self.messages["kept"] += messages
        self.messages["cut"] += cut
        if cut:
            self.notes["records whose tail was cut"] += 1
        if boxes:
            self.boxes["boxes"] += boxes
            self.boxes["records with boxes"] += 1
        self.notes.update(notes)
        self.characters[_bin(characters, CHARACTERS)] += 1
        self.turns[_bin(messages, MESSAGES)] += 1

    def leave(
        self, origin: str, reason: str, unit: str, messages: int, example: Example
    ) -> None:
        """Something left out, with the number of its messages."""
        key = (origin, reason, unit)
        self.left[key] += 1
        self.left_messages[key] += messages
        self.messages["left"] += messages
        examples = self.examples.setdefault(key, [])
        if len(examples) < MAX_EXAMPLES:
            detail = example.detail[:_EXAMPLE_LENGTH]
            examples.append(example._replace(id=example.id[:60], detail=detail))

    def check(self) -> None:
        """Every message that was read went somewhere."""
        of = self.messages
        assert of["read"] == of["kept"] + of["cut"] + of["left"], dict(of)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON has them, largest first."""
        left = [
            {
                "origin": origin,
                "reason": reason,
                "unit": unit,
                "number": number,
                "messages": self.left_messages[origin, reason, unit],
                "examples": [
                    example._asdict() for example in self.examples[origin, reason, unit]
                ],
            }
            for (origin, reason, unit), number in self.left.most_common()
        ]
        reasons: Counter[str] = Counter()
        for (_, reason, _), number in self.left.items():
            reasons[reason] += number
        return {
            "rows": self.rows.total(),
            "records": self.records.total(),
            "origins": [
                {"origin": origin, "rows": rows, "records": self.records[origin]}
                for origin, rows in self.rows.most_common()
            ],
            "reasons": dict(reasons.most_common()),
            "left_out": left,
            "messages": dict(self.messages),
            "notes": dict(self.notes.most_common()),
            "boxes": {name: self.boxes[name] for name in sorted(self.boxes)},
            "characters": _in_order(self.characters, CHARACTERS),
            "messages_of_records": _in_order(self.turns, MESSAGES),
        }


class ImageTally:
    """Counts of the distinct images."""

    def __init__(self) -> None:
        self.number = 0
        self.whole = 0
        self.bytes = 0
        self.kinds: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.largest = (0, 0)

    def add(self, found: ImageFacts | ImageFault) -> None:
        """An image."""
        self.number += 1
        if isinstance(found, ImageFault):
            self.faults[found.reason] += 1
            return
        self.whole += 1
        self.bytes += found.bytes
        self.kinds[f"{found.format} {found.mode}"] += 1
        self.notes.update(found.notes)
        size = (found.width, found.height)
        self.largest = max(self.largest, size, key=lambda s: s[0] * s[1])

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON has them, largest first."""
        return {
            "distinct": self.number,
            "whole": self.whole,
            "bytes": self.bytes,
            "largest": list(self.largest),
            "kinds": dict(self.kinds.most_common()),
            "faults": dict(self.faults.most_common()),
            "notes": dict(self.notes.most_common()),
        }


def _bin(value: int, edges: tuple[int, ...]) -> str:
    """The first edge that a value does not exceed, as a name."""
    edge = next((edge for edge in edges if value <= edge), None)
    return f"over {edges[-1]:,}" if edge is None else f"up to {edge:,}"


def _in_order(counts: Counter[str], edges: tuple[int, ...]) -> dict[str, int]:
    names = [*(f"up to {edge:,}" for edge in edges), f"over {edges[-1]:,}"]
    return {name: counts[name] for name in names if counts[name]}
