"""Boxes in a text: [x0, y0, x1, y1] as fractions -> <bbox>…</bbox> on a scale of 999
(spec: data, section 3).

    convert_boxes("at [0.10, 0.25, 0.50, 0.75]", 640, 480, padded=True)
    -> ("at <bbox>99,166,499,832</bbox>", 1)

As in the authors' code any list of four plain numbers counts as a box, [1, 2, 3, 4]
too, and one with a sign, an exponent or a space after the bracket does not.
"""

import re

from vtscale_jax.data.units import BOX, Rejected

SCALE = 999
# Spaces may follow commas only. [0-9] and not \d, which other scripts' digits match.
FOUR_NUMBERS = re.compile(r"\[([0-9.]+), *([0-9.]+), *([0-9.]+), *([0-9.]+)\]")


def convert_boxes(
    text: str, width: int, height: int, *, padded: bool
) -> tuple[str, int]:
    """The text with its boxes rewritten as fractions of the image of `width` x `height`
    pixels, and how many there were.

    `padded`: the boxes refer to the image padded to a centred square, as LLaVA's do.
    Each value is clipped to 0..1, multiplied by 999 and truncated. Raises Rejected for
    a run of digits and dots that is no number, such as 0.1.2.
    """
    image = (width, height)
    return FOUR_NUMBERS.subn(lambda box: _rewritten(box, image, padded), text)


def _rewritten(box: re.Match[str], image: tuple[int, int], padded: bool) -> str:
    width, height = image
    side = max(width, height)
    margin = abs(width - height) // 2
    across = (width, margin if width < height else 0)
    down = (height, margin if height < width else 0)
    values = []
    for digits, (size, before) in zip(
        box.groups(), (across, down, across, down), strict=True
    ):
        value = _number(digits, box.group())
        if padded:
            value = (value * side - before) / size
        values.append(int(min(max(value, 0.0), 1.0) * SCALE))
    return f"<bbox>{','.join(map(str, values))}</bbox>"


def _number(digits: str, box: str) -> float:
    try:
        return float(digits)
    except ValueError as error:
        raise Rejected(BOX, f"{box[:60]}: {digits[:20]!r} is no number") from error
