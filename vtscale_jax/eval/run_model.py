"""A run of this package as a model to be evaluated.

Every batch has the same number of rows; the lengths of its texts are the smallest of a
ladder that hold them, so tasks with questions of all lengths compile a bounded number
of programs, and what a question gets does not depend on those beside it. An image that
several questions of a batch are about goes through the vision tower once.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from vtscale_jax.assemble import prompts_encoding
from vtscale_jax.collate import (
    BatchSpec,
    Encoded,
    collate,
    needs_of,
    num_distinct_crops,
)
from vtscale_jax.encoding import Encoding, Seen, encode, see
from vtscale_jax.eval.decoding import answers, batches_at_once, greedy
from vtscale_jax.eval.models import Answer, AnsweringModel, Prepared, Question
from vtscale_jax.generate import for_generation
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.tokens import QueryLayout, as_prompt, llm_slots
from vtscale_jax.trained import RunError, open_on_mesh
from vtscale_jax.types import Batch, Record, Turn
from vtscale_jax.vlm import ModelConfig

SHORTEST = 16


class RunModel(AnsweringModel):
    """The parameters of a `VLM` with `config`, asked one question at a time about one
    image: the first of a question's images, as the paper's own wrapper does.

    `place` brings a batch to the devices, `fetch` a result from them; `identity` says
    which run it is.
    """

    def __init__(
        self,
        params: dict[str, Any],
        config: ModelConfig,
        encoding: Encoding,
        layout: QueryLayout,
        *,
        batch_size: int,
        identity: dict[str, Any],
        place: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
    ) -> None:
        self._params = params
        self._config = config
        self._encoding = encoding
        self._layout = layout
        self.batch_size = batch_size
        self.batches_at_once = batches_at_once(params)
        self._identity = identity
        self._place = place
        self._fetch = fetch

    @property
    def identity(self) -> dict[str, Any]:
        """Which run it is."""
        return self._identity

    def prepare(self, questions: Sequence[Question]) -> Prepared:
        """Encodes the questions: the call that is returned gives the greedy answers.
        SampleError for a question that cannot be encoded."""
        see_once = _see_once()
        samples = [
            encode(_record(i, question), self._encoding, self._layout, see_once)
            for i, question in enumerate(questions)
        ]
        # The last batch is filled up with its last question: one shape, one program.
        filled = samples + [samples[-1]] * (self.batch_size - len(samples))
        batch = collate(filled, self._spec(filled))
        return lambda: self._answer(questions, samples, batch)

    def _answer(
        self,
        questions: Sequence[Question],
        samples: Sequence[Encoded],
        batch: Batch,
    ) -> list[Answer]:
        (limit,) = {question.max_new_tokens for question in questions}
        tokenizer = cast(Any, self._encoding.llm_tokenizer)
        tokens = greedy(
            self._params,
            self._place(batch),
            config=self._config,
            max_new_tokens=limit,
            eos_id=tokenizer.eos_token_id,
        )
        made = answers(self._fetch(tokens), tokenizer)
        return [
            _answer(sample, question, said.text, said.ended)
            for sample, question, said in zip(samples, questions, made, strict=False)
        ]

    def _spec(self, samples: Sequence[Encoded]) -> BatchSpec:
        tokens_per_crop = self._config.vision.tokens_per_crop
        needs = [needs_of(sample, tokens_per_crop) for sample in samples]
        rows = len(samples)
        # Crops lie spread over the devices: so many for each row, on average. Places of
        # crops cost little beside the vision tower: there are always the most, so that
        # only the vision tower is compiled for another number of crops.
        distinct = rows * max(1, -(-num_distinct_crops(samples) // rows))
        places = rows * (1 + self._encoding.max_local_views)
        sizes = {"crops": (places,), "distinct_crops": (distinct,)}
        for axis in needs[0]:
            values = [need[axis] for need in needs]
            if axis == "query_slots":
                sizes[axis] = (max(1, *values),)
            elif axis not in sizes:
                sizes[axis] = (rung(max(values), SHORTEST),)
        return BatchSpec(rows, tokens_per_crop, **sizes)


def open_run_model(run: Path, config: ConfigDict, batch_size: int) -> RunModel:
    """The finished run in the folder `run` over the mesh of `config`, which is from
    `trained.run_config` and may differ in M and inputs. RunError where it cannot be."""
    manifest = RunFolder(run).read("manifest.json")
    if "params_sha256" not in manifest:
        raise RunError(
            f"--run {run} is not finished, as {run / 'manifest.json'} says: go on with "
            "it by the command it was started with (the manifest has it)"
        )
    laid = open_on_mesh(run, config)
    identity = {
        "kind": "run",
        "params_sha256": manifest["params_sha256"],
        # A fresh LLM is drawn from the run's seed and has no entry.
        "llm_sha256": manifest["weights"].get("llm", {}).get("sha256"),
        "num_queries": config.num_queries,
        "trained_inputs": RunFolder(run).read("config.json")["inputs"],
        "inputs": config.inputs,
        "dtype": laid.model.llm.blocks.dtype,
    }
    params, model = laid.params, laid.model
    if laid.mesh.size == 1 or config.mesh.frozen == "replicated":
        # Sharded layers stay stacked: in a loop over them only one is whole at a time.
        params, model = for_generation(params, model)
    return RunModel(
        params,
        model,
        prompts_encoding(laid.parts),
        laid.parts.layout(config.num_queries),
        batch_size=batch_size,
        identity=identity,
        place=laid.place,
        fetch=laid.fetch,
    )


def model_name(run: str, config: ConfigDict, trained_inputs: str) -> str:
    """What a run's model is called in results: M, what the run's name has beside M and
    inputs, and the kind of inputs, which `vtscale_jax.scaling` reads from it.

    >>> asked = ConfigDict({"num_queries": 8, "inputs": "vq"})
    >>> model_name("m64-embedded", asked, "vqq")
    'm8-embedded-vq'
    """
    kind = "vq_ft" if trained_inputs == "vq" else config.inputs
    kept = [
        word
        for word in run.split("-")
        if not re.fullmatch(r"(m|nl|q)\d+|vqq|vq_ft|vq", word)
    ]
    return "-".join([f"m{config.num_queries}", *kept, kind])


def rung(length: int, shortest: int) -> int:
    """The length that holds `length`: a multiple of `shortest` up to eight of them,
    then the smallest of 8, 12, 16, 24, 32, … of them, of which at most a third is
    padding. Lengths up to L have about 8 + 2·log₂ L sizes.

    >>> [rung(length, 16) for length in (1, 16, 70, 128, 129, 200, 300)]
    [16, 16, 80, 128, 192, 256, 384]
    """
    if length <= 8 * shortest:
        return shortest * max(1, -(-length // shortest))
    size = 8 * shortest
    while size < length:
        half = size * 3 // 2
        if half >= length:
            return half
        size *= 2
    return size


def _record(i: int, question: Question) -> Record:
    image = np.asarray(question.images[0]) if question.images else None
    return as_prompt(
        Record(f"item {i} of the batch", image, (Turn(question.text, ""),))
    )


def _see_once() -> Callable[[Any, Encoding, str], Seen]:
    """`encoding.see` that gives an image with the same pixels the same views."""
    seen: dict[Any, Seen] = {}

    def once(image: np.ndarray, encoding: Encoding, sample_id: str) -> Seen:
        pixels = (image.shape, hashlib.sha256(image.tobytes()).digest())
        if pixels not in seen:
            seen[pixels] = see(image, encoding, sample_id)
        return seen[pixels]

    return once


def _answer(sample: Encoded, question: Question, text: str, ended: bool) -> Answer:
    assert sample.llm is not None
    return Answer(
        text,
        ended,
        prompt_tokens=len(sample.llm.ids),
        vision_tokens=len(llm_slots(sample.llm)),
        images_seen=min(1, len(question.images)),
    )
