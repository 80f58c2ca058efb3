"""Boxes: what counts as one, and where it lies afterwards."""

import numpy as np
import pytest

from vtscale_jax.data.boxes import convert_boxes
from vtscale_jax.data.units import BOX, Rejected


@pytest.mark.parametrize(
    "text, size, padded, expected",
    [
        # The example of the specification, computed by the authors' code.
        ("[0.10, 0.25, 0.50, 0.75]", (640, 480), True, "99,166,499,832"),
        ("[0.10, 0.25, 0.50, 0.75]", (480, 640), True, "0,249,499,749"),
        ("[0.10, 0.25, 0.50, 0.75]", (640, 480), False, "99,249,499,749"),
        ("[0.32,0.80,0.59,1.00]", (100, 100), True, "319,799,589,999"),
        ("[0.32,   0.80,0.59, 1.]", (100, 100), False, "319,799,589,999"),
        ("[.5, 0.5, 1, 1]", (7, 7), True, "499,499,999,999"),
        # Any list of four plain numbers is taken for a box.
        ("[1, 2, 3, 4]", (640, 480), False, "999,999,999,999"),
        ("[1, 2, 3, 4]", (640, 480), True, "999,999,999,999"),
        ("[0, 0, 1, 1]", (640, 480), True, "0,0,999,999"),
        # The margin of an odd difference is rounded down: (5 - 2) // 2 = 1.
        ("[0.2, 0.2, 0.6, 0.6]", (5, 2), True, "199,0,599,999"),
        ("[0.2, 0.3, 0.6, 0.5]", (5, 2), True, "199,249,599,749"),
    ],
)
def test_a_box(text, size, padded, expected):
    found, number = convert_boxes(f"at {text}.", *size, padded=padded)
    assert (found, number) == (f"at <bbox>{expected}</bbox>.", 1)


@pytest.mark.parametrize(
    "text",
    [
        "[ 0.1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3, 0.4 ]",
        "[0.1 , 0.2, 0.3, 0.4]",
        "[-0.1, 0.2, 0.3, 0.4]",
        "[1e-1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3]",
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "(0.1, 0.2, 0.3, 0.4)",
        "[0.1,\n0.2, 0.3, 0.4]",
        "[٠.١, 0.2, 0.3, 0.4]",
        "<bbox>1,2,3,4</bbox>",
    ],
)
def test_what_is_no_box_stays(text):
    assert convert_boxes(text, 640, 480, padded=True) == (text, 0)


@pytest.mark.parametrize("run", ["0.1.2", ".", "..", "1..2"])
def test_a_run_that_is_no_number_is_named(run):
    with pytest.raises(Rejected, match=r"0\.5, 0\.5, .*is no number") as caught:
        convert_boxes(f"at [0.5, 0.5, 0.5, {run}]", 8, 8, padded=False)
    assert caught.value.reason == BOX


def test_several_boxes_are_counted():
    text = "a [0, 0, 1, 1], [0, 0, 1, 1] and [0, 0, 1]"
    found, number = convert_boxes(text, 9, 9, padded=False)
    box = "<bbox>0,0,999,999</bbox>"
    assert (found, number) == (f"a {box}, {box} and [0, 0, 1]", 2)


@pytest.mark.parametrize("seed", range(30))
def test_a_rectangle_of_the_padded_square_is_found_again(seed):
    rng = np.random.default_rng(seed)
    width, height = map(int, rng.integers(20, 2000, 2))
    left, right = sorted(rng.uniform(0, width, 2))
    top, bottom = sorted(rng.uniform(0, height, 2))
    # Where a person would draw it: on the picture in the middle of a square.
    side = max(width, height)
    x, y = (side - width) // 2, (side - height) // 2
    drawn = [(left + x) / side, (top + y) / side, (right + x) / side]
    drawn.append((bottom + y) / side)
    text = "[" + ", ".join(f"{value:.9f}" for value in drawn) + "]"
    found, number = convert_boxes(text, width, height, padded=True)
    assert number == 1
    values = np.array([int(v) for v in found[6:-7].split(",")]) / 999
    wanted = np.array([left / width, top / height, right / width, bottom / height])
    # Truncation moves a corner towards the origin, by less than 1/999.
    assert np.all(values <= wanted + 1e-6) and np.all(values > wanted - 1.01 / 999)
