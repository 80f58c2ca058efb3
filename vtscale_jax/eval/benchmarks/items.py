"""A benchmark's table as items to be asked, scored and written as VLMEvalKit does."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from vtscale_jax.eval.benchmarks.images import images_seen
from vtscale_jax.eval.benchmarks.predictions import Predictions, raw_predictions
from vtscale_jax.eval.benchmarks.prompts import prompt
from vtscale_jax.eval.benchmarks.table import Table, read_table
from vtscale_jax.eval.benchmarks.tasks import Task, Version
from vtscale_jax.eval.benchmarks.tsv import TableError
from vtscale_jax.eval.benchmarks.workbooks import write_results
from vtscale_jax.eval.models import Question
from vtscale_jax.eval.scoring.score import Scored, score
from vtscale_jax.eval.scoring.verdicts import commit_name


@dataclasses.dataclass(frozen=True)
class BenchmarkItems:
    """The first `number` rows of a table. `version` says whose rules hold: how images
    reach the model, what a workbook makes of a text, and how it is scored."""

    table: Table
    version: Version
    number: int
    # The row that was read last and its images: rows about one image stand together.
    _last: list[tuple[int, tuple[Image, ...]]] = dataclasses.field(
        default_factory=list, init=False, compare=False, repr=False
    )

    @classmethod
    def read(
        cls, task: Task, file: Path, version: Version, limit: int | None = None
    ) -> "BenchmarkItems":
        """The rows of a file, or the first `limit` of them. TableError as of
        `read_table`, and where so few rows cannot be scored."""
        table = read_table(file, task, version)
        number = min(limit or len(table), len(table))
        for column in task.complete:
            lacking = set(table.rows[column]) - set(table.rows[column][:number])
            if lacking:
                raise TableError(
                    f"{task.name}: its score needs every {column}, and the first "
                    f"{number} rows have none of {', '.join(sorted(lacking))}: take "
                    "more rows (a larger --limit, or none)"
                )
        return cls(table, version, number)

    def first(self, number: int) -> "BenchmarkItems":
        """The first items alone: `number` of them, or as many as can be scored."""
        for column in self.table.task.complete:
            firsts = ~self.table.rows[column].duplicated()
            number = max(number, int(firsts.to_numpy().nonzero()[0][-1]) + 1)
        return dataclasses.replace(self, number=min(number, self.number))

    @property
    def name(self) -> str:
        """The benchmark's name, as VLMEvalKit spells it."""
        return self.table.task.name

    @property
    def scorer(self) -> str:
        """The version of the rules, with VLMEvalKit's commit."""
        return commit_name(self.version)

    @property
    def max_new_tokens(self) -> int:
        """The paper's limit."""
        return self.table.task.max_new_tokens

    @functools.cached_property
    def indices(self) -> list[str]:
        """The rows' indices as text."""
        return [str(index) for index in self.table.rows["index"][: self.number]]

    @property
    def fingerprint(self) -> str:
        """The table's checksum, and how many of its rows are asked."""
        return f"md5:{self.table.md5}, {self.number} rows"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know."""
        return self.table.notes

    def question(self, i: int) -> Question:
        """Row i: its images as a model inside VLMEvalKit sees them, and its prompt.
        ImageError or TableError for a row whose images cannot be read."""
        task = self.table.task
        last = self._last[0] if self._last else None
        if last is None or not self.table.same_images(last[0], i):
            last = (i, images_seen(self.table, i, self.version))
            self._last[:] = [last]
        _, images = last
        return Question(images, prompt(task, self.table.row(i)), task.max_new_tokens)

    def score(self, predictions: Sequence[str]) -> Scored:
        """VLMEvalKit's scores of what a model said, read back from a workbook."""
        found = self._reread(predictions)
        return score(self.name, found.rows, found.texts, self.version)

    def write_files(
        self, folder: Path, model: str, predictions: Sequence[str], scored: Scored
    ) -> None:
        """VLMEvalKit's files of predictions and scores."""
        rows = self.table.rows.iloc[: self.number]
        write_results(
            *(folder, model, self.table.task, rows, predictions, scored, self.version)
        )

    def _reread(self, predictions: Sequence[str]) -> Predictions:
        return raw_predictions(
            self.table, predictions, self.version, range(self.number)
        )
