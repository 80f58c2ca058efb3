"""Families of Digit Pages as tasks: held-out questions with exact answers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtscale_jax.eval.families import is_correct
from vtscale_jax.eval.ledger import NO_ANSWER
from vtscale_jax.eval.models import Question
from vtscale_jax.eval.scoring.score import Item, Scored
from vtscale_jax.metrics import wilson_interval
from vtscale_jax.types import Record

FAMILIES = ("read", "locate", "count", "exists", "choice", "describe")
SCORER = "exact words"


class FamilyItems(NamedTuple):
    """`records` of one family, each with a single question (see
    `assemble.family_questions`)."""

    name: str
    records: Sequence[Record]
    max_new_tokens: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know."""
        return ()

    @property
    def indices(self) -> list[str]:
        """The ids of the records."""
        return [record.id for record in self.records]

    @property
    def fingerprint(self) -> str:
        """A hash of all questions, answers and pages."""
        digest = hashlib.sha256()
        for record in self.records:
            turn = record.turns[-1]
            digest.update(json.dumps([record.id, turn.question, turn.answer]).encode())
            digest.update(np.asarray(record.image).tobytes())
        return digest.hexdigest()

    def first(self, number: int) -> "FamilyItems":
        """The first items alone."""
        return self._replace(records=self.records[:number])

    def question(self, i: int) -> Question:
        """The page and the question of item i."""
        record = self.records[i]
        page = Image.fromarray(np.asarray(record.image))
        return Question((page,), record.turns[-1].question, self.max_new_tokens)

    def score(self, predictions: Sequence[str]) -> Scored:
        """The share of answers whose words are exactly the expected ones, with its 95 %
        Wilson interval."""
        items = []
        for record, said in zip(self.records, predictions, strict=True):
            answer = record.turns[-1].answer
            right = said != NO_ANSWER and is_correct(said, answer)
            items.append(Item(record.id, said, float(right), {"answer": answer}))
        correct = sum(item.score == 1 for item in items)
        return Scored(
            [{"split": "none", "Overall": correct / len(items)}],
            [{"Overall": wilson_interval(correct, len(items))}],
            items,
            0,
            SCORER,
        )

    @property
    def scorer(self) -> str:
        """What gives the scores."""
        return SCORER

    def write_files(
        self, folder: Path, model: str, predictions: Sequence[str], scored: Scored
    ) -> None:
        """VLMEvalKit knows no Digit Pages: there are no files of its kind."""
