"""Short conversations side by side in the rows of the language model.

Padding is what a batch of conversations of unequal length mostly consists of. Packing
moves the samples of a batch together into fewer rows; which samples are in a batch, and
what each of them sees, is the same. So are the loss and its gradient.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vtscale_jax.types import Kind, LLMInput, Packing


def first_fit(
    needs: Int[np.ndarray, "B 2"], room: tuple[int, int]
) -> Int[np.ndarray, " B"]:
    """The row of each sample, when each of the `needs` (tokens, loss positions) of a
    row's samples together stay within `room`: the longest samples first, each into the
    first row that has room. Every sample fits alone.

    >>> first_fit(np.array([[4, 1], [2, 1], [5, 1], [3, 1]]), (7, 2)).tolist()
    [1, 0, 0, 1]
    """
    rows = np.zeros(len(needs), np.int32)
    left: list[np.ndarray] = []
    for b in np.argsort(-needs[:, 0], kind="stable"):
        fitting = (r for r, free in enumerate(left) if np.all(free >= needs[b]))
        row = next(fitting, len(left))
        if row == len(left):
            left.append(np.array(room))
        left[row] = left[row] - needs[b]
        rows[b] = row
    return rows


def pack(llm: LLMInput, allowed: Sequence[int]) -> LLMInput:
    """The same samples in the smallest of the `allowed` numbers of rows that
    `first_fit` does with; one of them is the number of samples.

    Rows keep the length S and the number of loss positions A of `llm`, which has one
    row for each sample, padded on the right.
    """
    batch, length = llm.ids.shape
    tokens = np.sum((llm.kinds & Kind.PAD) == 0, axis=1)
    losses = np.sum(llm.loss_mask, axis=1)
    room = (length, llm.loss_mask.shape[1])
    rows = first_fit(np.stack([tokens, losses], axis=1), room)
    number = next(size for size in allowed if size > rows.max())

    def filled(width: int, value: int, dtype: type = np.int32) -> np.ndarray:
        return np.full((number, width), value, dtype)

    made = LLMInput(
        ids=filled(length, 0),
        kinds=filled(length, int(Kind.PAD)),
        slots=llm.slots.copy(),
        loss_positions=filled(room[1], 0),
        loss_targets=filled(room[1], 0),
        loss_mask=filled(room[1], 0, np.bool_),
        packing=Packing(rows, filled(length, 0), filled(length, 0)),
    )
    assert made.packing is not None
    used = np.zeros((number, 3), np.int64)  # tokens, loss positions, samples
    for b, row in enumerate(rows):
        start, first, sample = used[row]
        used[row] += tokens[b], losses[b], 1
        here = slice(start, start + tokens[b])
        made.ids[row, here] = llm.ids[b, : tokens[b]]
        made.kinds[row, here] = llm.kinds[b, : tokens[b]]
        made.packing.segments[row, here] = sample + 1
        made.packing.positions[row, here] = np.arange(tokens[b])
        made.slots[b, llm.slots[b] < length] += start
        there = slice(first, first + losses[b])
        made.loss_positions[row, there] = llm.loss_positions[b, : losses[b]] + start
        made.loss_targets[row, there] = llm.loss_targets[b, : losses[b]]
        made.loss_mask[row, there] = True
    return made
