"""Encoded samples to one `Batch` of static shapes taken from a small set of buckets.

Every axis whose length depends on the data has a few allowed sizes in `BatchSpec`, and
a batch takes the smallest that holds it. So a run compiles at most
`BatchSpec.num_shapes(stage)` programs, and nothing is ever cut to fit: a sample that is
too long for the largest size is an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from vtscale_jax.packing import pack
from vtscale_jax.tokens import fusion_slots, llm_slots, loss_targets
from vtscale_jax.types import (
    AnswerInput,
    Batch,
    FusionInput,
    Kind,
    LLMInput,
    Packing,
    Shards,
    TokenSequence,
)

# Axes of a batch: config field -> letter of `types`. Axes packed over the whole batch
# are as long as the sum over samples, the others as long as the longest sample.
PACKED_AXES = {"crops": "C", "answers": "R"}
ROW_AXES = {
    "fusion_length": "F",
    "query_slots": "K",
    "llm_length": "S",
    "loss_positions": "A",
    "answer_length": "L",
}
# Rows of the language model, without sizes one for each sample; and crops that are not
# the same array, without sizes each sample's are its own.
SHARED_AXES = {"llm_rows": "J", "distinct_crops": "U"}
_AXES = PACKED_AXES | ROW_AXES | SHARED_AXES
_SHARED = ("crops", "distinct_crops", "fusion_length", "query_slots")
STAGE_AXES: dict[str, tuple[str, ...]] = {
    "align": (*_SHARED, "answers", "answer_length"),
    "finetune": (*_SHARED, "llm_length", "loss_positions", "llm_rows"),
    "adapt": (*_SHARED, "llm_length", "loss_positions", "llm_rows"),
}


class Encoded(NamedTuple):
    """One sample, ready to be batched.

    `crops` are its views, the global one first, and empty (`V == 0`) for a sample
    without image; normalised, or uint8 for the vision tower to normalise. `fusion` does
    not include the vision tokens. `llm` is there in finetune and adapt, `answers` in
    align.
    """

    id: str
    crops: Float[np.ndarray, "V height width 3"] | UInt8[np.ndarray, "V height width 3"]
    fusion: TokenSequence
    llm: TokenSequence | None = None
    answers: tuple[TokenSequence, ...] | None = None


@dataclass(frozen=True)
class BatchSpec:
    """Sizes of a batch: `batch_size` rows over all hosts, `tokens_per_crop` vision
    tokens of a view, and for each other axis its allowed sizes.

    `crops` and `answers` count those of one host's rows together; the others are the
    length of a row. Axes that the stage does not use may stay empty. With `llm_rows`
    samples share the rows of the language model (see `packing`); its largest size is
    then the number of a host's samples, and other LLM axes have one size. With
    `distinct_crops` samples whose `crops` are one array share them, in batches that one
    process collates whole.
    """

    batch_size: int
    tokens_per_crop: int
    crops: tuple[int, ...]
    fusion_length: tuple[int, ...]
    query_slots: tuple[int, ...]
    llm_length: tuple[int, ...] = ()
    loss_positions: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()
    answer_length: tuple[int, ...] = ()
    llm_rows: tuple[int, ...] = ()
    distinct_crops: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            sizes = value if isinstance(value, tuple) else (value,)
            if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
                raise ValueError(
                    f"BatchSpec.{field.name} is {value}, expected positive sizes in "
                    "rising order without repetition."
                )

    def num_shapes(self, stage: str) -> int:
        """How many different shapes batches of `stage` can have."""
        sizes = [getattr(self, axis) for axis in STAGE_AXES[stage]]
        return math.prod(len(size) for size in sizes if size)

    def describe(self, stage: str) -> str:
        """The allowed sizes and the number of shapes, in a line for the log."""
        sizes = [
            f"{_AXES[axis]} {'|'.join(map(str, getattr(self, axis)))}"
            for axis in STAGE_AXES[stage]
            if getattr(self, axis)
        ]
        return (
            f"B {self.batch_size}, T {self.tokens_per_crop}, {', '.join(sizes)}: "
            f"at most {self.num_shapes(stage)} shapes"
        )

    def agreed(self, shards: Shards) -> "BatchSpec":
        """What hosts that feed different parts use: the largest sizes only, since all
        must have the same shapes without talking to each other."""
        return self.largest() if shards.feeders > 1 else self

    def largest(self) -> "BatchSpec":
        """The same with only the largest size of each axis: one shape."""
        return replace(self, **{axis: getattr(self, axis)[-1:] for axis in _AXES})


def collate(
    samples: Sequence[Encoded], spec: BatchSpec, *, rows: Sequence[int] | None = None
) -> Batch:
    """Joins encoded samples into a batch, exactly as `types.Batch` says.

    Row b of the fusion input is `[T tokens of each crop IMG | fusion sequence | PAD]`,
    and all PAD for a sample without image. Padding ids are 0.

    One of several hosts collates its own `rows` of the global batch (default: the
    first): `crop_row` and `question_row` count in the global batch, and a crop that
    only fills the bucket has `crop_row == spec.batch_size`. Put together along the
    first axis, the hosts' batches are one global batch.

    Raises ValueError, naming the sample and the field, when a sample is longer than
    the largest bucket, or has different numbers of fusion outputs and LLM slots (the
    reference compares only the totals of a batch, so one wrong row shifts the others).
    """
    if spec.distinct_crops and rows is not None:
        raise ValueError(
            "samples share crops only in a batch that one process collates whole: "
            "leave rows out, or distinct_crops empty."
        )
    rows = range(len(samples)) if rows is None else rows
    if not samples or len(rows) != len(samples) or max(rows) >= spec.batch_size:
        raise ValueError(
            f"got {len(samples)} samples for the rows {list(rows)} of a batch of "
            f"{spec.batch_size}: collate one sample for each row, all below it."
        )
    sizes = _chosen_sizes(samples, spec)
    fusion = _fusion_input(samples, spec, sizes, rows)
    if samples[0].llm is not None:
        llm = _llm_input(samples, sizes)
        return Batch(fusion, llm=pack(llm, spec.llm_rows) if spec.llm_rows else llm)
    if samples[0].answers is not None:
        return Batch(fusion, answers=_answer_input(samples, sizes, rows))
    return Batch(fusion)


def blank_batch(
    spec: BatchSpec,
    stage: str,
    view_size: int,
    *,
    hosts: int = 1,
    crop_dtype: Any = np.float32,
) -> Batch:
    """A global batch of the largest shapes, of zeros that take no memory: for tracing
    and compiling without data. `view_size` in pixels; `crop_dtype` is the encoding's.
    """
    axes = [axis for axis in STAGE_AXES[stage] if getattr(spec, axis)]
    sizes = {axis: getattr(spec, axis)[-1] for axis in axes}
    sizes = {a: n * hosts if a in PACKED_AXES else n for a, n in sizes.items()}
    B, C = spec.batch_size, sizes["crops"]
    U = sizes.get("distinct_crops", C)

    def zeros(*shape: int, dtype: type = np.int32) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    fusion = FusionInput(
        crops=zeros(U, view_size, view_size, 3, dtype=crop_dtype),
        crop_row=zeros(C),
        crop_rank=zeros(C),
        ids=zeros(B, sizes["fusion_length"]),
        kinds=zeros(B, sizes["fusion_length"]),
        slots=zeros(B, sizes["query_slots"]),
        crop_index=zeros(C) if spec.distinct_crops else None,
    )
    if stage == "align":
        R, L = sizes["answers"], sizes["answer_length"]
        row = zeros(R)
        mask = zeros(R, dtype=np.bool_)
        answers = AnswerInput(zeros(R, L), zeros(R, L), row, row, row, mask)
        return Batch(fusion, answers=answers)
    S, A, J = sizes["llm_length"], sizes["loss_positions"], sizes.get("llm_rows", B)
    loss, ids = zeros(J, A), zeros(J, S)
    mask = zeros(J, A, dtype=np.bool_)
    packing = Packing(zeros(B), ids, ids) if spec.llm_rows else None
    llm = LLMInput(ids, ids, fusion.slots, loss, loss, mask, packing)
    return Batch(fusion, llm=llm)


def num_distinct_crops(samples: Sequence[Encoded]) -> int:
    """How many crops there are where those that are one array are there once."""
    crops = {id(sample.crops): sample.crops for sample in samples}
    return sum(map(len, crops.values()))


def _num_outputs(sample: Encoded) -> int:
    return len(fusion_slots(sample.fusion)) if len(sample.crops) else 0


def needs_of(sample: Encoded, tokens_per_crop: int) -> dict[str, int]:
    """The length of each axis (a field of `BatchSpec`) that a sample takes."""
    num_crops = len(sample.crops)
    slots = _num_outputs(sample)
    length = num_crops * tokens_per_crop + len(sample.fusion.ids) if num_crops else 0
    needs = {"crops": num_crops, "fusion_length": length, "query_slots": slots}
    if sample.llm is not None:
        needs["llm_length"] = len(sample.llm.ids)
        needs["loss_positions"] = len(loss_targets(sample.llm)[0])
    if sample.answers is not None:
        needs["answers"] = len(sample.answers)
        needs["answer_length"] = max(
            (len(answer.ids) for answer in sample.answers), default=0
        )
    return needs


def _chosen_sizes(samples: Sequence[Encoded], spec: BatchSpec) -> dict[str, int]:
    needs = [needs_of(sample, spec.tokens_per_crop) for sample in samples]
    for sample, need in zip(samples, needs, strict=True):
        if need.keys() != needs[0].keys():
            raise ValueError(
                f"sample {sample.id!r} has {sorted(need)}, but {samples[0].id!r} has "
                f"{sorted(needs[0])}: encode all samples of a batch for one stage."
            )
    sizes = {}
    for axis in needs[0]:
        values = [need[axis] for need in needs]
        needed = sum(values) if axis in PACKED_AXES else max(values)
        longest = samples[int(np.argmax(values))].id
        who = f"sample {longest!r} needs {max(values)}"
        if axis in PACKED_AXES:
            who = f"{len(samples)} samples need {needed} together, {who}"
        sizes[axis] = _chosen(spec, axis, needed, who)
    if spec.distinct_crops:
        needed = num_distinct_crops(samples)
        longest = max(samples, key=lambda sample: len(sample.crops))
        who = f"{len(samples)} samples need {needed} together, sample {longest.id!r} "
        who += f"needs {len(longest.crops)}"
        sizes["distinct_crops"] = _chosen(spec, "distinct_crops", needed, who)
    return sizes


def _chosen(spec: BatchSpec, axis: str, needed: int, who: str) -> int:
    allowed = getattr(spec, axis)
    for size in allowed:
        if size >= needed:
            return size
    raise ValueError(
        f"batches of this run hold {allowed or 'no'} {axis}, but {who}: start "
        "it again with a larger --config.data.headroom (shapes are fitted to "
        "the longest records probed), or shorten or drop the sample."
    )


def _fusion_input(
    samples: Sequence[Encoded],
    spec: BatchSpec,
    sizes: dict[str, int],
    rows: Sequence[int],
) -> FusionInput:
    B, C, F = len(samples), sizes["crops"], sizes["fusion_length"]
    dtype = samples[0].crops.dtype
    U = sizes.get("distinct_crops", C)
    crops = np.zeros((U, *samples[0].crops.shape[1:]), dtype)
    crop_index = np.zeros(C, np.int32)
    crop_row = np.full(C, spec.batch_size, np.int32)
    crop_rank = np.zeros(C, np.int32)
    ids = np.zeros((B, F), np.int32)
    kinds = np.full((B, F), int(Kind.PAD), np.int32)
    slots = np.full((B, sizes["query_slots"]), F, np.int32)
    packed, filled = 0, 0
    firsts: dict[int, int] = {}  # where the crops of an array begin
    for row, sample in enumerate(samples):
        num_crops = len(sample.crops)
        if sample.crops.dtype != dtype:
            raise ValueError(
                f"sample {sample.id!r} has crops of {sample.crops.dtype}, but "
                f"{samples[0].id!r} of {dtype}: encode all with the same data.views."
            )
        if num_crops == 0:
            continue
        here = slice(packed, packed + num_crops)
        first = firsts.get(id(sample.crops)) if spec.distinct_crops else None
        if first is None:
            first = firsts[id(sample.crops)] = filled
            crops[first : first + num_crops] = sample.crops
            filled += num_crops
        crop_index[here] = first + np.arange(num_crops)
        crop_row[here] = rows[row]
        crop_rank[here] = np.arange(num_crops)
        packed += num_crops
        start = num_crops * spec.tokens_per_crop
        stop = start + len(sample.fusion.ids)
        kinds[row, :start] = int(Kind.IMG)
        ids[row, start:stop], kinds[row, start:stop] = sample.fusion
        found = fusion_slots(sample.fusion)
        slots[row, : len(found)] = start + found
    index = crop_index if spec.distinct_crops else None
    return FusionInput(crops, crop_row, crop_rank, ids, kinds, slots, index)


def _llm_input(samples: Sequence[Encoded], sizes: dict[str, int]) -> LLMInput:
    rows, S, A = len(samples), sizes["llm_length"], sizes["loss_positions"]
    ids = np.zeros((rows, S), np.int32)
    kinds = np.full((rows, S), int(Kind.PAD), np.int32)
    slots = np.full((rows, sizes["query_slots"]), S, np.int32)
    positions = np.zeros((rows, A), np.int32)
    targets = np.zeros((rows, A), np.int32)
    mask = np.zeros((rows, A), bool)
    for row, sample in enumerate(samples):
        assert sample.llm is not None
        length = len(sample.llm.ids)
        ids[row, :length], kinds[row, :length] = sample.llm
        found = llm_slots(sample.llm)
        outputs = _num_outputs(sample)
        if len(found) != outputs:
            raise ValueError(
                f"sample {sample.id!r} has {outputs} fusion outputs for {len(found)} "
                "LLM slots: encode both sequences with the same QueryLayout."
            )
        slots[row, : len(found)] = found
        where, what = loss_targets(sample.llm)
        positions[row, : len(where)], targets[row, : len(where)] = where, what
        mask[row, : len(where)] = True
    return LLMInput(ids, kinds, slots, positions, targets, mask)


def _answer_input(
    samples: Sequence[Encoded], sizes: dict[str, int], rows: Sequence[int]
) -> AnswerInput:
    R, L = sizes["answers"], sizes["answer_length"]
    ids = np.zeros((R, L), np.int32)
    kinds = np.full((R, L), int(Kind.PAD), np.int32)
    eos = np.zeros(R, np.int32)
    # Rows that fill the bucket point at row 0, slot 0: in bounds, and masked.
    question_row = np.zeros(R, np.int32)
    question_slot = np.zeros(R, np.int32)
    mask = np.zeros(R, bool)
    r = 0
    for row, sample in enumerate(samples):
        assert sample.answers is not None
        slot_kinds = sample.fusion.kinds[fusion_slots(sample.fusion)]
        ends = np.flatnonzero(slot_kinds & Kind.EOS)
        for slot, answer in zip(ends, sample.answers, strict=True):
            length = len(answer.ids)
            ids[r, :length], kinds[r, :length] = answer
            eos[r] = length - 1
            question_row[r], question_slot[r] = rows[row], slot
            mask[r] = True
            r += 1
    return AnswerInput(ids, kinds, eos, question_row, question_slot, mask)
