"""Digit Pages: pages of real handwritten digits with questions about them.

The handwriting is scikit-learn's `load_digits` (1,797 scans of 8x8, UCI optical
recognition of handwritten digits), split by scan, so a held-out page is written in
handwriting that no training page has. Every page is a pure function of
(seed, split, index); nothing is stored.
"""

import functools
import math
import operator
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vtscale_jax.embedded.questions import (
    FAMILIES,
    Cells,
    ask,
    check_families,
    families_in_order,
)
from vtscale_jax.types import Record

SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.2
# The split must never move: weights that ship were trained on its train part.
SPLIT_SEED = 20240901

SCAN_SIDE = 8
# Zeros around a scan: bicubic interpolation reads two pixels beyond a point.
SCAN_BORDER = 2
# Interpolated ink fades out half a scan pixel beyond the scan on either side.
INK_SPREAD = (SCAN_SIDE + 1) / SCAN_SIDE

# Grey levels: paper and ink are drawn from these, so contrast is at least 110.
LIGHT_PAPER, DARK_INK = (200.0, 250.0), (0.0, 90.0)
DARK_PAPER, LIGHT_INK = (5.0, 55.0), (165.0, 255.0)

Glyphs = tuple[np.ndarray, ...]  # per digit 0..9: uint8 [scans, 12, 12], 255 = ink


@dataclass(frozen=True)
class PageConfig:
    """How pages look.

    page_size: side of the square page, pixels.
    grid: cells per row and per column.
    min_digits, max_digits: digits on a page, uniform, both ends included.
    min_share, max_share: side of the 8x8 scan as a share of the side of its cell.
    rotation: degrees; a digit is turned uniformly within plus or minus this.
    jitter: share of the free room of the cell used to place the digit; 0 centres it.
    light_share: share of pages with dark ink on light paper; the others are inverted.
    tint: grey levels; how far a colour channel of paper or ink strays from grey.
    noise: grey levels; half width of the uniform noise of the paper.

    Pages of 1008 pixels with digits of 24 (for runs that need local views):
    `PageConfig(page_size=1008, min_share=24 / 336, max_share=24 / 336)`.
    """

    page_size: int = 96
    grid: int = 3
    min_digits: int = 4
    max_digits: int = 9
    min_share: float = 0.5
    max_share: float = 0.75
    rotation: float = 10.0
    jitter: float = 1.0
    light_share: float = 0.5
    tint: float = 12.0
    noise: float = 6.0

    def __post_init__(self) -> None:
        _expect(self.page_size >= 1, "page_size", self.page_size, "at least 1 pixel")
        _expect(self.grid >= 1, "grid", self.grid, "at least 1 cell a row")
        cells = self.grid**2
        _expect(
            1 <= self.min_digits <= cells,
            "min_digits",
            self.min_digits,
            f"1 to {cells} (the cells of the grid)",
        )
        _expect(
            self.min_digits <= self.max_digits <= cells,
            "max_digits",
            self.max_digits,
            f"min_digits={self.min_digits} to {cells} (the cells of the grid)",
        )
        _expect(0 <= self.rotation <= 45, "rotation", self.rotation, "0 to 45 degrees")
        _expect(
            self.min_share * self.cell_side >= SCAN_SIDE,
            "min_share",
            self.min_share,
            f"digits of at least {SCAN_SIDE} pixels, the size of the scans, so at "
            f"least {SCAN_SIDE / self.cell_side:.3f} for cells of {self.cell_side:.1f} "
            "pixels; enlarge page_size or min_share, or use a smaller grid",
        )
        _expect(
            self.max_share >= self.min_share,
            "max_share",
            self.max_share,
            f"at least min_share={self.min_share}",
        )
        _expect(
            self.max_share * self.spread <= 1,
            "max_share",
            self.max_share,
            f"at most {1 / self.spread:.3f}, so that a digit turned by "
            f"{self.rotation} degrees stays inside its cell",
        )
        _expect(0 <= self.jitter <= 1, "jitter", self.jitter, "0 to 1")
        _expect(0 <= self.light_share <= 1, "light_share", self.light_share, "0 to 1")
        _expect(0 <= self.tint <= 30, "tint", self.tint, "0 to 30 grey levels")
        _expect(0 <= self.noise <= 30, "noise", self.noise, "0 to 30 grey levels")

    @property
    def cell_side(self) -> float:
        """Side of a cell in pixels; a fraction if the grid does not divide the page."""
        return self.page_size / self.grid

    @property
    def spread(self) -> float:
        """Side of the box around a digit turned the most, per side of its scan."""
        return INK_SPREAD * _box_growth(math.radians(self.rotation))


class Page(NamedTuple):
    """A page: what its cells hold (row-major, None = empty) and how it looks."""

    cells: Cells
    image: UInt8[np.ndarray, "size size 3"]


def _expect(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"PageConfig.{field}: got {got}, expected {expected}")


def _box_growth(angle: float) -> float:
    """Side of the upright box around a unit square turned by `angle` radians."""
    return abs(math.cos(angle)) + abs(math.sin(angle))


def check_split(split: str) -> str:
    """The split itself; ValueError if it is neither "train" nor "heldout"."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {SPLITS}")
    return split


@functools.cache
def load_glyphs(split: str) -> Glyphs:
    """The handwriting of one split: per digit, scans uint8 `[scans, 12, 12]`, which
    are read once and cannot be written to.

    A scan is 8x8 with a border of two zeros; 255 is full ink. Of every digit a fixed
    20 % of the scans are held out, whatever the seed of the pages.
    """
    check_split(split)
    # Half of the start of a command that draws no page would go into this import.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    ink = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8)  # source: 0..16
    ink = ink.reshape(-1, SCAN_SIDE, SCAN_SIDE)
    ink = np.pad(ink, ((0, 0), (SCAN_BORDER, SCAN_BORDER), (SCAN_BORDER, SCAN_BORDER)))
    glyphs = []
    for digit in range(10):
        scans = np.flatnonzero(np.asarray(labels) == digit)
        order = np.random.default_rng([SPLIT_SEED, digit]).permutation(scans)
        heldout = round(HELDOUT_SHARE * len(order))
        chosen = order[:heldout] if split == "heldout" else order[heldout:]
        glyphs.append(ink[np.sort(chosen)])
        glyphs[-1].setflags(write=False)
    return tuple(glyphs)


def draw_cells(rng: np.random.Generator, config: PageConfig) -> Cells:
    """What the cells of a page hold: digits uniform, their number and cells too."""
    number = int(rng.integers(config.min_digits, config.max_digits + 1))
    where = rng.permutation(config.grid**2)[:number].tolist()
    digits = rng.integers(10, size=number).tolist()
    held = dict(zip(where, digits, strict=True))
    return tuple(held.get(cell) for cell in range(config.grid**2))


def _colours(
    rng: np.random.Generator, config: PageConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Paper and ink, float `[3]` each, in grey levels 0..255."""
    light = rng.random() < config.light_share
    papers, inks = (LIGHT_PAPER, DARK_INK) if light else (DARK_PAPER, LIGHT_INK)
    tints = rng.uniform(-config.tint, config.tint, (2, 3))
    paper, ink = rng.uniform(*papers) + tints[0], rng.uniform(*inks) + tints[1]
    return np.clip(paper, 0, 255), np.clip(ink, 0, 255)


def _draw_paper(
    rng: np.random.Generator, paper: np.ndarray, config: PageConfig
) -> UInt8[np.ndarray, "size size 3"]:
    # One random byte per pixel looks its colour up: far faster than drawing floats,
    # which would dominate the time of large pages.
    noise = config.noise * ((np.arange(256) + 0.5) / 128 - 1)
    colours = np.clip(np.rint(paper + noise[:, None]), 0, 255).astype(np.uint8)
    size = config.page_size
    chosen = np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)
    return np.take(colours, chosen, axis=0)


def _draw_digit(
    image: np.ndarray,
    scan: np.ndarray,
    ink: np.ndarray,
    cell: int,
    rng: np.random.Generator,
    config: PageConfig,
) -> None:
    """Draws one scan into its cell of `image`, in place."""
    share, turn, *place = rng.random(4).tolist()
    side = config.cell_side
    scale = side * (config.min_share + share * (config.max_share - config.min_share))
    scale /= SCAN_SIDE  # page pixels per scan pixel
    angle = math.radians(config.rotation) * (2 * turn - 1)
    half = scale * SCAN_SIDE * INK_SPREAD * _box_growth(angle) / 2
    # Cells are at fractions of a pixel if the grid does not divide the page: ink stays
    # within the whole pixels of the cell.
    low = [math.ceil(side * i) for i in reversed(divmod(cell, config.grid))]
    high = [math.floor(side * (i + 1)) for i in reversed(divmod(cell, config.grid))]
    x, y = (
        side * (i + 0.5) + (side / 2 - half) * config.jitter * (2 * p - 1)
        for i, p in zip(reversed(divmod(cell, config.grid)), place, strict=True)
    )
    left, top = max(low[0], math.floor(x - half)), max(low[1], math.floor(y - half))
    right, bottom = min(high[0], math.ceil(x + half)), min(high[1], math.ceil(y + half))

    # PIL maps output to input: turn by -angle about (x, y), then to scan pixels.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle = SCAN_SIDE / 2 + SCAN_BORDER
    across, down = left - x, top - y
    data = (cos, sin, middle + cos * across + sin * down)
    data += (-sin, cos, middle - sin * across + cos * down)
    alpha = Image.fromarray(scan).transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        data,
        Image.Resampling.BICUBIC,
    )
    opacity = np.asarray(alpha, np.float32)[..., None] * np.float32(1 / 255)
    patch = image[top:bottom, left:right]
    blend = patch + (ink.astype(np.float32) - patch) * opacity
    patch[...] = np.rint(blend).astype(np.uint8)


def draw_page(rng: np.random.Generator, glyphs: Glyphs, config: PageConfig) -> Page:
    """Draws one random page in the handwriting of `glyphs` (see `load_glyphs`)."""
    cells = draw_cells(rng, config)
    paper, ink = _colours(rng, config)
    image = _draw_paper(rng, paper, config)
    for cell, digit in enumerate(cells):
        if digit is not None:
            scan = glyphs[digit][int(rng.integers(len(glyphs[digit])))]
            _draw_digit(image, scan, ink, cell, rng, config)
    return Page(cells, image)


def blank_page(config: PageConfig, rng: np.random.Generator | None = None) -> Page:
    """A page without digits: paper drawn as for any page, all cells empty.

    Without `rng` it is always the same page.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    paper, _ = _colours(rng, config)
    return Page((None,) * config.grid**2, _draw_paper(rng, paper, config))


class DigitPages:
    """Random-access source of pages with questions, for `grain` or a plain loop.

    `source[i]` is a Record with `questions_per_page` turns of random families, none of
    which comes again before all have come. It depends on (seed, split, i) only, and its
    page not even on `families` and `questions_per_page`.

        DigitPages("heldout", num_pages=8, seed=7)[3].id  ->  "heldout-7-000003"
    """

    def __init__(
        self,
        split: str,
        *,
        num_pages: int,
        seed: int,
        config: PageConfig | None = None,
        families: tuple[str, ...] = FAMILIES,
        questions_per_page: int = 4,
    ) -> None:
        for field, got, least in (
            ("num_pages", num_pages, 1),
            ("seed", seed, 0),
            ("questions_per_page", questions_per_page, 1),
        ):
            if got < least:
                raise ValueError(f"{field}: got {got}, expected at least {least}")
        self.split = check_split(split)
        self.num_pages = num_pages
        self.seed = seed
        self.config = PageConfig() if config is None else config
        self.families = check_families(families)
        self.questions_per_page = questions_per_page
        self.glyphs = load_glyphs(split)

    def __len__(self) -> int:
        return self.num_pages

    def __repr__(self) -> str:
        return (
            f"DigitPages({self.split!r}, num_pages={self.num_pages}, seed={self.seed}, "
            f"config={self.config}, families={self.families}, "
            f"questions_per_page={self.questions_per_page})"
        )

    @property
    def fingerprint(self) -> str:
        """Names the records: they follow from the arguments and this package's code."""
        return repr(self)

    def longest(self, number: int) -> list[int]:
        """None apart: a page is as likely to be long as any other."""
        del number
        return []

    def _generator(self, index: int, part: int) -> np.random.Generator:
        key = [self.seed, SPLITS.index(self.split), index, part]
        return np.random.default_rng(np.random.SeedSequence(key))

    def _check(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        if not 0 <= number < self.num_pages:
            raise IndexError(f"index: got {number}, expected 0 to {self.num_pages - 1}")
        return number

    def page(self, index: SupportsIndex) -> Page:
        """The page of sample `index`: its cells and its image."""
        return draw_page(
            self._generator(self._check(index), 0), self.glyphs, self.config
        )

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = self._check(index)
        page = self.page(number)
        rng = self._generator(number, 1)
        order = families_in_order(self.families, self.questions_per_page, rng)
        turns = tuple(ask(family, page.cells, rng) for family in order)
        return Record(f"{self.split}-{self.seed}-{number:06d}", page.image, turns)
