"""Digit Pages: handwriting, pages, questions, bad input."""

import hashlib
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from digit_oracle import opacity_of, oracle

from vtscale_jax.embedded.digit_pages import (
    DigitPages,
    PageConfig,
    blank_page,
    draw_cells,
    draw_page,
    load_glyphs,
)
from vtscale_jax.embedded.questions import FAMILIES, ask

HIGH_RESOLUTION = PageConfig(page_size=1008, min_share=24 / 336, max_share=24 / 336)
WIDE = PageConfig(page_size=240, grid=5, min_digits=2, max_digits=25)
# Exactly as large as may be: the box of a digit turned the most fills its cell.
TIGHT = PageConfig(min_digits=1, max_digits=1, min_share=0.7, max_share=0.7673)
GOLDEN_CELLS = (5, 5, 3, 8, 2, 3, 4, 9, 3)
GOLDEN_TURN = ("does the page show 1 ?", "no")


def test_splits_share_no_handwriting():
    train, heldout = load_glyphs("train"), load_glyphs("heldout")
    as_bytes = [
        {scan.tobytes() for digit in s for scan in digit} for s in (train, heldout)
    ]
    assert not as_bytes[0] & as_bytes[1]
    for one, other in zip(train, heldout, strict=True):
        assert len(other) == round(0.2 * (len(one) + len(other)))
    assert sum(len(digit) for digit in train + heldout) == 1797
    # The split is what shipped weights were trained on: it must never move.
    digest = hashlib.sha256(b"".join(digit.tobytes() for digit in heldout)).hexdigest()
    assert digest.startswith("fbcf22209aeb632c")


def test_pages_depend_on_seed_split_and_index_only():
    source = DigitPages("heldout", num_pages=200, seed=7)
    again = DigitPages("heldout", num_pages=50, seed=7, families=("read",))
    record = source[3]
    assert record.id == "heldout-7-000003"
    assert record.turns == source[np.int64(3)].turns
    np.testing.assert_array_equal(record.image, again[3].image)
    np.testing.assert_array_equal(record.image, source.page(3).image)
    others = [
        source[4],
        DigitPages("heldout", num_pages=200, seed=8)[3],
        DigitPages("train", num_pages=200, seed=7)[3],
    ]
    for other in others:
        assert not np.array_equal(record.image, other.image)
    # Pages made elsewhere, at another time, are these very pages.
    assert source.page(0).cells == GOLDEN_CELLS
    assert source[0].turns[0][:2] == GOLDEN_TURN


def test_index_out_of_range():
    source = DigitPages("train", num_pages=2, seed=0)
    assert len(source) == 2 and len(list(source)) == 2
    for index in (-1, 2):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            source[index]


def test_grain_reads_the_source():
    grain = pytest.importorskip("grain")
    source = DigitPages("train", num_pages=16, seed=0)
    data = grain.MapDataset.source(source).shuffle(seed=1)
    assert sorted(record.id for record in data) == [source[i].id for i in range(16)]


@pytest.mark.parametrize("config", [PageConfig(), WIDE], ids=["3x3", "5x5"])
def test_answers_follow_from_the_cells(config):
    source = DigitPages(
        "train", num_pages=250, seed=1, config=config, questions_per_page=6
    )
    phrases = set()
    for index in range(250):
        cells = source.page(index).cells
        turns = source[index].turns
        assert sorted(turn.family for turn in turns) == sorted(FAMILIES)
        for question, answer, family in turns:
            assert answer == oracle(question, family, cells), (question, cells)
            head = re.split(r" a \d b ", question)[0]
            assert len(head.split()) <= 10
            assert f"{question} {answer}" == f"{question} {answer}".lower()
            named = re.sub(r"(the \w+ \w+|row .* column \d+)(?= [?:]|$)", "", head)
            phrases.add(
                (family, re.sub(r"\d", "#", named) if family != "locate" else "")
            )
        assert config.min_digits <= sum(c is not None for c in cells)
    assert len(phrases) > 15


def test_oracle_notices_a_wrong_answer():
    cells = (3, None, 7, None, 5, 1, 2, None, None)
    moved = (3, None, 7, 5, None, 1, 2, None, 9)
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        turns = [ask(family, cells, rng) for _ in range(100)]
        wrong = 0
        for turn in turns:
            assert oracle(turn.question, family, cells) == turn.answer
            if family != "choice":
                wrong += oracle(turn.question, family, moved) != turn.answer
        assert wrong or family == "choice"


def test_balance_of_the_families():
    rng = np.random.default_rng(0)
    number = 4000
    answers = {family: Counter() for family in FAMILIES}
    totals = 0
    for _ in range(number):
        cells = draw_cells(rng, PageConfig())
        for family in ("exists", "choice", "locate", "count"):
            turn = ask(family, cells, rng)
            answers[family][turn.answer] += 1
            totals += family == "count" and not re.search(r"\d", turn.question)
    # Four standard deviations of a binomial share.
    assert abs(answers["exists"]["yes"] / number - 0.5) < 4 * 0.5 / number**0.5
    for letter in "abcd":
        assert abs(answers["choice"][letter] / number - 0.25) < 4 * 0.44 / number**0.5
    # One page in six is full and has no empty cell to ask about.
    assert abs(answers["locate"]["none"] / number - 0.12 * 5 / 6) < 0.02
    assert abs(totals / number - 2 / 3) < 0.03
    assert set(answers["count"]) >= {str(n) for n in range(1, 10)}


def test_families_do_not_come_again_before_all_have():
    source = DigitPages("train", num_pages=50, seed=0, questions_per_page=4)
    first = Counter()
    for record in source:
        families = [turn.family for turn in record.turns]
        assert len(set(families)) == 4
        first[families[0]] += 1
    assert set(first) == set(FAMILIES)
    long = DigitPages(
        "train", num_pages=1, seed=0, families=("read", "count"), questions_per_page=5
    )
    counts = Counter(turn.family for turn in long[0].turns)
    assert sorted(counts.values()) == [2, 3]


@pytest.mark.parametrize("size", [96, 100, 131])
def test_digits_stay_in_their_cells(size):
    config = replace(TIGHT, page_size=size, noise=0.0)
    glyphs = load_glyphs("train")
    side = size / 3
    for seed in range(80):
        page = draw_page(np.random.default_rng(seed), glyphs, config)
        inked = opacity_of(page.image) > 0
        (cell,) = (i for i, digit in enumerate(page.cells) if digit is not None)
        ys, xs = np.nonzero(inked)
        row, column = divmod(cell, 3)
        assert side * row <= ys.min() and ys.max() + 1 <= side * (row + 1)
        assert side * column <= xs.min() and xs.max() + 1 <= side * (column + 1)


def test_no_ink_is_cut_off():
    # One huge digit that fills the page: where the page ends its ink has faded out.
    config = PageConfig(
        grid=1,
        min_digits=1,
        max_digits=1,
        min_share=0.7673,
        max_share=0.7673,
        noise=0.0,
    )
    glyphs = load_glyphs("heldout")
    for seed in range(60):
        page = draw_page(np.random.default_rng(seed), glyphs, config)
        opacity = opacity_of(page.image)
        ring = np.concatenate([opacity[[0, -1]].ravel(), opacity[:, [0, -1]].ravel()])
        assert ring.max() < 0.15 and opacity.max() == 1


def test_a_digit_looks_like_its_scan():
    # Upright and eight times as large: averages over 8x8 blocks give the scan again.
    config = PageConfig(
        page_size=128,
        grid=1,
        min_digits=1,
        max_digits=1,
        min_share=0.5,
        max_share=0.5,
        rotation=0.0,
        jitter=0.0,
        noise=0.0,
        tint=0.0,
    )
    glyphs = load_glyphs("train")
    scans = np.concatenate(glyphs)[:, 2:10, 2:10].reshape(-1, 64).astype(float)
    labels = np.repeat(np.arange(10), [len(digit) for digit in glyphs])
    right = 0
    for seed in range(20):
        page = draw_page(np.random.default_rng(seed), glyphs, config)
        drawn = opacity_of(page.image)[32:96, 32:96]
        blocks = drawn.reshape(8, 8, 8, 8).mean((1, 3)).ravel()
        match = int(np.corrcoef(blocks, scans)[0, 1:].argmax())
        right += labels[match] == page.cells[0]
        shifted = np.roll(drawn, 16, axis=1).reshape(8, 8, 8, 8).mean((1, 3)).ravel()
        best = np.corrcoef(blocks, scans)[0, 1:].max()
        assert best > 0.97
        assert np.corrcoef(shifted, scans[match])[0, 1] < best - 0.1
    assert right == 20


def test_blank_page():
    for config in (PageConfig(), HIGH_RESOLUTION):
        page = blank_page(config)
        assert page.image.shape == (config.page_size, config.page_size, 3)
        assert page.image.dtype == np.uint8
        assert page.cells == (None,) * 9
        np.testing.assert_array_equal(page.image, blank_page(config).image)
    # Same papers as pages with digits: compare a cell that is empty on one of them.
    rng, glyphs = np.random.default_rng(0), load_glyphs("train")
    papers: tuple[list, list] = ([], [])
    for _ in range(300):
        page = draw_page(rng, glyphs, PageConfig())
        if None in page.cells:
            row, column = divmod(page.cells.index(None), 3)
            empty = page.image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            papers[0].append((empty.mean(), empty.std(axis=(0, 1)).mean()))
        blank = blank_page(PageConfig(), rng).image
        papers[1].append((blank.mean(), blank.std(axis=(0, 1)).mean()))
    drawn, blank = (np.array(paper) for paper in papers)
    assert abs((drawn[:, 0] > 128).mean() - (blank[:, 0] > 128).mean()) < 0.15
    assert abs(drawn[:, 1].mean() - blank[:, 1].mean()) < 0.1
    assert drawn[:, 1].max() < 5


@pytest.mark.parametrize("config", [HIGH_RESOLUTION, WIDE], ids=["1008", "5x5"])
def test_other_sizes(config):
    source = DigitPages("heldout", num_pages=3, seed=0, config=config)
    for record in source:
        assert record.image.shape == (config.page_size, config.page_size, 3)
        assert record.image.dtype == np.uint8
    page = source.page(0)
    side = config.page_size // config.grid
    for cell, digit in enumerate(page.cells):
        row, column = divmod(cell, config.grid)
        inside = page.image[row * side :, column * side :][:side, :side].astype(float)
        assert (np.ptp(inside) > 80) == (digit is not None)


@pytest.mark.parametrize(
    "field, value",
    [
        ("page_size", 0),
        ("page_size", 30),
        ("grid", 0),
        ("min_digits", 0),
        ("min_digits", 10),
        ("max_digits", 3),
        ("max_digits", 10),
        ("min_share", 0.1),
        ("max_share", 0.4),
        ("max_share", 0.9),
        ("rotation", -1.0),
        ("rotation", 46.0),
        ("jitter", 1.5),
        ("light_share", -0.1),
        ("tint", 31.0),
        ("noise", -1.0),
        ("noise", float("nan")),
    ],
)
def test_bad_config_names_field_and_value(field, value):
    with pytest.raises(ValueError, match=r"PageConfig\.\w+: got .*, expected") as error:
        PageConfig(**{field: value})
    if field != "page_size" or value == 0:
        assert f"PageConfig.{field}: got {value}" in str(error.value)


def test_bad_sources_and_questions():
    with pytest.raises(ValueError, match="split: got 'test'"):
        DigitPages("test", num_pages=1, seed=0)
    with pytest.raises(ValueError, match="num_pages: got 0"):
        DigitPages("train", num_pages=0, seed=0)
    with pytest.raises(ValueError, match="seed: got -1"):
        DigitPages("train", num_pages=1, seed=-1)
    with pytest.raises(ValueError, match="families: got"):
        DigitPages("train", num_pages=1, seed=0, families=("reed",))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="family: got 'sum'"):
        ask("sum", (1,), rng)
    with pytest.raises(ValueError, match="expected a square number"):
        ask("read", (1, 2), rng)
    with pytest.raises(ValueError, match="without digits"):
        ask("read", blank_page(PageConfig()).cells, rng)
