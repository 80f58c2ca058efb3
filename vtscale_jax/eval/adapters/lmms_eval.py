"""A model of this package inside lmms-eval (0.7), registered without patching it.

    python -m lmms_eval --model vtscale --model_args run=runs/m64-embedded \\
        --tasks pope,chartqa --batch_size 8 --output_path outputs --log_samples

lmms-eval finds `vtscale` by the entry points of this package (group lmms_eval.models).
Prompts, limits and scores are lmms-eval's own, so they are not those of the paper: see
`python -m vtscale_jax.eval run` for these. The tokens that the LLM read are in its
samples as `token_counts`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from vtscale_jax.eval.adapters.opening import AdapterError, open_run, read_image
from vtscale_jax.eval.models import AnsweringModel, Question

LONGEST = 1024  # where a task says no limit, as most of lmms-eval's own models have it
# What a task may say and greedy answers do not depend on.
WITHOUT_EFFECT = {"top_p", "top_k", "seed", "image_aspect_ratio"}
GREEDY = "--gen_kwargs temperature=0,do_sample=False,num_beams=1"

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Where an answer ends: after so many tokens, and before any of the texts."""

    max_new_tokens: int
    until: tuple[str, ...]


class AnsweringLmms(lmms):
    """Any model that `vtscale_jax.eval` can ask, as a simple model of lmms-eval: one
    question, one greedy answer."""

    is_simple = True

    def __init__(self, model: AnsweringModel) -> None:
        super().__init__()
        self.model = model

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The answers (GenerationResult) to the requests, in their order.

        `args` of a request are (text, gen_kwargs, doc_to_visual, doc_id, task, split).
        An answer is cut before the first stop text, then stripped. Questions with equal
        limits are asked together. AdapterError, before anything is asked, for
        gen_kwargs that are not greedy or not known; later for visuals that are no
        images. What the model raises is let through.
        """
        limits = [_limits(request.args[1], request.args[4]) for request in requests]
        by_limit: dict[int, list[int]] = {}
        for i, limit in enumerate(limits):
            by_limit.setdefault(limit.max_new_tokens, []).append(i)
        results: dict[int, Any] = {}
        left_out = 0
        with tqdm(
            total=len(requests), desc="vtscale", unit="item", disable=self.rank != 0
        ) as bar:
            for length, places in by_limit.items():
                for start in range(0, len(places), self.model.batch_size):
                    chunk = places[start : start + self.model.batch_size]
                    questions = [self._question(requests[i], length) for i in chunk]
                    answers = self.model.answer(questions)
                    for i, question, answer in zip(
                        chunk, questions, answers, strict=True
                    ):
                        left_out += answer.images_seen < len(question.images)
                        text = _cut(answer.text, limits[i].until)
                        results[i] = GenerationResult(
                            text, TokenCounts(input_tokens=answer.prompt_tokens)
                        )
                        self.cache_hook.add_partial(
                            "generate_until", requests[i].args[:2], text
                        )
                    bar.update(len(chunk))
        if left_out:
            _log.warning(
                "%d of %d questions have more images than the model looks at, which "
                "are the first ones",
                *(left_out, len(requests)),
            )
        return [results[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Not offered: NotImplementedError."""
        raise NotImplementedError(
            "this model writes answers and gives no likelihoods of given ones: choose "
            "tasks whose output_type is generate_until (seedbench in place of "
            f"seedbench_ppl, say); {_about(requests)}"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Not offered: NotImplementedError."""
        raise NotImplementedError(
            "this model is asked one question at a time and no rounds that build on "
            "its answers: choose tasks whose output_type is generate_until; "
            f"{_about(requests)}"
        )

    def _question(self, request: Any, max_new_tokens: int) -> Question:
        text, _, doc_to_visual, doc_id, task, split = request.args
        where = f"task {task}, split {split}, item {doc_id}"
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        images = tuple(_image(visual, where) for visual in _flat(visuals))
        return Question(images, text, max_new_tokens)


class VTScaleLmms(AnsweringLmms):
    """The finished run in the folder `run`, over all devices of this process.

    `num_queries` takes its first M queries (default: all), `inputs` is "vqq" or "vq"
    (default: as trained). lmms-eval hands over `batch_size`, `device` and
    `max_batch_size`; AdapterError for what has no meaning here. RunError where the
    folder holds no such run.
    """

    def __init__(
        self,
        run: str | Path,
        inputs: str | None = None,
        num_queries: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        number = str(batch_size)
        if not number.isdecimal() or int(number) < 1 or max_batch_size is not None:
            raise AdapterError(
                f"--batch_size {batch_size}, --max_batch_size {max_batch_size}: write "
                "--batch_size with a whole number of at least 1, and no maximum"
            )
        if device is not None:
            raise AdapterError(
                f"--device {device}: leave it out. JAX takes all devices it finds; "
                "JAX_PLATFORMS and CUDA_VISIBLE_DEVICES choose others"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise AdapterError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: one process drives all "
                "devices here, so start python -m lmms_eval by itself, without "
                "accelerate or torchrun, and raise --batch_size"
            )
        super().__init__(
            open_run(
                run, inputs=inputs, num_queries=num_queries, batch_size=int(number)
            )
        )


def _limits(gen_kwargs: Mapping[str, Any], task: str) -> Limits:
    given = dict(gen_kwargs)
    limit = given.pop("max_new_tokens", LONGEST)
    until = given.pop("until", None) or ()
    sampling = {
        "temperature": float(given.pop("temperature", None) or 0) > 0,
        "do_sample": bool(given.pop("do_sample", False)),
        "num_beams": (given.pop("num_beams", None) or 1) != 1,
    }
    if any(sampling.values()):
        asked = [f"{name} {gen_kwargs[name]}" for name, bad in sampling.items() if bad]
        raise AdapterError(
            f"task {task} asks for {', '.join(asked)}, but this model answers greedily "
            f"only: go without by {GREEDY}, or leave the task out"
        )
    if unknown := sorted(given.keys() - WITHOUT_EFFECT):
        raise AdapterError(
            f"task {task} says {', '.join(f'{k}={given[k]!r}' for k in unknown)} for "
            "generation, which this model does not know; it knows max_new_tokens and "
            "until. Leave the task out, or give it gen_kwargs without"
        )
    stops = (until,) if isinstance(until, str) else tuple(until)
    if not (isinstance(limit, int) and limit >= 1):
        raise AdapterError(
            f"task {task}: max_new_tokens is {limit!r}, expected a whole number of at "
            "least 1"
        )
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise AdapterError(
            f"task {task}: until is {until!r}, expected texts of at least one character"
        )
    return Limits(limit, stops)


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in until if stop in text]
    return text[: min(ends, default=len(text))].strip()


def _flat(visuals: Any) -> list[Any]:
    """The visuals of a question without nesting; none where a task has None."""
    if not isinstance(visuals, list | tuple):
        return [] if visuals is None else [visuals]
    return [one for visual in visuals for one in _flat(visual)]


def _image(visual: Any, where: str) -> Image.Image:
    if isinstance(visual, Image.Image):
        return visual.convert("RGB")
    if isinstance(visual, str | Path):
        try:
            return read_image(visual)
        except AdapterError as error:
            raise AdapterError(f"{where}: {error}") from error
    raise AdapterError(
        f"{where}: a visual is of type {type(visual).__name__}, expected an image of "
        "PIL or the path of an image file: the model looks at images only, leave out "
        "tasks with video or sound"
    )


def _about(requests: Sequence[Any]) -> str:
    tasks = sorted({str(request.task_name) for request in requests})
    return f"asked for by {', '.join(tasks) or 'no task'}"
