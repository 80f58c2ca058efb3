"""A case of goldens: what was found beside what must come out."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

RELATIVE = 1e-6


class Check(NamedTuple):
    """One case: whether it came out as it must; `detail` counts what was compared, or
    says what differs."""

    name: str
    ok: bool
    detail: str


def compared(name: str, found: Any, expected: Any) -> Check:
    """The check that two trees of JSON are the same, see `differences`."""
    differing = list(differences(found, expected))
    if not differing:
        return Check(name, True, f"{len(expected)} compared")
    shown = "; ".join(differing[:3]) + ("; …" if len(differing) > 3 else "")
    return Check(name, False, f"{len(differing)} differ: {shown}")


def differences(found: Any, expected: Any, path: str = "") -> Iterator[str]:
    """Where two trees of JSON differ, numbers by more than RELATIVE of the expected
    one."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key not in found or key not in expected:
                yield f"{path}/{key} is {'missing' if key in expected else 'extra'}"
            else:
                yield from differences(found[key], expected[key], f"{path}/{key}")
    elif isinstance(found, list | tuple) and isinstance(expected, list):
        if len(found) != len(expected):
            yield f"{path} has {len(found)} parts, expected {len(expected)}"
        for i, (one, other) in enumerate(zip(found, expected, strict=False)):
            yield from differences(one, other, f"{path}/{i}")
    elif isinstance(found, int | float) and isinstance(expected, int | float):
        if not math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=1e-12):
            yield f"{path} is {found!r}, expected {expected!r}"
    elif found != expected:
        yield f"{path} is {_shown(found)}, expected {_shown(expected)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
