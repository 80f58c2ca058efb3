"""Pairs in the closed vocabulary of the embedded language model.

Its model knows digits, "none", a few questions, and nothing else, so the shipped pairs
are no text to it. Here a written-out page is asked about, and the wrong answer is the
right one of another page. The questions are those of `embedded.questions.ask`, which
is given as an argument: only a `__main__` joins the two folders.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vtscale_jax.divergence.pairs.schemas import Pair, PairsError
from vtscale_jax.types import Turn

Cells = tuple[int | None, ...]
Ask = Callable[[str, Cells, np.random.Generator], Turn]

# Families whose answer tells the whole page: it depends on the page alone, and is long.
FAMILIES = ("describe", "read")
GRIDS = (3, 5, 7, 8)
# Other wrong pages: by columns instead of rows, or from the last cell to the first.
MISREADINGS = ("other page", "by columns", "backwards")
MOST_EMPTY = 0.25  # share of cells
STREAM = 5  # sets the random numbers apart from others with the same seed


def digit_text_pairs(
    number: int,
    seed: int,
    ask: Ask,
    *,
    families: Sequence[str] = FAMILIES,
    grids: Sequence[int] = GRIDS,
) -> Iterator[Pair]:
    """`number` pairs about written-out pages; pair i depends on (seed, i) only.

    The system text is the page, one word for each cell ("3 none 7 …"), then comes a
    question; with the format "plain" the prefix is `<s> page question answer :`, as the
    model was trained. `ask(family, cells, rng)` gives the question and the right answer
    for `cells` of a square page. The wrong answer is that to the same question about
    another page, or about the page read by columns or backwards; the first cell always
    differs, so that the branches part at the first digit.

    An answer to "describe" has grid² + 2·grid words (80 for 8 cells a side; 12 for
    the 3 of the shipped model's pages, whose rows have names), one to "read" at most
    grid². The shipped model has seen pages of 3 cells a side only.

    Raises PairsError for a number below 1, a grid below 2, or another family.
    """
    wrong = [family for family in families if family not in FAMILIES]
    if number < 1 or not families or wrong or not grids or min(grids) < 2:
        raise PairsError(
            f"got number {number}, families {tuple(families)} and grids "
            f"{tuple(grids)}; expected at least 1 pair, families of {FAMILIES} (the "
            "answers to others do not tell the page), and grids of 2 or more a side"
        )
    return (_pair(i, seed, ask, tuple(families), tuple(grids)) for i in range(number))


def _pair(
    index: int, seed: int, ask: Ask, families: tuple[str, ...], grids: tuple[int, ...]
) -> Pair:
    rng = np.random.default_rng(np.random.SeedSequence([seed, STREAM, index]))
    family = families[index % len(families)]
    grid = grids[index // len(families) % len(grids)]
    misreading = MISREADINGS[int(rng.integers(len(MISREADINGS)))]
    while True:
        cells = _page(grid, rng)
        other = _misread(cells, grid, misreading, rng)
        if other[0] is not None and other[0] != cells[0]:
            break
    turn = ask(family, cells, rng)
    rejected = ask(family, other, rng).answer
    page = " ".join("none" if cell is None else str(cell) for cell in cells)
    messages = (("system", page), ("user", turn.question))
    return Pair(index + 1, messages, turn.answer, rejected)


def _page(grid: int, rng: np.random.Generator) -> Cells:
    """A page whose first cell has a digit."""
    empty = rng.random(grid * grid) < MOST_EMPTY * rng.random()
    empty[0] = False
    digits = rng.integers(10, size=grid * grid)
    pairs = zip(digits.tolist(), empty.tolist(), strict=True)
    return tuple(None if gone else digit for digit, gone in pairs)


def _misread(
    cells: Cells, grid: int, misreading: str, rng: np.random.Generator
) -> Cells:
    if misreading == "other page":
        return _page(grid, rng)
    if misreading == "backwards":
        return cells[::-1]
    # By columns from the right: from the left, the first cell would be the same one.
    rows = [cells[start : start + grid] for start in range(0, len(cells), grid)]
    return tuple(row[column] for column in reversed(range(grid)) for row in rows)
