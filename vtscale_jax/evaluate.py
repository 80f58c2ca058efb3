"""Evaluates a model in training: quickly while it runs, in full at its end.

Only Digit Pages have families and exact answers; other data get the held-out loss.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from vtscale_jax.assemble import Parts, blanked, family_questions, prompts_encoding
from vtscale_jax.eval.families import Answerer, family_scores, sample_rows
from vtscale_jax.parallel.hosts.processes import Processes
from vtscale_jax.parallel.mesh import feed, spread, to_host
from vtscale_jax.program import Program
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.step import Metrics
from vtscale_jax.types import Batch, Record, Shards
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.starting import shipped

SHOWN_PAGES = 6
QUICK_SHARE = 1 / 16
NOTES = (
    "read: right only if every digit of the page is there, in order",
    "describe: right only if every cell is",
)


class Evaluator:
    """Answers held-out questions; in stage align there is no LLM to answer with."""

    def __init__(
        self,
        config: ConfigDict,
        parts: Parts,
        model: ModelConfig,
        mesh: Mesh,
        processes: Processes | None = None,
    ) -> None:
        """With `processes` the tasks of `config.eval.tasks` are asked too."""
        self._config = config
        self._parts = parts
        self._model = model
        self._mesh = mesh
        self._answerers: dict[int, Answerer] = {}
        self.has_families = (
            config.stage != "align"
            and config.data.name == "digit_pages"
            and config.eval.questions > 0
        )
        self._tasks = None
        if processes is not None and config.eval.tasks and config.stage != "align":
            # pandas, which reads the tables, is loaded by runs that have any.
            from vtscale_jax.eval.in_training import TasksInTraining

            self._tasks = TasksInTraining(
                *(config, parts, model, processes),
                place=lambda batch: spread(batch, mesh),
                fetch=to_host,
            )

    def quick(self, params: dict, num_queries: int) -> dict[str, float]:
        """Accuracy per family on a few questions, named `accuracy/<family>`, and the
        mean item score of each task, `score/<task>`."""
        tasks = self._tasks.quick(params, num_queries) if self._tasks else {}
        if not self.has_families:
            return tasks
        number = max(1, round(self._config.eval.questions * QUICK_SHARE))
        records = family_questions(self._config, number, "quick")
        answers = self.answerer(num_queries).answer(params, records, title="held-out")
        scores = family_scores(records, answers)
        found = {f"accuracy/{name}": row["accuracy"] for name, row in scores.items()}
        return found | tasks

    def final(self, params: dict, step: int, folder: RunFolder) -> None:
        """Writes evaluation.json, samples.jsonl and the sample pages, and the results
        of the tasks."""
        if self._tasks:
            self._tasks.final(params, step, folder)
        if not self.has_families:
            return
        config = self._config
        number = config.eval.questions
        records = family_questions(config, number, "final")
        answerer = self.answerer(config.num_queries)
        said = answerer.answer(params, records, title="evaluation")
        blank = None
        if config.eval.blank:
            empty = blanked(records, config)
            blank = answerer.answer(params, empty, title="blank pages")
        rows = sample_rows(records, said, blank)
        if folder.writes:
            _save_pages(records, rows, folder.path, number)
        folder.write_lines("samples.jsonl", rows)
        folder.write(
            "evaluation.json",
            {
                "step": step,
                "num_queries": config.num_queries,
                "families": family_scores(records, said, blank),
                "notes": [*NOTES, *_bounds(config)],
            },
        )

    def answerer(self, num_queries: int) -> Answerer:
        """What answers with M = `num_queries`; made once, compiled at its first use."""
        if num_queries not in self._answerers:
            config, parts = self._config, self._parts
            assert parts.llm_tokenizer is not None  # has_families: not stage align
            encoding = prompts_encoding(parts)
            probe = family_questions(config, 16, "quick")
            self._answerers[num_queries] = Answerer(
                self._model,
                parts.llm_tokenizer,
                encoding,
                parts.layout(num_queries),
                parts.buckets(probe, encoding, num_queries, config.eval.batch_size),
                config.eval.max_new_tokens,
                lambda batch: spread(batch, self._mesh),
                to_host,
            )
        return self._answerers[num_queries]


def heldout_scores(
    program: Program, params: dict, frozen: dict, batches: list[Batch], shards: Shards
) -> dict[str, float]:
    """Mean loss (and what goes with it) over held-out batches, of which each process
    holds its part."""
    under_way: list[Metrics] = []
    for batch in batches:
        placed = feed(batch, program.mesh, shards)
        under_way.append(program.eval_step(params, frozen, placed))
        # As in training, one batch comes while another is computed. With more, they
        # would fill the device, and from 32 on XLA's CPU devices wait for each other.
        jax.block_until_ready(under_way[-2:-1])
    rows = jax.device_get(under_way)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _bounds(config: ConfigDict) -> list[str]:
    """What the frozen LLM itself makes of a page that is written out in words."""
    if config.weights.llm != "embedded":
        return []
    manifest = json.loads(shipped("manifest.json").read_text())
    shares = manifest["llm"]["heldout_accuracy"]
    return [
        f"{family}: told the page in words, the language model has {shares[family]:.1%}"
        for family in config.data.families
    ]


def _save_pages(
    records: list[Record], rows: list[dict[str, Any]], folder: Path, number: int
) -> None:
    """PNG files of the first pages, referred to by the rows of every family."""
    (folder / "samples").mkdir(exist_ok=True)
    for i, record in enumerate(records):
        if i % number < SHOWN_PAGES:
            # All families are asked about the same pages.
            page = record.id.removeprefix(f"{record.turns[-1].family}-")
            name = f"samples/{page}.png"
            Image.fromarray(np.asarray(record.image)).save(folder / name)
            rows[i]["image"] = name
