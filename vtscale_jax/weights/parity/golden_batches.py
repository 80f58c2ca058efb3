"""Arrays of a golden case → our `Batch`, made from ids and types alone.

It shares nothing with the code that makes training batches, so that an error there
cannot hide here. The reference packs, selects and splices by types; so does this:
everything below follows from `in__*` arrays, never from what the reference answered.
"""

from collections.abc import Mapping

import numpy as np

from vtscale_jax.types import AnswerInput, Batch, FusionInput, Kind, LLMInput

Arrays = Mapping[str, np.ndarray]
SLOT = Kind.QED | Kind.EOS
LOSS = Kind.ANS | Kind.EOS


def is_kind(kinds: np.ndarray, kind: Kind) -> np.ndarray:
    """Where any of the flags of `kind` is set."""
    return (kinds & int(kind)) != 0


def to_crops(pixel_values: np.ndarray) -> np.ndarray:
    """`[C, 3, H, W]` there, `[C, H, W, 3]` here."""
    return np.ascontiguousarray(pixel_values.transpose(0, 2, 3, 1), dtype=np.float32)


def _require_mask(what: str, kinds: np.ndarray, mask: np.ndarray) -> None:
    if not np.array_equal(mask != 0, ~is_kind(kinds, Kind.PAD)):
        raise ValueError(
            f"{what} attention mask: got 1 at PAD or 0 elsewhere, expected it to be 1 "
            "exactly where the type is not PAD"
        )


def listed(where: np.ndarray, empty: int) -> np.ndarray:
    """Columns of the True places of each row, in order, filled up with `empty`."""
    width = int(where.sum(axis=1).max(initial=0))
    table = np.full((where.shape[0], width), empty, np.int32)
    for row, columns in zip(table, map(np.flatnonzero, where), strict=True):
        row[: len(columns)] = columns
    return table


def fusion_input(arrays: Arrays, tokens_per_crop: int) -> FusionInput:
    """The packed rows [vision tokens | question and query ids | PAD].

    A sample without crops keeps its ids at the start of its row, with kind PAD
    throughout, and has no slots, as in the reference.

    Raises ValueError when `in__crop_index` is not ascending (the reference consumes
    crops by counting, so another order has no meaning there) or names no sample.
    """
    ids, kinds = arrays["in__que_input_ids"], arrays["in__que_input_tps"]
    _require_mask("que", kinds, arrays["in__que_attention_mask"])
    num_rows, length = ids.shape
    crop_row = arrays["in__crop_index"].astype(np.int32)
    in_order = np.all(np.diff(crop_row, prepend=0, append=num_rows - 1) >= 0)
    if not in_order:
        raise ValueError(
            f"in__crop_index: got {crop_row.tolist()}, expected ascending sample "
            f"numbers from 0 to {num_rows - 1}; sort the crops by sample"
        )
    counts = np.bincount(crop_row, minlength=num_rows)
    crop_rank = np.arange(len(crop_row)) - (np.cumsum(counts) - counts)[crop_row]
    width = tokens_per_crop * int(counts.max(initial=0)) + length
    row_ids = np.zeros((num_rows, width), np.int32)
    row_kinds = np.full((num_rows, width), int(Kind.PAD), np.int32)
    for b, count in enumerate(counts):
        start = tokens_per_crop * count
        row_ids[b, start : start + length] = ids[b]
        if count:
            row_kinds[b, :start] = int(Kind.IMG)
            row_kinds[b, start : start + length] = kinds[b]
    return FusionInput(
        crops=to_crops(arrays["in__pixel_values"]),
        crop_row=crop_row,
        crop_rank=crop_rank.astype(np.int32),
        ids=row_ids,
        kinds=row_kinds,
        slots=listed(is_kind(row_kinds, SLOT), width),
    )


def llm_input(arrays: Arrays, slots: np.ndarray, fusion_width: int) -> LLMInput:
    """LLM rows with their splice places and loss positions.

    `slots` `[B, K]` and `fusion_width` are those of the fusion input: slot k of a row
    goes to the k-th QED place of that row. Position t bears loss when token t + 1 is an
    answer's.

    Raises ValueError when a row has other numbers of slots and of places. (The
    reference compares their totals over the batch only, and would shift later rows.)
    """
    ids = arrays["in__input_ids"].astype(np.int32)
    kinds = arrays["in__input_tps"].astype(np.int32)
    _require_mask("LLM", kinds, arrays["in__attention_mask"])
    places = is_kind(kinds, Kind.QED)
    given, taken = (slots < fusion_width).sum(axis=1), places.sum(axis=1)
    if not np.array_equal(given, taken):
        raise ValueError(
            f"in__input_tps: got {taken.tolist()} QED places per row for "
            f"{given.tolist()} fusion slots, expected equal numbers"
        )
    bears_loss = is_kind(kinds[:, 1:], LOSS)
    positions = listed(bears_loss, 0)
    mask = np.arange(positions.shape[1]) < bears_loss.sum(axis=1, keepdims=True)
    targets = np.take_along_axis(ids, np.where(mask, positions + 1, 0), axis=1)
    return LLMInput(
        ids=ids,
        kinds=kinds,
        slots=listed(places, ids.shape[1]),
        loss_positions=positions,
        loss_targets=targets,
        loss_mask=mask,
    )


def shifted_labels(inputs: LLMInput, ignored: int = -100) -> np.ndarray:
    """Targets `[B, S-1]` at loss positions, `ignored` elsewhere, from the batch."""
    labels = np.full((inputs.ids.shape[0], inputs.ids.shape[1] - 1), ignored, np.int64)
    rows, columns = np.nonzero(inputs.loss_mask)
    labels[rows, inputs.loss_positions[rows, columns]] = inputs.loss_targets[
        rows, columns
    ]
    return labels


def answer_input(arrays: Arrays, fusion: FusionInput) -> AnswerInput:
    """Answer rows, the r-th paired with the r-th question ⟨eos⟩ of the batch.

    Raises ValueError when an answer has not exactly one ⟨eos⟩, or when there are more
    or fewer answers than questions.
    """
    ids = arrays["in__ans_input_ids"].astype(np.int32)
    kinds = arrays["in__ans_input_tps"].astype(np.int32)
    _require_mask("ans", kinds, arrays["in__ans_attention_mask"])
    ends = is_kind(kinds, Kind.EOS)
    if not np.all(ends.sum(axis=1) == 1):
        raise ValueError(
            f"in__ans_input_tps: got {ends.sum(axis=1).tolist()} ⟨eos⟩ per row, "
            "expected one in each"
        )
    rows, ranks = np.nonzero(_slot_kinds(fusion) & int(Kind.EOS))
    if len(rows) != len(ids):
        raise ValueError(
            f"in__ans_input_ids: got {len(ids)} answers for {len(rows)} questions, "
            "expected equal numbers"
        )
    return AnswerInput(
        ids=ids,
        kinds=kinds,
        eos=ends.argmax(axis=1).astype(np.int32),
        question_row=rows.astype(np.int32),
        question_slot=ranks.astype(np.int32),
        mask=np.ones(len(ids), bool),
    )


def _slot_kinds(fusion: FusionInput) -> np.ndarray:
    """Kind of each slot `[B, K]`, 0 for fillers."""
    padded = np.pad(fusion.kinds, ((0, 0), (0, 1)))  # a filler points one past the row
    return np.take_along_axis(padded, fusion.slots, axis=1)


def question_ends(fusion: FusionInput) -> np.ndarray:
    """Which slots are a question's ⟨eos⟩, `[B, K]`."""
    return is_kind(_slot_kinds(fusion), Kind.EOS)


def align_batch(arrays: Arrays, tokens_per_crop: int) -> Batch:
    """The batch of a stage-1 case."""
    fusion = fusion_input(arrays, tokens_per_crop)
    return Batch(fusion, answers=answer_input(arrays, fusion))


def vlm_batch(arrays: Arrays, tokens_per_crop: int) -> Batch:
    """The batch of a stage-2 case."""
    fusion = fusion_input(arrays, tokens_per_crop)
    width = fusion.ids.shape[1]
    return Batch(fusion, llm=llm_input(arrays, fusion.slots, width))


def first_query_id(cases: Mapping[str, Arrays], vocab_size: int) -> int:
    """The smallest id that stands at a query slot and nowhere else, over all cases.

    With `append_special_padding` slots have ids of their own, from this one on; where
    they share the pad id with ⟨eos⟩, no row is a query row. The split changes names
    only, never numbers.
    """
    slots, others = set(), set()
    for arrays in cases.values():
        ids, kinds = arrays["in__que_input_ids"], arrays["in__que_input_tps"]
        at_slot = is_kind(kinds, Kind.QED)
        slots |= set(ids[at_slot].tolist())
        others |= set(ids[~at_slot].tolist())
    first = min(slots - others, default=vocab_size)
    # A row below another token's cannot start the queries.
    return first if first > max(others, default=-1) else vocab_size
