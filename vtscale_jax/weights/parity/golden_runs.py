"""Our answers to a golden case, by the names of the reference's answers.

One compiled program per kind of case and shape; the parameters are an argument, so a
perturbed model does not compile again.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax import losses
from vtscale_jax.layers import empty_caches
from vtscale_jax.llm import LLM
from vtscale_jax.stages import align_terms
from vtscale_jax.types import Batch, Kind
from vtscale_jax.vision import VisionConfig, VisionTower
from vtscale_jax.vlm import VLM, AlignModel, ModelConfig
from vtscale_jax.weights.naming import layouts, names
from vtscale_jax.weights.parity import golden_batches as batches
from vtscale_jax.weights.parity.golden_blocks import Tower

# Ids, types, masks and greedy tokens are decisions, not approximations.
EXACT = 0.0
# One block, norm or lookup from the reference's own input to it. On states of order
# one, two float32 computations of it differ by a few units in the last place.
BLOCK = 1e-5
# Whatever the whole model computes from pixels and ids. The rounding of its blocks adds
# up: the reference itself moves by up to 7e-6 when it is run in float64.
MODEL = 1e-4
# Gradients span seven orders of magnitude, so theirs is a relative error, with a floor
# for those that vanish (biases of attention keys): |a − b| / (|b| + GRADIENT_FLOOR).
GRADIENT = 1e-4
GRADIENT_FLOOR = 1e-2

Params = Mapping[str, Any]


class Value(NamedTuple):
    """One answer of ours; compared where `valid` (leading axes) only, if given."""

    array: np.ndarray
    tolerance: float
    valid: np.ndarray | None = None


class Answers(NamedTuple):
    """Values by the reference's names, gradients by its parameters' names, towers whose
    blocks can be run one by one, and pairs of ours that must agree."""

    values: dict[str, Value]
    gradients: dict[str, np.ndarray] = {}
    towers: tuple[Tower, ...] = ()
    pairs: dict[str, tuple[np.ndarray, Value]] = {}


def _states(prefix: str, seen: Params, valid: np.ndarray | None) -> dict[str, Value]:
    """`{prefix}_0` is the input of the blocks, `{prefix}_i` the output of block i."""
    (first,), (stacked,) = seen["input"], seen["blocks"]["hidden"]
    every = [first, *stacked]
    return {
        f"{prefix}_{i}": Value(np.asarray(x), MODEL, valid) for i, x in enumerate(every)
    }


def _embedded(values: dict[str, Value], name: str) -> dict[str, Value]:
    """The values with `name`, which is a lookup or one norm, held to BLOCK."""
    return {**values, name: values[name]._replace(tolerance=BLOCK)}


@functools.partial(jax.jit, static_argnames="config")
def _run_vision(config: VisionConfig, params: Params, crops: jax.Array) -> Any:
    return VisionTower(config).apply(
        {"params": params}, crops, mutable=["intermediates"]
    )


def vision_layers(config: VisionConfig, params: Params, crops: np.ndarray) -> Answers:
    """States of every block, and after the last norm (class token included)."""
    _, state = _run_vision(config, params, crops)
    seen = state["intermediates"]
    values = _embedded(_states("hidden", seen, None), "hidden_0")
    values["post_ln"] = Value(np.asarray(seen["normed"][0]), MODEL)
    tower = Tower(
        "hidden", "post_ln", "post_norm", False, config.blocks, params, keep=None
    )
    return Answers(values, towers=(tower,))


def vision_tokens(config: VisionConfig, params: Params, crops: np.ndarray) -> Value:
    """The tokens that one variant of the tower gives."""
    output, _ = _run_vision(config, params, crops)
    return Value(np.asarray(output.tokens), MODEL)


@functools.partial(jax.jit, static_argnames="config")
def _run_align(config: ModelConfig, params: Params, batch: Batch) -> Any:
    def loss(params: Params) -> Any:
        output, state = AlignModel(config).apply(
            {"params": params},
            batch,
            mutable=["intermediates"],
            capture_intermediates=_is_called(VisionTower),
        )
        terms = align_terms(output, batch)
        return terms.loss, (terms, output, state["intermediates"])

    return jax.grad(loss, has_aux=True)(params)


def _is_called(kind: type[nn.Module]) -> Callable[[nn.Module, str], bool]:
    """A filter that captures what modules of this kind return when called."""
    return lambda module, method: isinstance(module, kind) and method == "__call__"


def align_answers(config: ModelConfig, params: Params, batch: Batch) -> Answers:
    """Everything that a stage-1 case is asked, gradients of its loss included."""
    gradients, (terms, output, seen) = _run_align(config, params, batch)
    answers = batch.answers
    fused = np.asarray(seen["fused"][0])
    keep = ~batches.is_kind(batch.fusion.kinds, Kind.PAD)
    text_keep = ~batches.is_kind(answers.kinds, Kind.PAD)
    rows = np.arange(len(answers.eos))
    is_slot = batch.fusion.slots < fused.shape[1]
    normal = losses.normalize(jnp.asarray(_at_slots(fused, batch, is_slot)))
    is_end = batches.question_ends(batch.fusion)
    zeroed = losses.zero_outliers(output.answers, jnp.asarray(answers.mask))
    text_states = np.asarray(seen["text"]["normed"][0])
    similarity = np.asarray(terms.similarity)

    values = _fusion_values("fused", "fusion_last_hidden", batch, fused)
    values |= _states("fusion_hidden", seen["fusion"], keep)
    values[f"fusion_hidden_{config.fusion.blocks.num_layers}"] = values[
        "fusion_last_hidden"
    ]
    text = _states("text_hidden", seen["text"], text_keep)
    values |= _embedded(text, "text_hidden_0")
    values["text_last_hidden"] = Value(text_states, MODEL, text_keep)
    tokens = seen["vision"]["__call__"][0].tokens
    outliers = np.asarray(zeroed != output.answers)
    for name, tolerance, array in (
        ("vision_tokens", MODEL, tokens),
        ("fusion_qed_eos_hidden", MODEL, _at_slots(fused, batch, is_slot)),
        ("fusion_eos_hidden", MODEL, _at_slots(fused, batch, is_end)),
        ("text_pooled", MODEL, text_states[rows, answers.eos]),
        ("imgque_embeds", MODEL, losses.normalize(output.questions)),
        ("text_proj_raw", MODEL, output.answers),
        ("text_outlier_mask", EXACT, outliers),
        ("text_embeds", MODEL, losses.normalize(zeroed)),
        ("logits_per_image", MODEL, similarity),
        ("logits_per_text", MODEL, similarity.T),
        ("qed_gram", MODEL, jnp.einsum("QD,PD->QP", normal, normal)),
        ("loss_clip", MODEL, terms.contrastive),
        ("loss_orth", MODEL, terms.orthogonality),
        ("loss", MODEL, terms.loss),
    ):
        values[name] = Value(np.asarray(array), tolerance)
    towers = (
        Tower(
            "fusion_hidden",
            "fusion_last_hidden",
            "norm",
            True,
            config.fusion.blocks,
            params["fusion"],
            keep,
        ),
        Tower(
            "text_hidden",
            "text_last_hidden",
            "final_norm",
            False,
            config.text.blocks,
            params["text"],
            text_keep,
        ),
    )
    exported = names.export_tree(layouts.ALIGN_LAYOUT, gradients)
    return Answers(values, exported, towers)


def _at_slots(fused: np.ndarray, batch: Batch, which: np.ndarray) -> np.ndarray:
    """States `[Q, D]` at the chosen slots (`which` `[B, K]`), in row-major order."""
    return fused[np.nonzero(which)[0], batch.fusion.slots[which]]


def _fusion_values(
    packed: str, last: str, batch: Batch, fused: np.ndarray
) -> dict[str, Value]:
    """Types and mask of the packed rows, and the fusion states that they hold."""
    kinds = batch.fusion.kinds
    keep = ~batches.is_kind(kinds, Kind.PAD)
    return {
        f"{packed}_tps": Value(kinds, EXACT),
        f"{packed}_mask": Value(keep, EXACT),
        last: Value(fused, MODEL, keep),
    }


@functools.partial(jax.jit, static_argnames="config")
def _run_vlm(config: ModelConfig, params: Params, batch: Batch) -> Any:
    model = VLM(config)

    def loss(params: Params) -> Any:
        logits, state = model.apply(
            {"params": params},
            batch,
            mutable=["intermediates"],
            capture_intermediates=_is_called(LLM),
        )
        asked: Any = batch.llm
        terms = losses.answer_loss(logits, asked.loss_targets, asked.loss_mask)
        return terms.loss, (terms, state["intermediates"])

    gradients, (terms, seen) = jax.grad(loss, has_aux=True)(params)
    hidden = seen["llm"]["__call__"][0].hidden
    logits = model.apply({"params": params}, hidden, method="logits")
    return gradients, terms, hidden, logits, seen


def vlm_answers(config: ModelConfig, params: Params, batch: Batch) -> Answers:
    """Everything that a stage-2 case is asked, gradients of its loss included.

    The loss is taken as in training, from logits at loss positions; the logits of all
    positions are taken beside it, from the same states.
    """
    asked: Any = batch.llm
    gradients, terms, hidden, logits, seen = _run_vlm(config, params, batch)
    fused = np.asarray(seen["fused"][0])
    is_slot = batch.fusion.slots < fused.shape[1]
    keep = ~batches.is_kind(asked.kinds, Kind.PAD)

    values = _fusion_values("backbone", "backbone_last_hidden", batch, fused)
    values |= _states("llm_hidden", seen["llm"], keep)
    # The reference lists its last state after the final norm.
    last = f"llm_hidden_{config.llm.blocks.num_layers}"
    values[last] = Value(np.asarray(hidden), MODEL, keep)
    values["logits"] = Value(np.asarray(logits), MODEL, keep)
    projected = np.asarray(seen["projected"][0])
    for name, tolerance, array in (
        ("selected_hidden", MODEL, _at_slots(fused, batch, is_slot)),
        ("projected", MODEL, projected[is_slot]),
        ("shifted_labels", EXACT, batches.shifted_labels(asked)),
        ("n_loss_tokens", EXACT, terms.count),
        ("loss", MODEL, terms.loss),
    ):
        values[name] = Value(np.asarray(array), tolerance)
    tower = Tower(
        "llm_hidden", last, "norm", True, config.llm.blocks, params["llm"], keep
    )
    exported = names.export_tree(layouts.VLM_LAYOUT, gradients)
    return Answers(values, exported, (tower,))


@functools.partial(jax.jit, static_argnames="config")
def _query_vectors(config: ModelConfig, params: Params, batch: Batch) -> Any:
    model = VLM(config)
    return model.apply({"params": params}, batch.fusion, method="query_vectors")


@functools.partial(jax.jit, static_argnames="config")
def _read(config: ModelConfig, params: Params, *inputs: Any) -> Any:
    return LLM(config.llm).apply({"params": params["llm"]}, *inputs, method="read")


@functools.partial(jax.jit, static_argnames="config")
def _recompute(config: ModelConfig, params: Params, batch: Batch) -> Any:
    model, variables = VLM(config), {"params": params}
    hidden = model.apply(variables, batch.fusion, batch.llm, method="hidden")
    return model.apply(variables, hidden, method="logits")


def greedy_answers(
    config: ModelConfig, params: Params, batch: Batch, num_tokens: int
) -> Answers:
    """`num_tokens` greedy tokens with a KV cache, and again without one.

    Raises ValueError unless the batch holds one prompt without padding.
    """
    asked: Any = batch.llm
    if asked.ids.shape[0] != 1 or np.any(asked.kinds == int(Kind.PAD)):
        raise ValueError(
            f"in__input_ids: got {asked.ids.shape[0]} rows, expected one prompt "
            "without padding"
        )
    prompt = asked.ids.shape[1]
    vectors = _query_vectors(config, params, batch)
    caches = empty_caches(config.llm.blocks, 1, prompt + num_tokens)
    start = jnp.zeros(1, jnp.int32)
    logits, caches = _read(
        *(config, params, asked.ids, asked.ids >= 0, start, caches),
        *(vectors, asked.slots),
    )
    steps = [logits]
    for i in range(num_tokens - 1):
        token = jnp.argmax(steps[-1], axis=-1)[:, None]
        at = jnp.full(1, prompt + i)
        logits, caches = _read(config, params, token, token >= 0, at, caches)
        steps.append(logits)
    cached = np.concatenate(steps)  # [tokens, W]
    tokens = cached.argmax(axis=-1)

    sequence = np.append(asked.ids[0], tokens).astype(np.int32)[None]
    answer = np.full(num_tokens, int(Kind.ANS), np.int32)
    longer = asked._replace(ids=sequence, kinds=np.append(asked.kinds[0], answer)[None])
    # A place that only fills the bucket would now lie inside the row; there is none.
    full = np.asarray(_recompute(config, params, batch._replace(llm=longer)))
    recomputed = full[0, prompt - 1 : -1]
    values = {
        "new_tokens": Value(tokens, EXACT),
        "sequences": Value(sequence[0], EXACT),
        "step_logits": Value(cached, MODEL),
        "teacher_forced_logits": Value(recomputed, MODEL),
        "teacher_forced_tokens": Value(recomputed.argmax(axis=-1), EXACT),
    }
    pairs = {"cached vs recomputed": (recomputed, Value(cached, MODEL))}
    return Answers(values, pairs=pairs)
