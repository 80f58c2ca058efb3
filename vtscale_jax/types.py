"""The containers that cross module borders, and the letters of every shape.

Letters, the same in annotations, einsums and tests:

    B batch      V views (crops) of a sample   C crops of a batch, packed
    U different crops of a batch
    P patches    G patch-grid side             T tokens (of a crop, or of a text)
    M queries of a first question              K query slots of a sample
    F fusion sequence    S LLM sequence        A loss positions
    R answers of a batch (align stage)         L text-tower sequence
    J rows of the LLM: B, or fewer when short conversations share a row
    D width      H heads   C head dim (einsums) N layers   W vocabulary

Containers are NamedTuples: pytrees that pass `jax.eval_shape`, shardings and scans. The
parts of a `Batch` hold numpy arrays on the host and jax arrays on the device, hence
`Any` as their array type.
"""

from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

# What pixels on a scale of 0 to 1 are normalised by, red, green and blue: CLIP's.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Kind(IntFlag):
    """What a token is, as the bit flags of the authors' code (spec: token types).

    A position is "of kind X" when `kinds & X` is not zero; it is attended to when it
    is not PAD.
    """

    PAD = 1
    INST = 2
    SYS = 4
    IMG = 8
    QUE = 16
    ANS = 32
    BOS = 64
    EOS = 128
    QED = 256
    TXT = 512


class Turn(NamedTuple):
    """One question and its answer; `family` names the kind of question, or is ""."""

    question: str
    answer: str
    family: str = ""


class Record(NamedTuple):
    """One validated training or evaluation sample.

    `image` is a path or a remote address, the bytes of an image file, RGB pixels
    `[height, width, 3]` uint8, or None for a sample without image. `turns` has at least
    one turn; the last answer may be empty when the model is to produce it. `system`
    None means the template's default.
    """

    id: str
    image: str | bytes | np.ndarray | None
    turns: tuple[Turn, ...]
    system: str | None = None


class TokenSequence(NamedTuple):
    """Token ids and what each one is; same length, no padding."""

    ids: Int[np.ndarray, " T"]
    kinds: Int[np.ndarray, " T"]


class FusionInput(NamedTuple):
    """What the vision tower and the fusion decoder read.

    The crops of all samples are packed into one axis, so no padding crop goes through
    the vision tower; `crop_row[c]` is the sample of crop c and `crop_rank[c]` its rank
    among the crops of that sample (0 is the global view). A crop that only fills a
    bucket has `crop_row == B` and is dropped when it is scattered. Crops are normalised
    pixels, or uint8 ones that the vision tower normalises. Where samples ask about the
    same image its crops may be there once: then `crop_index[c]` says which of `crops`
    c is (None: each is its own, U = C).

    Row b of the sequence is [vision tokens | question tokens and query slots | PAD];
    `ids` is 0 at vision tokens. `slots[b]` lists the positions (in the row) of the
    query slots and ⟨eos⟩ in order; places that only fill the bucket hold F.
    """

    crops: Float[Any, "U height width 3"] | UInt8[Any, "U height width 3"]
    crop_row: Int[Any, " C"]
    crop_rank: Int[Any, " C"]
    ids: Int[Any, "B F"]
    kinds: Int[Any, "B F"]
    slots: Int[Any, "B K"]
    crop_index: Int[Any, " C"] | None = None


class Packing(NamedTuple):
    """Which samples share a row of the language model, which reads each as if it were
    alone.

    Sample b lies in row `sample_row[b]`. `segments` numbers the samples of a row from 1
    (0: padding), and `positions` counts each one's tokens from 0. Three samples in two
    rows of seven:

        segments   1 1 1 1 2 2 0        positions   0 1 2 3 0 1 0
                   1 1 1 1 1 0 0                    0 1 2 3 4 0 0
    """

    sample_row: Int[Any, " B"]
    segments: Int[Any, "J S"]
    positions: Int[Any, "J S"]


class LLMInput(NamedTuple):
    """What the language model reads, and where its loss is taken.

    Row j is that of sample j, unless `packing` says which samples are in it. `slots[b,
    k]` is the position in the LLM row that receives fusion output k of sample b (S
    where there is none). `loss_positions` are the positions whose logits predict the
    token `loss_targets`; places with `loss_mask` False only fill the bucket.
    """

    ids: Int[Any, "J S"]
    kinds: Int[Any, "J S"]
    slots: Int[Any, "B K"]
    loss_positions: Int[Any, "J A"]
    loss_targets: Int[Any, "J A"]
    loss_mask: Bool[Any, "J A"]
    packing: Packing | None = None


class AnswerInput(NamedTuple):
    """Answers of the align stage: row r answers the question whose ⟨eos⟩ is fusion
    slot `question_slot[r]` of sample `question_row[r]`.

    `eos[r]` is the position of the answer's own ⟨eos⟩. A row with `mask` False only
    fills the bucket.
    """

    ids: Int[Any, "R L"]
    kinds: Int[Any, "R L"]
    eos: Int[Any, " R"]
    question_row: Int[Any, " R"]
    question_slot: Int[Any, " R"]
    mask: Bool[Any, " R"]


class Shards(NamedTuple):
    """Which parts of every batch a process feeds: the batch is cut into `total` equal
    parts along its rows, and `own` are this process's, in rising order."""

    own: tuple[int, ...] = (0,)
    total: int = 1

    def rows(self, batch_size: int) -> list[int]:
        """Rows of a batch of `batch_size` that lie in the own parts.

        >>> Shards((0, 2), 4).rows(8)
        [0, 1, 4, 5]
        """
        size = batch_size // self.total
        return [
            row for part in self.own for row in range(part * size, part * size + size)
        ]

    @property
    def feeders(self) -> int:
        """How many processes feed different parts."""
        return self.total // len(self.own)


WHOLE = Shards()  # one process feeds all


class Batch(NamedTuple):
    """One batch of static shapes. Which parts are there depends on the stage only:
    `answers` in align, `llm` in finetune and adapt."""

    fusion: FusionInput
    llm: LLMInput | None = None
    answers: AnswerInput | None = None
