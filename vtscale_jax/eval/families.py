"""Accuracy by family of questions, on the page and on a blank page in its place.

An answer is right when its words are exactly the expected ones (a whole sequence of
digits for `read`). The blank-page score is what the words of the question alone give:
seeing is the difference.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from vtscale_jax.collate import BatchSpec, collate
from vtscale_jax.encoding import Encoding, encode
from vtscale_jax.eval.decoding import Answer, answers, greedy
from vtscale_jax.metrics import wilson_interval
from vtscale_jax.tokens import QueryLayout, as_prompt
from vtscale_jax.types import Record
from vtscale_jax.vlm import ModelConfig


class Answerer(NamedTuple):
    """What it takes to answer: the model, how prompts are encoded, and their shapes.

    `place` brings a batch to the devices, `fetch` a result from them.
    """

    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    layout: QueryLayout
    spec: BatchSpec
    max_new_tokens: int
    place: Callable[[Any], Any]
    fetch: Callable[[Any], Any] = jax.device_get

    def answer(
        self, params: dict, records: Sequence[Record], *, title: str
    ) -> list[Answer]:
        """The model's greedy answer to the last question of each record.

        The same question about the same image (the same array or path, as for a blank
        page) is answered once.
        """
        prompts = [as_prompt(record) for record in records]
        keys = [
            (p.image if isinstance(p.image, str) else id(p.image), p.system, p.turns)
            for p in prompts
        ]
        asked = dict(zip(keys, prompts, strict=True))
        made = self._answer(params, list(asked.values()), title)
        answered = dict(zip(asked, made, strict=True))
        return [answered[key] for key in keys]

    def _answer(self, params: dict, prompts: list[Record], title: str) -> list[Answer]:
        size = self.spec.batch_size
        made: list[Answer] = []
        starts = range(0, len(prompts), size)
        # A bar on a terminal only: redrawn in a log file it is one endless line.
        bar = tqdm(starts, desc=title, unit="batch", leave=False, disable=None)
        for start in bar:
            chunk = prompts[start : start + size]
            # The last batch is filled up with its last prompt: one shape, one program.
            filled = chunk + [chunk[-1]] * (size - len(chunk))
            samples = [encode(prompt, self.encoding, self.layout) for prompt in filled]
            tokens = greedy(
                params,
                self.place(collate(samples, self.spec)),
                config=self.model,
                max_new_tokens=self.max_new_tokens,
                eos_id=cast(int, self.tokenizer.eos_token_id),
            )
            made += answers(self.fetch(tokens), self.tokenizer)[: len(chunk)]
        return made


def is_correct(prediction: str, answer: str) -> bool:
    """Whether the same words stand in the same order."""
    return prediction.split() == answer.split()


def family_scores(
    records: Sequence[Record],
    predictions: Sequence[Answer],
    blank_predictions: Sequence[Answer] | None = None,
) -> dict[str, dict[str, int | float]]:
    """Per family: n, correct, accuracy with its 95 % Wilson interval, and the same for
    blank pages with the prefix `blank_`."""
    families = [record.turns[-1].family for record in records]
    rows: dict[str, dict[str, int | float]] = {name: {} for name in families}
    columns = {"": predictions}
    if blank_predictions is not None:
        columns["blank_"] = blank_predictions
    for prefix, said in columns.items():
        right = [
            is_correct(prediction.text, record.turns[-1].answer)
            for record, prediction in zip(records, said, strict=True)
        ]
        for name, row in rows.items():
            own = [ok for ok, of in zip(right, families, strict=True) if of == name]
            row.update(_row(prefix, own))
    return rows


def _row(prefix: str, right: list[bool]) -> dict[str, int | float]:
    n, correct = len(right), sum(right)
    low, high = wilson_interval(correct, n)
    return {
        f"{prefix}n": n,
        f"{prefix}correct": correct,
        f"{prefix}accuracy": correct / n,
        f"{prefix}low": low,
        f"{prefix}high": high,
    }


def sample_rows(
    records: Sequence[Record],
    predictions: Sequence[Answer],
    blank_predictions: Sequence[Answer] | None = None,
) -> list[dict[str, Any]]:
    """One row per question for `samples.jsonl`, flagged when the answer is empty or was
    cut before its end; `blank_prediction` where blank pages were asked about."""
    blanks = [{}] * len(records)
    if blank_predictions is not None:
        blanks = [{"blank_prediction": blank.text} for blank in blank_predictions]
    rows = []
    for record, said, blank in zip(records, predictions, blanks, strict=True):
        turn = record.turns[-1]
        flags = ["empty"] * (not said.text) + ["truncated"] * (not said.ended)
        rows.append(
            {
                "id": record.id,
                "family": turn.family,
                "question": turn.question,
                "answer": turn.answer,
                "prediction": said.text,
                "correct": is_correct(said.text, turn.answer),
                **blank,
                "flags": flags,
                "image": None,
            }
        )
    return rows
