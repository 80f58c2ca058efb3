"""The three training stages as tables: objective, what trains, where weights come from.

    align     vision, fusion and text tower learn to match questions with answers
    finetune  vision, fusion and projector learn to answer through the frozen LLM
    adapt     the same, from a finished run, for another number of queries M

Every parameter path must be covered by a table's rules; one that is not is an error.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtscale_jax import paths
from vtscale_jax.losses import AlignTerms, align_loss, answer_loss
from vtscale_jax.types import AnswerInput, Batch, FusionInput, LLMInput
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import VLM, AlignModel, AlignOutput, ModelConfig


class Objective(NamedTuple):
    """The loss of a batch, and scalars to log beside it."""

    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


def align_terms(output: AlignOutput, batch: Batch) -> AlignTerms:
    """The align loss of a batch's outputs."""
    return align_loss(
        output.questions,
        output.answers,
        output.logit_scale,
        batch.answers.mask,
        output.slots,
        output.slot_mask,
    )


def _align(model: AlignModel, params: dict, batch: Batch) -> Objective:
    output: Any = model.apply({"params": params}, batch)
    terms = align_terms(output, batch)
    metrics = {
        "contrastive": terms.contrastive,
        "orthogonality": terms.orthogonality,
    }
    return Objective(terms.loss, metrics)


def _answer(model: VLM, params: dict, batch: Batch) -> Objective:
    logits: Any = model.apply({"params": params}, batch)
    terms = answer_loss(logits, batch.llm.loss_targets, batch.llm.loss_mask)
    accuracy = terms.correct / jnp.maximum(terms.count, 1)
    return Objective(terms.loss, {"token_accuracy": accuracy})


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    `trains` are ordered (path regex, trainable?) rules. `sources` are ordered (path
    regex, source) rules, a source being a field of `config.weights`, or "fresh" for
    random initialisation.
    """

    name: str
    model: Callable[[ModelConfig], nn.Module]
    objective: Callable[[Any, dict, Batch], Objective]
    trains: tuple[tuple[str, bool], ...]
    sources: tuple[tuple[str, str], ...]


_ANSWERING = (("llm/.*", False), ("(vision|fusion|projector)/.*", True))

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "align",
            AlignModel,
            _align,
            trains=(("(vision|fusion|text|align)/.*", True),),
            sources=(("(vision|text)/.*", "clip"), ("(fusion|align)/.*", "fresh")),
        ),
        Stage(
            "finetune",
            VLM,
            _answer,
            trains=_ANSWERING,
            sources=(
                ("(vision|fusion)/.*", "init_from"),
                ("projector/.*", "fresh"),
                ("llm/.*", "llm"),
            ),
        ),
        Stage(
            "adapt",
            VLM,
            _answer,
            trains=_ANSWERING,
            sources=(("(vision|fusion|projector)/.*", "init_from"), ("llm/.*", "llm")),
        ),
    )
}


def get_stage(name: str) -> Stage:
    """The stage of that name; ValueError lists the names there are."""
    if name not in STAGES:
        raise ValueError(
            f"stage is {name!r}, expected one of {tuple(STAGES)}: "
            "e.g. --config configs/m256.py:stage=align"
        )
    return STAGES[name]


def init_params(
    stage: Stage, config: ModelConfig, seed: int, wanted: Collection[str] | None = None
) -> dict:
    """Fresh parameters of the stage's model. With `wanted` paths these only: the others
    are never made, so that a large frozen model needs no room twice."""
    model, batch = stage.model(config), smallest_batch(config.vision)

    def init(key, batch: Batch) -> dict:
        flat = paths.flatten(model.init(key, batch)["params"])
        kept = flat if wanted is None else wanted
        return paths.unflatten({path: flat[path] for path in kept})

    return jax.jit(init)(jax.random.key(seed), batch)


def parameter_shapes(
    model: Callable[[Any], nn.Module], config: ModelConfig | VisionConfig
) -> dict:
    """Shapes and dtypes of the parameters of a `VLM`, an `AlignModel` or a
    `VisionTower`, at any size, in no memory. A model is traced for them once."""
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(model, config))


@functools.lru_cache(maxsize=16)
def _traced_shapes(
    model: Callable[[Any], nn.Module], config: ModelConfig | VisionConfig
) -> dict:
    alone = isinstance(config, VisionConfig)
    batch = smallest_batch(config if alone else config.vision)
    inputs = batch.fusion.crops if alone else batch
    return jax.eval_shape(model(config).init, jax.random.key(0), inputs)["params"]


def smallest_batch(vision: VisionConfig) -> Batch:
    """One crop, one query, one answer: enough to trace either model."""
    side, tokens = vision.image_size, vision.tokens_per_crop
    index = np.zeros(1, np.int32)
    row = np.zeros((1, 1), np.int32)
    fusion_row = np.zeros((1, tokens + 1), np.int32)
    fusion = FusionInput(
        crops=np.zeros((1, side, side, 3), np.float32),
        crop_row=index,
        crop_rank=index,
        ids=fusion_row,
        kinds=fusion_row,
        slots=np.full((1, 1), tokens, np.int32),
    )
    llm = LLMInput(row, row, row, row, row, row == 0)
    answers = AnswerInput(row, row, index, index, index, index == 0)
    return Batch(fusion, llm, answers)
