"""What the tests of Digit Pages know about pages, written apart from the code."""

import re

import numpy as np


def placed(question: str, grid: int) -> int | None:
    """The cell a question names, read by another way than the code under test."""
    if found := re.search(r"row ([\d ]+?) column ((?:\d )*\d)(?= |$)", question):
        row, column = (int(part.replace(" ", "")) for part in found.groups())
        return (row - 1) * grid + column - 1
    words = question.split()
    rows = [i for i, row in enumerate(("top", "middle", "bottom")) if row in words]
    columns = [i for i, name in enumerate(("left", "center", "right")) if name in words]
    return rows[0] * 3 + columns[0] if rows and columns else None


def oracle(question: str, family: str, cells: tuple[int | None, ...]) -> str:
    """The answer, worked out from the words of the question alone."""
    grid = round(len(cells) ** 0.5)
    shown = [str(cell) for cell in cells if cell is not None]
    everything = ["none" if cell is None else str(cell) for cell in cells]
    asked = re.findall(r"\d", question)
    if family == "read":
        return " ".join(shown)
    if family == "describe":
        rows = ["top", "middle", "bottom"]
        if grid != 3:
            rows = ["row " + " ".join(str(row + 1)) for row in range(grid)]
        parts = [
            [rows[i], *everything[i * grid : i * grid + grid]] for i in range(grid)
        ]
        return " ".join(word for part in parts for word in part)
    if family == "locate":
        return everything[placed(question, grid)]
    if family == "exists":
        return "yes" if asked[0] in shown else "no"
    if family == "count":
        return " ".join(str(shown.count(asked[0]) if asked else len(shown)))
    options = dict(re.findall(r"\b([abcd]) (\d)", question))
    assert list(options) == list("abcd") and len(set(options.values())) == 4
    right = everything[placed(question[: question.index(" a ")], grid)]
    return next(letter for letter, digit in options.items() if digit == right)


def opacity_of(image: np.ndarray) -> np.ndarray:
    """How unlike paper the pixels of a noiseless page are: 0 paper, 1 full ink."""
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    paper = colours[counts.argmax()].astype(float)
    distance = np.abs(image - paper).sum(-1)
    return distance / distance.max()
