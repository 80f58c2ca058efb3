"""Written-out Digit Pages, the tokenizer of the closed vocabulary, the sample sheet."""

import re
from collections import Counter

import numpy as np
import pytest
from digit_oracle import oracle, placed
from PIL import Image
from transformers import AutoTokenizer

from vtscale_jax.embedded.__main__ import main
from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig
from vtscale_jax.embedded.text_pages import HINT_WORDS, STYLES, TextPages, asked_cell
from vtscale_jax.embedded.vocabulary import (
    SPECIAL,
    WORDS,
    build_tokenizer,
    check_words,
    save_tokenizer,
)

WIDE = PageConfig(page_size=240, grid=5, min_digits=2, max_digits=25)
FACT = re.compile(r"(top|middle|bottom) (left|center|right) (\w+)")


def bare(text: str) -> list[str]:
    """The words of a text without fillers."""
    return [word for word in text.split() if word not in ",;."]


def value(word: str) -> int | None:
    return None if word == "none" else int(word)


def read_facts(text: str) -> dict[int, int | None]:
    facts = {}
    for row, column, word in FACT.findall(" ".join(bare(text))):
        cell = placed(f"{row} {column}", 3)
        assert facts.get(cell, value(word)) == value(word), "facts contradict"
        facts[cell] = value(word)
    return facts


def split_copies(words: list[str]) -> set[tuple[str, ...]]:
    """What nine words are repeated here, if any are: at most one."""
    copies = {tuple(words[i : i + 9]) for i in range(0, len(words), 9)}
    return copies if len(copies) == 1 and len(words) % 9 == 0 else set()


def read_grid(text: str) -> set[tuple[int | None, ...]]:
    """All pages that a grid can be read as: by its commas, else by even repeats."""
    text = re.sub("top|middle|bottom", "", text)
    *groups, rest = [bare(group) for group in text.split(",")]
    readings = set()
    if groups and not rest and all(len(set(group)) == 1 for group in groups):
        readings = split_copies([group[0] for group in groups])
    words = bare(text)
    for repeats in () if readings else range(1, 5):
        groups = [words[i : i + repeats] for i in range(0, len(words), repeats)]
        if all(len(set(group)) == 1 for group in groups):
            readings |= split_copies([group[0] for group in groups])
    return {tuple(map(value, reading)) for reading in readings}


def answers_told(record) -> list[str]:
    """How each answer can be had from what stands before its question; asserts that
    whatever can be worked out agrees with the answer."""
    known: dict[int, int | None] = {}
    if record.style == "grid":
        (cells,) = read_grid(record.page)
        known = dict(enumerate(cells))
    ways = []
    texts = [record.page, *record.hints[1:]]
    for text, turn in zip(texts, record.turns, strict=True):
        if not (record.style == "grid" and text is record.page):
            known |= read_facts(text)
        hint = bare(text)
        if len(known) == 9:
            cells = tuple(known[i] for i in range(9))
            assert oracle(turn.question, turn.family, cells) == turn.answer
            ways.append("page")
        elif turn.family in ("locate", "choice") and (
            placed(turn.question.split(" a ")[0], 3) in known
        ):
            cells = tuple(known.get(i) for i in range(9))
            assert oracle(turn.question, turn.family, cells) == turn.answer
            ways.append("fact")
        elif hint == turn.answer.split():
            ways.append("hint")
        elif turn.family == "choice" and len(hint) == 1:
            assert f" {turn.answer} {hint[0]}" in turn.question
            ways.append("digit")
        else:
            ways.append("")
    return ways


def test_every_question_is_answerable():
    source = TextPages(num_pages=2000, seed=0)
    styles, ways, firsts, yes = Counter(), Counter(), Counter(), Counter()
    for record in source:
        told = answers_told(record)
        assert all(told), record
        styles[record.style] += 1
        ways.update((record.style, way) for way in told)
        firsts[record.style, record.turns[0].family] += 1
        yes.update(t.answer for t in record.turns if t.family == "exists")
    for style, share in zip(STYLES, (0.5, 0.25, 0.25), strict=True):
        assert abs(styles[style] / 2000 - share) < 0.04
    assert {way for style, way in ways if style == "grid"} == {"page"}
    assert {way for style, way in ways if style == "facts"} >= {"page", "fact", "hint"}
    assert {way for style, way in ways if style == "hint"} >= {"hint", "digit"}
    assert len(firsts) == 18
    assert abs(yes["yes"] / yes.total() - 0.5) < 0.04


def test_the_reader_notices_what_is_missing():
    records = list(TextPages(num_pages=300, seed=1))
    hints = [record for record in records if record.style == "hint"]
    assert not any(answers_told(record._replace(page=""))[0] for record in hints)
    grid = next(record for record in records if record.style == "grid")
    assert read_grid(grid.page) == {grid.cells}
    digits = [i for i, word in enumerate(grid.page.split()) if word.isdigit()]
    words = grid.page.split()
    assert read_grid(" ".join(words[: digits[-1]])) != {grid.cells}
    digit = next(word for word in bare(grid.page) if word.isdigit())
    other = grid.page.replace(digit, str((int(digit) + 1) % 10))
    assert read_grid(other) != {grid.cells}


def test_lengths_and_determinism():
    source, again = TextPages(400, 5, max_words=60), TextPages(9, 5, max_words=60)
    lengths = {style: [] for style in STYLES}
    for index in range(400):
        record = source[index]
        assert len(record.hints) == len(record.turns) == 4
        assert record.hints[0] == ""
        assert all(len(hint.split()) <= HINT_WORDS for hint in record.hints)
        lengths[record.style].append(len(record.page.split()))
    # The example of the docstring; shipped weights were trained on these very texts.
    assert TextPages(num_pages=4, seed=6)[0].page == "5 1 9 5 none 0 2 0 none"
    assert source[8] == again[8] != source[7]
    assert TextPages(9, 6, max_words=60)[8] != again[8]
    assert min(lengths["grid"]) == 9 and 55 < max(lengths["grid"]) <= 60
    assert max(lengths["facts"]) <= 60
    assert min(lengths["hint"]) == 1 and max(lengths["hint"]) == 16
    empty = [not hint for record in source for hint in record.hints[1:]]
    assert 0.2 < np.mean(empty) < 0.6
    with pytest.raises(IndexError, match="expected 0 to 8"):
        again[9]


def test_other_grids_and_families():
    for record in TextPages(60, 0, config=WIDE):
        for turn in record.turns:
            assert oracle(turn.question, turn.family, record.cells) == turn.answer
    # No family has a short answer: hints are as long as they must be.
    for record in TextPages(60, 0, families=("describe",), questions_per_page=2):
        if record.style == "hint":
            assert all(answers_told(record))


def test_asked_cell_of_large_grids():
    assert asked_cell("name the digit at row 1 column 1 0", 10) == 9
    assert asked_cell("which digit is at row 1 0 column 1 ?", 10) == 90
    assert asked_cell("pick the digit at the middle left : a 3 b 1 c 0 d 4", 3) == 3
    with pytest.raises(ValueError, match="names a cell"):
        asked_cell("count all digits", 3)


def test_bad_text_pages():
    with pytest.raises(ValueError, match="max_words: got 26, expected at least 27"):
        TextPages(1, 0, max_words=26)
    with pytest.raises(ValueError, match="num_pages: got 0"):
        TextPages(0, 0)
    with pytest.raises(ValueError, match="families: got"):
        TextPages(1, 0, families=())


def test_tokenizer_covers_every_word():
    used = set("answer question".split())
    pages = DigitPages("train", num_pages=700, seed=3, questions_per_page=6)
    wide = DigitPages("train", num_pages=50, seed=3, config=WIDE)
    texts = [
        f"{t.question} {t.answer}" for s in (pages, wide) for r in s for t in r.turns
    ]
    for source in (TextPages(700, 3), TextPages(50, 3, config=WIDE)):
        for record in source:
            texts += [record.page, *record.hints]
            texts += [f"{turn.question} {turn.answer}" for turn in record.turns]
    tokenizer = build_tokenizer()
    for text in texts:
        words = check_words(text)
        used.update(words)
        ids = tokenizer.encode(text)
        assert len(ids) == len(words) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert used == set(WORDS)
    assert list(WORDS) == sorted(set(WORDS))
    with pytest.raises(ValueError, match="'zebra'"):
        check_words("describe the zebra")
    assert tokenizer.unk_token_id in tokenizer.encode("describe the zebra")


def test_the_saved_tokenizer_loads_anywhere(tmp_path):
    save_tokenizer(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    assert tokenizer.get_vocab() == vocabulary and len(tokenizer) == len(vocabulary)
    special = tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert special == (0, 1, 2) and tokenizer.pad_token_id == 2
    text = "<s> Is there any 5? </s>"
    expected = [vocabulary[w] for w in "<s> is there any 5 ? </s>".split()]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected[1:-1]) == "is there any 5 ?"


def test_sheet_command(tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    main(["sheet", "--out", str(out), "--pages", "5", "--families", "read"])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        width, height = image.size
        pixels = np.asarray(image)
    assert width > 1200 and height > 2 * 336
    # The first page stands at the top left, under a margin of 16.
    page = DigitPages("heldout", num_pages=5, seed=0).page(0).image
    shown = np.asarray(Image.fromarray(page).resize((336, 336), 0))
    np.testing.assert_array_equal(pixels[16:352, 16:352], shown)
    assert not np.array_equal(pixels[16:352, 368:704], shown)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--pages", "0"], "num_pages: got 0"),
        (["--max_share", "2"], "PageConfig.max_share: got 2.0"),
        (["--out", "sheet.jpg"], "--out: got sheet.jpg"),
    ],
)
def test_sheet_command_explains_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["sheet", "--out", str(tmp_path / "sheet.png"), *arguments])


def test_help_has_a_worked_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "worked example" in capsys.readouterr().out
