"""Draws a sample sheet of Digit Pages: pages with their questions and answers."""

import textwrap

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vtscale_jax.embedded.digit_pages import DigitPages
from vtscale_jax.types import Record

COLUMNS = 4
PICTURE = 336  # pixels; side at which a page is shown
MARGIN = 16
FONT_SIZE = 15
LINE = 20
WRAP = 45  # characters that fit below a picture
PAPER, TEXT, ANSWER = (255, 255, 255), (40, 40, 40), (0, 90, 170)


def _lines(record: Record) -> list[tuple[str, tuple[int, int, int]]]:
    lines = [(record.id, TEXT)]
    for turn in record.turns:
        question = f"{turn.family}: {turn.question}"
        lines += [(line, TEXT) for line in textwrap.wrap(question, WRAP)]
        answer = textwrap.wrap(f"= {turn.answer}", WRAP, subsequent_indent="  ")
        lines += [(line, ANSWER) for line in answer]
    return lines


def draw_sheet(source: DigitPages) -> UInt8[np.ndarray, "height width 3"]:
    """All pages of `source` in rows of COLUMNS, each above its questions and answers.

    Small pages are enlarged without smoothing, so their true pixels can be seen.
    """
    records = [source[index] for index in range(len(source))]
    texts = [_lines(record) for record in records]
    font = ImageFont.load_default(FONT_SIZE)
    step = PICTURE + MARGIN
    rows = [
        range(i, min(i + COLUMNS, len(records)))
        for i in range(0, len(records), COLUMNS)
    ]
    heights = [PICTURE + MARGIN + LINE * max(len(texts[i]) for i in r) for r in rows]
    width = MARGIN + step * min(COLUMNS, len(records))
    sheet = Image.new("RGB", (width, MARGIN + sum(heights) + MARGIN * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = MARGIN + column * step
            picture = Image.fromarray(source.page(index).image)
            small = picture.width < PICTURE
            resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((PICTURE, PICTURE), resampling), (left, top))
            for number, (line, colour) in enumerate(texts[index]):
                y = top + PICTURE + MARGIN // 2 + number * LINE
                draw.text((left, y), line, colour, font)
        top += height + MARGIN
    return np.asarray(sheet)
