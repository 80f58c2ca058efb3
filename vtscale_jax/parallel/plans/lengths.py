"""Batch shapes where the data is not at hand: from assumed lengths of its texts.

Memory and time follow from the longest batch that a run must hold, so the assumptions
are about long conversations, not about average ones. Where the data is at hand the
shapes are those of the run (`assemble.Parts.training_shapes`).
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from vtscale_jax import settings
from vtscale_jax.collate import BatchSpec


class Lengths(NamedTuple):
    """A long conversation: `turns` questions, and tokens of each question and answer.

    `system` counts the tokens of the system text, `template` those that a chat format
    puts around each turn.
    """

    turns: int = 8
    question: int = 32
    answer: int = 96
    system: int = 64
    template: int = 8

    def describe(self) -> str:
        """What is assumed, in a line."""
        return (
            f"{self.turns} turns of {self.question} + {self.answer} tokens, "
            f"{self.system} of system text"
        )


def assumed_shapes(
    config: ConfigDict, lengths: Lengths, tokens_per_crop: int
) -> BatchSpec:
    """Shapes of a batch in which every row is as long as assumed, and has every view
    that `data.max_local_views` allows. Rounded up to 16, as a run's are."""
    layout = settings.num_followup_queries(config)
    slots = config.num_queries + layout * (lengths.turns - 1)
    rows, turns = config.data.batch_size, lengths.turns
    views = 1 + config.data.max_local_views
    # A question has one ⟨eos⟩ of its slots in the fusion row; an answer one of its own.
    asked = settings.question_mode(config) == "asked"
    question = lengths.question * asked
    fusion = views * tokens_per_crop + slots + turns * question
    around = lengths.question + lengths.answer + lengths.template + 1
    answer = _rounded(lengths.answer + 1)
    return BatchSpec(
        batch_size=rows,
        tokens_per_crop=tokens_per_crop,
        crops=(rows * views,),
        fusion_length=(_rounded(fusion),),
        query_slots=(slots,),
        llm_length=(_rounded(lengths.system + slots + turns * around),),
        loss_positions=(_rounded(turns * (lengths.answer + 1)),),
        answers=(rows * turns,),
        answer_length=(min(answer, config.model.text.max_length),),
    )


def _rounded(size: int, multiple: int = 16) -> int:
    return multiple * math.ceil(size / multiple)
