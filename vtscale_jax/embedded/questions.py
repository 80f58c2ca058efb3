"""Questions about a page of digits and their answers, in a small closed vocabulary.

A page is a tuple of `grid * grid` cells in row-major order; a cell holds a digit or is
empty (None). Every family mirrors a kind of benchmark:

    read      all digits in order           needs many tokens, like OCR
    locate    the digit of a named cell     refers to the image
    count     how many digits               a number
    exists    is a digit on the page        yes / no, balanced
    choice    the digit of a cell, a to d   multiple choice
    describe  every cell in order           general, refers to nothing, like captions

All text is lower-case words separated by single spaces. The word "a" stands for the
first option of a choice and nothing else, so no sentence has the article.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import TypeVar

import numpy as np

from vtscale_jax.types import Turn

Cells = tuple[int | None, ...]
Item = TypeVar("Item")

FAMILIES = ("read", "locate", "count", "exists", "choice", "describe")
LETTERS = ("a", "b", "c", "d")
ROWS_OF_THREE = ("top", "middle", "bottom")
COLUMNS_OF_THREE = ("left", "center", "right")

# An empty cell is a rare, but not an impossible, thing to ask about.
EMPTY_CELL_SHARE = 0.12
TOTAL_COUNT_SHARE = 2 / 3

PHRASES = {
    "read": (
        "read all digits in order",
        "read every digit on the page",
        "which digits are on the page ?",
        "list all digits from top to bottom",
    ),
    "locate": (
        "which digit is at {place} ?",
        "what digit stands at {place} ?",
        "name the digit at {place}",
    ),
    "count": (
        "how many digits are there ?",
        "how many digits does the page show ?",
        "count all digits",
    ),
    "count_one": (
        "how many {digit} are there ?",
        "how often does {digit} stand on the page ?",
        "count every {digit}",
    ),
    "exists": (
        "is there any {digit} ?",
        "is {digit} on the page ?",
        "does the page show {digit} ?",
    ),
    "choice": (
        "which digit is at {place} ?",
        "choose the digit at {place} :",
        "pick the digit at {place} :",
    ),
    "describe": (
        "describe the page",
        "describe every cell in order",
        "what does the page show ?",
        "tell what every cell shows",
    ),
}


def grid_of(cells: Cells) -> int:
    """The side of the grid: 3 for 9 cells. ValueError if the page is not square."""
    grid = isqrt(len(cells))
    if grid < 1 or grid * grid != len(cells):
        raise ValueError(
            f"cells: got {len(cells)} cells, expected a square number (grid * grid); "
            "list every cell of the page in row-major order, None for an empty one"
        )
    return grid


def number_words(number: int) -> str:
    """A number as digit words: 6 -> "6", 12 -> "1 2"."""
    return " ".join(str(number))


def cell_word(cell: int | None) -> str:
    """The word for what a cell holds: "7", or "none" for an empty cell."""
    return "none" if cell is None else str(cell)


def row_name(grid: int, row: int) -> str:
    """The name of a row: "middle" in a 3x3 grid, "row 2" (from 1) in any other."""
    return ROWS_OF_THREE[row] if grid == 3 else f"row {number_words(row + 1)}"


def cell_name(grid: int, cell: int) -> str:
    """The name of cell 0: "top left" in a 3x3 grid, "row 1 column 1" in any other."""
    row, column = divmod(cell, grid)
    if grid == 3:
        return f"{ROWS_OF_THREE[row]} {COLUMNS_OF_THREE[column]}"
    return f"row {number_words(row + 1)} column {number_words(column + 1)}"


def description(cells: Cells) -> str:
    """Every cell in order: "top 3 none 7 middle none 5 1 bottom 2 none none"."""
    grid = grid_of(cells)
    rows = []
    for row in range(grid):
        words = " ".join(cell_word(c) for c in cells[row * grid : (row + 1) * grid])
        rows.append(f"{row_name(grid, row)} {words}")
    return " ".join(rows)


def _pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


def _phrase(family: str, rng: np.random.Generator, **words: str) -> str:
    return _pick(rng, PHRASES[family]).format(**words)


def _place(cells: Cells, cell: int) -> str:
    grid = grid_of(cells)
    return f"{'the ' if grid == 3 else ''}{cell_name(grid, cell)}"


def _filled(cells: Cells) -> list[int]:
    return [i for i, cell in enumerate(cells) if cell is not None]


def _read(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    answer = " ".join(str(cell) for cell in cells if cell is not None)
    return _phrase("read", rng), answer


def _locate(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    empty = [i for i, cell in enumerate(cells) if cell is None]
    ask_empty = rng.random() < EMPTY_CELL_SHARE and bool(empty)
    cell = _pick(rng, empty if ask_empty else _filled(cells))
    return _phrase("locate", rng, place=_place(cells, cell)), cell_word(cells[cell])


def _count(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    present = [cell for cell in cells if cell is not None]
    if rng.random() < TOTAL_COUNT_SHARE:
        return _phrase("count", rng), number_words(len(present))
    # By value, not by cell: a page full of one digit does not always ask for it.
    digit = _pick(rng, sorted(set(present)))
    number = sum(cell == digit for cell in present)
    return _phrase("count_one", rng, digit=str(digit)), number_words(number)


def _exists(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    present = sorted({cell for cell in cells if cell is not None})
    absent = sorted(set(range(10)) - set(present))
    # Only a page with all ten digits, impossible below ten cells, has nothing absent.
    yes = rng.random() < 0.5 or not absent
    digit = _pick(rng, present if yes else absent)
    return _phrase("exists", rng, digit=str(digit)), "yes" if yes else "no"


def _choice(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    cell = _pick(rng, _filled(cells))
    right = int(rng.integers(4))
    others = rng.permutation([d for d in range(10) if d != cells[cell]])[:3].tolist()
    digits = [*others[:right], cells[cell], *others[right:]]
    options = " ".join(f"{le} {d}" for le, d in zip(LETTERS, digits, strict=True))
    question = _phrase("choice", rng, place=_place(cells, cell))
    return f"{question} {options}", LETTERS[right]


def _describe(cells: Cells, rng: np.random.Generator) -> tuple[str, str]:
    return _phrase("describe", rng), description(cells)


_ASKERS: dict[str, Callable[[Cells, np.random.Generator], tuple[str, str]]] = {
    "read": _read,
    "locate": _locate,
    "count": _count,
    "exists": _exists,
    "choice": _choice,
    "describe": _describe,
}


def ask(family: str, cells: Cells, rng: np.random.Generator) -> Turn:
    """One question of a family about a page, with its answer.

        ask("locate", (3, None, 7, None, 5, 1, 2, None, None), rng)
        -> Turn("which digit is at the top left ?", "3", "locate")

    Raises ValueError for a family not in FAMILIES, and for a page that is not square or
    has no digit.
    """
    if family not in _ASKERS:
        raise ValueError(f"family: got {family!r}, expected one of {FAMILIES}")
    grid_of(cells)
    if all(cell is None for cell in cells):
        raise ValueError(
            "cells: got a page without digits, expected at least one digit; "
            "ask about pages drawn with min_digits >= 1"
        )
    question, answer = _ASKERS[family](cells, rng)
    return Turn(question, answer, family)


def families_in_order(
    families: Sequence[str], number: int, rng: np.random.Generator
) -> list[str]:
    """`number` families in random order; none comes again before all have come."""
    order: list[str] = []
    while len(order) < number:
        order += [families[int(i)] for i in rng.permutation(len(families))]
    return order[:number]


def check_families(families: Sequence[str]) -> tuple[str, ...]:
    """The families as a tuple; ValueError if empty, unknown or repeated."""
    got = tuple(families)
    if not got or len(set(got)) != len(got) or not set(got) <= set(FAMILIES):
        raise ValueError(
            f"families: got {got}, expected one or more of {FAMILIES}, each once"
        )
    return got
