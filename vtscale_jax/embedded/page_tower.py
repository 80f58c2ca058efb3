"""A tower that reads whole pages at once, out of the shipped CLIP that reads views.

A page of 96 pixels is nine cells, each of them one view of 32 pixels to that CLIP. The
tower of pages has its blocks and, for a patch, the position that the patch has within
its cell. So that a patch looks at its own cell first, as it did in a view, nine
channels of the residual stream are given up: channel c is 1 in cell c, nothing else
reads or writes it, and queries and keys meet in it. This is where training starts;
nothing is held to it.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

CELLS = 3  # along a side of a page
# Size of the code in the embedded rows, whose other channels deviate by 0.5 from their
# mean, and of the weights of queries and keys that read it. The scores within a cell
# are about 7 higher for it.
CODE, GAIN = 1.5, 2.0

Tree = dict[str, Any]


def page_tower(view: Tree, num_blocks: int, num_heads: int) -> Tree:
    """The parameters of a tower of whole pages: the first `num_blocks` blocks of the
    tower `view` of a CLIP, in NumPy arrays, with a code for the cell.

    Norms after the blocks, and what our own tower adds to a CLIP's, are left out.
    """
    kept = ("class_embed", "patch_embed", "pre_norm", "blocks")
    tower = {name: _copied(view[name]) for name in kept}
    tower["blocks"] = _first(tower["blocks"], num_blocks)
    channels = _least_read(tower["blocks"])
    _clear(tower, channels)
    tower["pos_embed"] = page_positions(view["pos_embed"], channels)
    # In every head, each cell has a direction of its own at which its queries and its
    # keys meet.
    query, key = (tower["blocks"]["attn"][name]["kernel"] for name in ("query", "key"))
    rng = np.random.default_rng(0)
    size = query.shape[-1] // num_heads
    for block in range(num_blocks):
        for head in range(num_heads):
            directions = np.linalg.qr(rng.normal(size=(size, len(channels))))[0].T
            columns = slice(head * size, (head + 1) * size)
            query[block, channels, columns] = GAIN * directions
            key[block, channels, columns] = GAIN * directions
    return tower


def page_positions(
    table: Float[np.ndarray, "Q D"], channels: Int[np.ndarray, " cells"]
) -> Float[np.ndarray, "R D"]:
    """Positions of a page of CELLS × CELLS views from the table of one view: those
    within the cell, and the code of the cell in `channels`; the class row first."""
    grid = math.isqrt(len(table) - 1)
    rows = table.copy()
    rows[:, channels] = 0
    square = rows[1:].reshape(grid, grid, -1)
    page = np.tile(square, (CELLS, CELLS, 1))
    across = np.arange(CELLS * grid) // grid
    for channel, cell in zip(channels, np.ndindex(CELLS, CELLS), strict=True):
        own = (across[:, None] == cell[0]) & (across == cell[1])
        page[own, channel] = CODE
    return np.concatenate([rows[:1], page.reshape(-1, page.shape[-1])])


def _least_read(blocks: Tree) -> Int[np.ndarray, " cells"]:
    """The channels of the stream from which the blocks read least."""
    read = np.zeros(blocks["norm1"]["scale"].shape[1])
    for norm, kernels in (
        (
            "norm1",
            [blocks["attn"][name]["kernel"] for name in ("query", "key", "value")],
        ),
        ("norm2", [blocks["up"]["kernel"]]),
    ):
        gain = np.abs(blocks[norm]["scale"])[:, :, None]
        read += sum((gain * np.abs(kernel)).sum(axis=(0, 2)) for kernel in kernels)
    return np.sort(np.argsort(read, kind="stable")[: CELLS**2])


def _clear(tower: Tree, channels: Int[np.ndarray, " cells"]) -> None:
    """Takes out, in place, what is written to these channels and read from them, and
    lets them through the norms."""
    blocks = tower["blocks"]
    tower["patch_embed"]["kernel"][..., channels] = 0
    tower["class_embed"][channels] = 0
    for written in (blocks["attn"]["out"], blocks["down"]):
        written["kernel"][..., channels] = 0
        written["bias"][..., channels] = 0
    for read in (blocks["attn"]["value"], blocks["up"]):
        read["kernel"][:, channels] = 0
    for norm in (tower["pre_norm"], blocks["norm1"], blocks["norm2"]):
        norm["scale"][..., channels] = 1
        norm["bias"][..., channels] = 0


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _copied(leaf) for name, leaf in tree.items()}
    return np.array(tree)


def _first(tree: Any, number: int) -> Any:
    if isinstance(tree, dict):
        return {name: _first(leaf, number) for name, leaf in tree.items()}
    return tree[:number]
