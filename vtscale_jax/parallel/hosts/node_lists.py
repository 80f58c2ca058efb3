"""Names of hosts written short: `node[001-003,007],login1`, as SLURM writes them."""

import re

MAX_HOSTS = 65536


class NodeListError(ValueError):
    """A list of hosts that cannot be read."""


def expand(text: str) -> tuple[str, ...]:
    """The hosts of a SLURM node list, in its order.

    `node[08-10],a[1-2]b[0-1]` gives node08, node09, node10, a1b0, a1b1, a2b0, a2b1:
    a name may hold several brackets, the last one counts fastest, and numbers keep
    their leading zeros. NodeListError when it is malformed or has over `MAX_HOSTS`.
    """
    hosts: list[str] = []
    for item in _items(text):
        names = [""]
        # Odd pieces stand in brackets.
        for i, piece in enumerate(re.split(r"\[([^][]*)\]", item)):
            numbers = _numbers(piece, text) if i % 2 else [piece]
            if len(names) * len(numbers) + len(hosts) > MAX_HOSTS:
                raise _error(text, f"names more than {MAX_HOSTS} hosts")
            names = [name + number for name in names for number in numbers]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
                raise _error(text, f"{name!r} is no name of a host")
        hosts += names
    return tuple(hosts)


def expand_counts(text: str) -> tuple[int, ...]:
    """Counts written short: `2(x3),1` gives 2, 2, 2, 1 (SLURM's tasks per node)."""
    counts: list[int] = []
    for item in text.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", item.strip())
        if found is None:
            raise _error(text, f"{item!r} is not like 4 or 4(x2)")
        counts += [int(found[1])] * int(found[2] or 1)
        if len(counts) > MAX_HOSTS:
            raise _error(text, f"counts more than {MAX_HOSTS} hosts")
    return tuple(counts)


def _items(text: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    if not text.strip():
        raise _error(text, "is empty")
    items, depth = [""], 0
    for letter in text.strip():
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise _error(text, "has brackets that do not match")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    if depth:
        raise _error(text, "has a bracket that is not closed")
    return items


def _numbers(ranges: str, text: str) -> list[str]:
    """`08-10,12` as 08, 09, 10, 12."""
    numbers: list[str] = []
    for part in ranges.split(","):
        found = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", part)
        if found is None:
            raise _error(text, f"[{part}] is neither a number nor a range like 08-10")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise _error(text, f"the range {part} runs backwards")
        if last - first >= MAX_HOSTS:
            raise _error(text, f"the range {part} is over {MAX_HOSTS} long")
        width = len(found[1])
        numbers += [f"{n:0{width}d}" for n in range(first, last + 1)]
    return numbers


def _error(text: str, what: str) -> NodeListError:
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    return NodeListError(f"the list {shown!r} {what}")
