"""Text-only Digit Pages: what a tiny language model learns to read before it sees.

Later, soft words made from an image stand where the image block stands. So the model
must answer from words placed there, however they are arranged: every record writes a
page out in one of three styles, and its questions are answerable from what was written
before them.

    grid   (about 1/2)  all cells in order: "3 none 7 none 5 1 2 none none"
    facts  (about 1/4)  named cells in any order: "middle left none top left 3 ..."
    hint   (about 1/4)  only the answer to the coming question: "7", "yes", "3 7 5 1"
                        (of a choice its digit: the letter is for the model to find)

Fillers "," ";" "." carry no meaning, with one exception: in a grid whose words repeat
unevenly, a comma ends a cell.
"""

import operator
from typing import NamedTuple, SupportsIndex

import numpy as np

from vtscale_jax.embedded.digit_pages import PageConfig, draw_cells
from vtscale_jax.embedded.questions import (
    FAMILIES,
    Cells,
    ask,
    cell_name,
    cell_word,
    check_families,
    families_in_order,
    grid_of,
    row_name,
)
from vtscale_jax.types import Turn

STYLES = ("grid", "facts", "hint")
STYLE_SHARES = (0.5, 0.25, 0.25)
FILLERS = (",", ";", ".")
GROUP_END = ","
PAGE_HINT_WORDS = 16  # length of the page of the hint style, at most
HINT_WORDS = 8  # follow-up questions get at most 8 vision tokens
MAX_REPEATS = 4
# Pages without fillers or repeats: from them the ways of looking things up are learnt
# first, and fillers are then only something to skip.
PLAIN_SHARE = 0.6
UNEVEN_SHARE = 0.1
# Sets the random numbers apart from those of DigitPages with the same seed.
TEXT_STREAM = 2
# Families that a single named cell answers.
ONE_CELL = ("locate", "choice")


class TextRecord(NamedTuple):
    """A written-out page and its questions.

    `page` stands before the first question, `hints[k]` before question k; hints[0] is
    "", any other may be. `hints` and `turns` have the same length. `style` is one of
    STYLES and `cells` the page behind it all; both are for inspection, not for input.
    """

    page: str
    hints: tuple[str, ...]
    turns: tuple[Turn, ...]
    style: str
    cells: Cells


def _fact(cells: Cells, cell: int) -> list[str]:
    return [*cell_name(grid_of(cells), cell).split(), cell_word(cells[cell])]


def _pad(
    units: list[list[str]],
    total: int,
    rng: np.random.Generator,
    fillers: tuple[str, ...] = FILLERS,
) -> list[str]:
    """Sets fillers around units, which stay whole, until there are `total` words.

    No filler if the units are as long already. Fillers stand all before, all after, or
    anywhere between the units, and are of one kind or of all kinds.
    """
    missing = max(0, total - sum(map(len, units)))
    gaps = len(units) + 1
    where = int(rng.integers(4))
    if where == 0:
        counts = [missing] + [0] * (gaps - 1)
    elif where == 1:
        counts = [0] * (gaps - 1) + [missing]
    else:
        counts = np.bincount(rng.integers(gaps, size=missing), minlength=gaps).tolist()
    kinds = list(fillers)
    if rng.random() < 0.5:
        kinds = [kinds[int(rng.integers(len(kinds)))]]
    fill = iter([kinds[i] for i in rng.integers(len(kinds), size=missing)])
    words: list[str] = []
    for count, unit in zip(counts, [*units, []], strict=True):
        words += [next(fill) for _ in range(count)]
        words += unit
    return words


def _write_grid(cells: Cells, total: int, rng: np.random.Generator) -> list[str]:
    """All cells in order in `total` words, or in one word each if that is more.

    Every cell word comes 1 to 4 times, as often for all cells or, with a comma to end
    each cell, unevenly; then the whole list may come again.
    """
    grid = grid_of(cells)
    rows = [row_name(grid, row).split() for row in range(grid)]
    if total < len(cells) + sum(map(len, rows)) or rng.random() < 0.5:
        rows = [[] for _ in range(grid)]
    room = (total - sum(map(len, rows))) // len(cells)  # words for each cell
    uneven = room >= 2 and rng.random() < UNEVEN_SHARE
    most = max(1, min(MAX_REPEATS, room - uneven))
    repeats = rng.integers(1, most + 1, size=len(cells))
    if not uneven:
        repeats[:] = repeats[0]

    units = []
    for cell, repeat in enumerate(repeats.tolist()):
        if cell % grid == 0 and rows[cell // grid]:
            units.append(rows[cell // grid])
        units += [[cell_word(cells[cell])] for _ in range(repeat)]
        if uneven:
            units[-1] = [*units[-1], GROUP_END]
    if rng.random() < 0.5:
        length = sum(map(len, units))
        units = units * int(rng.integers(1, max(1, total // length) + 1))
    # A comma among the fillers would end a cell.
    return _pad(units, total, rng, FILLERS[1:] if uneven else FILLERS)


def _write_facts(
    cells: Cells, chosen: list[int], total: int, rng: np.random.Generator
) -> list[str]:
    """The chosen cells by name, shuffled, in `total` words or more if they need it."""
    units = [_fact(cells, cell) for cell in rng.permutation(chosen).tolist()]
    length = sum(map(len, units))
    if length + len(units) <= total and rng.random() < 0.5:
        units = [[*unit, FILLERS[int(rng.integers(len(FILLERS)))]] for unit in units]
        length += len(units)
    if rng.random() < 0.25:
        units = units * int(rng.integers(1, max(1, total // length) + 1))
    return _pad(units, total, rng)


def asked_cell(question: str, grid: int) -> int:
    """The cell that a question names. ValueError if it names none."""
    named = [
        (len(cell_name(grid, cell)), cell)
        for cell in range(grid * grid)
        if f" {cell_name(grid, cell)} " in f" {question} "
    ]
    if not named:
        raise ValueError(
            f"question: got {question!r}, expected one that names a cell of a grid of "
            f"{grid}, such as {cell_name(grid, 0)!r}"
        )
    # The longest: "row 1 column 1 0" also has the words "row 1 column 1".
    return max(named)[1]


def _evidence(turn: Turn, cells: Cells) -> list[str]:
    """The words that answer a question; for a choice its digit, not yet its letter:
    with letters as hints in 7 of 10, finding them was not learnt in 1,800 steps."""
    if turn.family == "choice":
        return [cell_word(cells[asked_cell(turn.question, grid_of(cells))])]
    return turn.answer.split()


def _write_hint(words: list[str], most: int, rng: np.random.Generator) -> str:
    """The words with fillers, `most` words in all at most (or more if they need it)."""
    total = int(rng.integers(len(words), max(most, len(words)) + 1))
    return " ".join(_pad([[word] for word in words], total, rng))


class TextPages:
    """Random-access source of TextRecord; `[i]` depends on (seed, i) only.

    Pages are of `config` (only its grid and numbers of digits matter), at most
    `max_words` words long; in the styles grid and facts most have just the words that
    tell the page, the others a log-uniform length. Hints
    have at most 8 words, unless no family has an answer that short.

        TextPages(num_pages=4, seed=6)[0].page  ->  "; 5 1 9 5 none 0 2 0 none"
    """

    def __init__(
        self,
        num_pages: int,
        seed: int,
        questions_per_page: int = 4,
        max_words: int = 300,
        *,
        config: PageConfig | None = None,
        families: tuple[str, ...] = FAMILIES,
        style_shares: tuple[float, float, float] = STYLE_SHARES,
    ) -> None:
        self.config = PageConfig() if config is None else config
        if min(style_shares) < 0 or abs(sum(style_shares) - 1) > 1e-9:
            raise ValueError(
                f"style_shares: got {style_shares}, expected shares of {STYLES} that "
                "add up to 1"
            )
        self.style_shares = style_shares
        cells = self.config.grid**2
        longest = cells * len(_fact((None,) * cells, cells - 1))
        for field, got, least in (
            ("num_pages", num_pages, 1),
            ("seed", seed, 0),
            ("questions_per_page", questions_per_page, 1),
            ("max_words", max_words, max(longest, PAGE_HINT_WORDS)),
        ):
            if got < least:
                raise ValueError(f"{field}: got {got}, expected at least {least}")
        self.num_pages = num_pages
        self.seed = seed
        self.questions_per_page = questions_per_page
        self.max_words = max_words
        self.families = check_families(families)

    def __len__(self) -> int:
        return self.num_pages

    def __repr__(self) -> str:
        return (
            f"TextPages({self.num_pages}, {self.seed}, {self.questions_per_page}, "
            f"{self.max_words}, config={self.config}, families={self.families}, "
            f"style_shares={self.style_shares})"
        )

    def __getitem__(self, index: SupportsIndex) -> TextRecord:
        number = operator.index(index)
        if not 0 <= number < self.num_pages:
            raise IndexError(f"index: got {number}, expected 0 to {self.num_pages - 1}")
        key = np.random.SeedSequence([self.seed, TEXT_STREAM, number])
        rng = np.random.default_rng(key)
        cells = draw_cells(rng, self.config)
        order = families_in_order(self.families, self.questions_per_page, rng)
        style = STYLES[int(rng.choice(len(STYLES), p=self.style_shares))]
        if style == "hint":
            page, hints, turns = self._hint_record(cells, order, rng)
        elif style == "facts" and rng.random() < 0.5 and set(ONE_CELL) & set(order):
            page, hints, turns = self._some_facts_record(cells, order, rng)
        else:
            page, hints, turns = self._whole_record(style, cells, order, rng)
        return TextRecord(page, ("", *hints), turns, style, cells)

    def _total(self, least: int, rng: np.random.Generator) -> int:
        """A number of words: just enough, or log-uniform in least..max_words."""
        if rng.random() < PLAIN_SHARE:
            return least
        low, high = np.log(least), np.log(self.max_words + 1)
        return min(self.max_words, int(np.exp(rng.uniform(low, high))))

    def _ask_briefly(self, family: str, cells: Cells, rng: np.random.Generator) -> Turn:
        """A question whose answer fits a hint, of another family if it must be."""
        others = [f for f in rng.permutation(self.families).tolist() if f != family]
        turns = [ask(family, cells, rng)]
        while len(turns[-1].answer.split()) > HINT_WORDS and others:
            turns.append(ask(others.pop(), cells, rng))
        return min(reversed(turns), key=lambda turn: len(turn.answer.split()))

    def _whole_record(
        self, style: str, cells: Cells, order: list[str], rng: np.random.Generator
    ) -> tuple[str, list[str], tuple[Turn, ...]]:
        """A page that tells every cell; hints may be anything that is true."""
        total = self._total(len(cells), rng)
        if style == "grid":
            page = _write_grid(cells, total, rng)
        else:
            page = _write_facts(cells, list(range(len(cells))), total, rng)
        turns = tuple(ask(family, cells, rng) for family in order)
        hints = [self._any_hint(turn, cells, rng) for turn in turns[1:]]
        return " ".join(page), hints, turns

    def _any_hint(self, turn: Turn, cells: Cells, rng: np.random.Generator) -> str:
        draw = rng.random()
        if draw < 0.5:
            return ""
        words: list[str] = []
        if draw < 0.65:
            words = _evidence(turn, cells)
        elif draw < 0.8:
            most = HINT_WORDS // len(_fact(cells, len(cells) - 1))
            number = int(rng.integers(1, max(1, most) + 1))
            for cell in rng.permutation(len(cells))[:number].tolist():
                words += _fact(cells, cell)
        if len(words) > HINT_WORDS:
            return ""
        return _write_hint(words, HINT_WORDS, rng)

    def _some_facts_record(
        self, cells: Cells, order: list[str], rng: np.random.Generator
    ) -> tuple[str, list[str], tuple[Turn, ...]]:
        """A page that tells some cells; what else a question needs is in its hint.

        The first question is about one cell. "exists" could be answered from one cell
        only if the answer is yes, which would teach that some cells mean yes: as all
        other families it always gets its answer as hint.
        """
        first = next(family for family in order if family in ONE_CELL)
        order = [first, *(family for family in order if family != first)]
        turns = tuple(self._ask_briefly(family, cells, rng) for family in order)
        told = set(np.flatnonzero(rng.random(len(cells)) < rng.random()).tolist())
        told.add(asked_cell(turns[0].question, self.config.grid))
        hints = []
        for turn in turns[1:]:
            if turn.family not in ONE_CELL:
                evidence = _evidence(turn, cells)
                hints.append(_write_hint(evidence, HINT_WORDS, rng))
                continue
            cell = asked_cell(turn.question, self.config.grid)
            if cell in told or rng.random() < 0.5:
                told.add(cell)
                hints.append(self._any_hint(turn, cells, rng))
            else:
                hints.append(_write_hint(_fact(cells, cell), HINT_WORDS, rng))
        total = self._total(len(cells), rng)
        return " ".join(_write_facts(cells, sorted(told), total, rng)), hints, turns

    def _hint_record(
        self, cells: Cells, order: list[str], rng: np.random.Generator
    ) -> tuple[str, list[str], tuple[Turn, ...]]:
        """The page is the answer to the first question, every hint that to its own."""
        first = ask(order[0], cells, rng)
        turns = (first, *(self._ask_briefly(f, cells, rng) for f in order[1:]))
        page = _write_hint(_evidence(first, cells), PAGE_HINT_WORDS, rng)
        hints = [
            _write_hint(_evidence(turn, cells), HINT_WORDS, rng) for turn in turns[1:]
        ]
        return page, hints, turns
