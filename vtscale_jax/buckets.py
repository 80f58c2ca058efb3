"""Which sizes a batch may have: few of them, and little padding."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vtscale_jax.collate import PACKED_AXES, BatchSpec, Encoded, needs_of

# Axes that also get a size for the batches which need less.
SPLIT = ("crops", "fusion_length", "llm_length")
ROOM = 1.25  # what packed rows have more than the mean sample needs


def fit_buckets(
    probe: Sequence[Encoded],
    *,
    batch_size: int,
    tokens_per_crop: int,
    shard_count: int = 1,
    devices: int = 1,
    headroom: float = 1.25,
    multiple: int = 16,
    most_crops: int | None = None,
    longest_answer: int | None = None,
    packed: bool = False,
) -> BatchSpec:
    """A `BatchSpec` from a handful of encoded samples: few sizes, little padding.

    The largest size holds the longest probed sample with `headroom` for text that is
    longer; query slots and answers per sample have none, so probe samples with the
    most turns. `most_crops` is how many views a sample can have where the probe may not
    show it, `longest_answer` the most tokens that the text tower has positions for.
    Crops, fusion length and LLM length also get a smaller size when half of
    the batches can do with at most 0.8 of the largest. (The longest of n independent
    samples is below the quantile q^(1/n) of one sample with probability q.)
    Text lengths are rounded up to `multiple`; crops and answers, which lie spread over
    the `devices` of a host, to a multiple of their number. At most 8 shapes.

    `packed` lets samples share rows of the language model, of its largest length: the
    smaller number of rows is `ROOM` times what the mean probed sample fills.
    """
    if not probe:
        raise ValueError("fit_buckets got no samples to probe, expected at least one.")
    rows = batch_size // shard_count
    needs = [needs_of(sample, tokens_per_crop) for sample in probe]
    columns = {axis: np.array([need[axis] for need in needs]) for axis in needs[0]}
    vision = np.array([len(sample.crops) * tokens_per_crop for sample in probe])
    crops = max(int(columns["crops"].max()), most_crops or 0)
    half = 0.5 ** (1 / rows)
    chosen: dict[str, tuple[int, ...]] = {}
    for axis, values in columns.items():
        if axis in PACKED_AXES:
            most = crops if axis == "crops" else int(values.max())
            largest = _rounded(rows * most, devices)
            smaller = _rounded(rows * float(values.mean()), devices)
        elif axis == "query_slots":
            largest = smaller = values.max()
        else:
            views, most = np.zeros_like(vision), 0
            if axis == "fusion_length":
                views, most = vision, crops * tokens_per_crop
            text = math.ceil(headroom * (values - views).max())
            largest = _rounded(most + text, multiple)
            if axis == "answer_length" and longest_answer is not None:
                largest = min(largest, longest_answer)
            longest = float(np.quantile(values, half, method="higher"))
            smaller = _rounded(longest, multiple)
        split = axis in SPLIT and not (packed and axis == "llm_length")
        useful = split and 0 < smaller <= 0.8 * largest
        pair = (smaller, largest) if useful else (max(1, largest),)
        chosen[axis] = tuple(int(size) for size in pair)
    if packed:
        chosen |= _packed_sizes(columns, chosen["llm_length"][0], rows, devices)
    return BatchSpec(batch_size, tokens_per_crop, **chosen)


def _packed_sizes(
    needs: Mapping[str, Int[np.ndarray, " n"]], length: int, rows: int, devices: int
) -> dict[str, tuple[int, ...]]:
    """Loss positions and numbers of rows where samples fill rows of `length` tokens."""
    tokens, losses = needs["llm_length"], needs["loss_positions"]
    # As many as a full row has by its share of answers, and any one sample.
    full = math.ceil(ROOM * length * losses.sum() / tokens.sum())
    positions = min(length, max(full, math.ceil(ROOM * losses.max())))
    mean = max(tokens.mean() / length, losses.mean() / positions)
    few = _rounded(max(1, math.ceil(ROOM * rows * mean)), devices)
    return {
        "loss_positions": (positions,),
        "llm_rows": (few, rows) if few <= 0.8 * rows else (rows,),
    }


def _rounded(size: float | int, multiple: int) -> int:
    return multiple * math.ceil(size / multiple)
