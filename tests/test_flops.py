"""Operations and traffic of a step, against XLA's count and the usual formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_shapes import model_config

from configs.base import with_queries
from vtscale_jax import paths, settings
from vtscale_jax.cost.flops import (
    OPTIMIZER_FLOPS,
    Sizes,
    batch_sizes,
    blocks_forward,
    step_flops,
)
from vtscale_jax.cost.traffic import FLOAT32, count_parameters, step_traffic
from vtscale_jax.llm import LLM, LLMConfig
from vtscale_jax.optim import OptimConfig, make_optimizer
from vtscale_jax.stages import STAGES, parameter_shapes
from vtscale_jax.step import initial_state, make_steps
from vtscale_jax.types import AnswerInput, Batch, FusionInput, LLMInput, Packing
from vtscale_jax.vlm import ModelConfig

# XLA also counts norms, softmax, activations, rotary embedding and the optimizer's
# small change: 0.6 to 0.8 per cent at these widths, less at larger ones.
TOLERANCE = 0.01
SIZES = Sizes(6, 3, 64, 32, llm_rows=3, llm_length=80, loss_positions=24)
ALIGN = Sizes(6, 3, 64, 32, answers=6, answer_length=24)


def abstract_batch(sizes: Sizes) -> Batch:
    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.int32)

    C, B, F, K, J, S, A, R, L = sizes
    crops = jax.ShapeDtypeStruct((C, 32, 32, 3), np.float32)
    fusion = FusionInput(crops, ints(C), ints(C), ints(B, F), ints(B, F), ints(B, K))
    if R:
        mask = jax.ShapeDtypeStruct((R,), bool)
        rows = (ints(R, L), ints(R, L), ints(R), ints(R), ints(R))
        return Batch(fusion, answers=AnswerInput(*rows, mask))
    mask = jax.ShapeDtypeStruct((J, A), bool)
    rows = (ints(J, S), ints(J, S), ints(B, K), ints(J, A), ints(J, A))
    packing = None if J == B else Packing(ints(B), ints(J, S), ints(J, S))
    return Batch(fusion, llm=LLMInput(*rows, mask, packing))


def trainable(stage, model: ModelConfig) -> int:
    return sum(part.count for part in count_parameters(stage, model) if part.trains)


def counted_by_xla(
    stage, model: ModelConfig, sizes: Sizes, *, compiled: bool = False
) -> float:
    """XLA's count of the train step as traced, or as compiled, which takes longer; it
    visits a loop's body once."""
    params, frozen = paths.partition(parameter_shapes(stage.model, model), stage.trains)
    optimizer = make_optimizer(OptimConfig(10, 1e-3), params)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer), params)
    step, _ = make_steps(stage, model, optimizer)
    lowered = jax.jit(step).lower(state, frozen, abstract_batch(sizes))
    return (lowered.compile() if compiled else lowered).cost_analysis()["flops"]


@pytest.mark.parametrize("stage, sizes", [("align", ALIGN), ("finetune", SIZES)])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_agrees_with_xla(stage, sizes, remat, layers):
    stage = STAGES[stage]
    if layers == "unrolled":
        compiled = counted = model_config(2, remat=remat, unroll=2)
    else:
        # Three layers in a loop count as one.
        compiled, counted = (model_config(n, remat=remat) for n in (3, 1))
    number = trainable(stage, compiled)
    ours = step_flops(stage, counted, sizes, trainable=number)
    # What takes most to compile shows that the compiler adds and leaves out nothing.
    hardest = remat == "full" and layers == "scanned"
    theirs = counted_by_xla(stage, compiled, sizes, compiled=hardest)
    assert ours.total == pytest.approx(theirs, rel=TOLERANCE)
    assert ours.total < theirs  # what is left out is not less than nothing
    # Negative controls: without what remat repeats, without one of two halves.
    if remat == "full":
        assert ours.useful != pytest.approx(theirs, rel=10 * TOLERANCE)
    halves = [sum(part[i] for part in ours.parts) for i in (2, 3)]
    for half in halves:
        assert ours.total - half != pytest.approx(theirs, rel=10 * TOLERANCE)


@pytest.mark.parametrize("stage, sizes", [("align", ALIGN), ("finetune", SIZES)])
def test_attention_that_is_computed_again_agrees_with_xla(stage, sizes):
    """Long rows, so that attention is a part that shows."""
    llm_length = 240 if sizes.llm_length else 0
    sizes = sizes._replace(fusion_length=240, llm_length=llm_length)
    ours, theirs = [], []
    for remat in ("none", "selective"):
        # Three layers in a loop count as one.
        compiled, counted = (model_config(n, remat=remat) for n in (3, 1))
        number = trainable(STAGES[stage], compiled)
        ours.append(step_flops(STAGES[stage], counted, sizes, trainable=number))
        theirs.append(counted_by_xla(STAGES[stage], compiled, sizes, compiled=True))
    assert ours[0].total == ours[0].useful == ours[1].useful
    more = ours[1].total - ours[0].total
    assert more > 0.01 * ours[0].total
    # Norms, softmax and activations come with it.
    assert 1 <= (theirs[1] - theirs[0]) / more < 1.3


def test_each_part_is_seen_by_xla():
    """Larger by one field, ours and XLA's count grow by the same."""
    stage, model = STAGES["finetune"], model_config(2, unroll=2)

    def both(model: ModelConfig, sizes: Sizes) -> tuple[int, float]:
        count = step_flops(stage, model, sizes, trainable=trainable(stage, model))
        return count.total, counted_by_xla(stage, model, sizes)

    ours, theirs = both(model, SIZES)
    grown = {
        "crops": (model, SIZES._replace(crops=12)),
        "slots": (model, SIZES._replace(query_slots=48)),
        "positions": (model, SIZES._replace(loss_positions=48)),
        "length": (model, SIZES._replace(llm_length=160)),
        "packed rows": (model, SIZES._replace(llm_rows=1)),
        "kernel": (
            dataclasses.replace(
                model, vision=dataclasses.replace(model.vision, merge_kernel=5)
            ),
            SIZES,
        ),
    }
    for name, (other, sizes) in grown.items():
        more_ours, more_theirs = both(other, sizes)
        assert more_ours - ours == pytest.approx(more_theirs - theirs, rel=0.03), name


def test_list_of_layers_knows_no_remat():
    stage = STAGES["finetune"]
    listed = model_config(2, remat="full", stacked=False)
    count = step_flops(stage, listed, SIZES, trainable=trainable(stage, listed))
    assert count.total == count.useful
    assert count.total == pytest.approx(
        counted_by_xla(stage, listed, SIZES), rel=TOLERANCE
    )


@pytest.mark.parametrize("stage, sizes", [("align", ALIGN), ("finetune", SIZES)])
def test_causal_count_drops_what_the_mask_hides(stage, sizes):
    """By the formula: S(S − 1)/2 pairs less in every layer of the causal towers."""
    model = model_config()

    def count(attention):
        parts = step_flops(
            STAGES[stage], model, sizes, trainable=1, attention=attention
        ).parts
        return {part.name: part for part in parts}

    whole, causal = count("whole"), count("causal")
    rows = {
        "fusion": (model.fusion.blocks, sizes.rows, sizes.fusion_length),
        "llm": (model.llm.blocks, sizes.llm_rows, sizes.llm_length),
        "text": (model.text.blocks, sizes.answers, sizes.answer_length),
    }
    for name, part in whole.items():
        if name not in rows:  # vision looks both ways
            assert part == causal[name]
            continue
        blocks, number, length = rows[name]
        hidden = number * length * (length - 1) // 2
        products = 2 * blocks.num_layers * 2 * hidden * blocks.width
        assert part.forward - causal[name].forward == products
        assert part.activations - causal[name].activations == 2 * products
        assert part.weights == causal[name].weights


def test_optimizer_agrees_with_xla():
    params = {"vision": {"kernel": jax.ShapeDtypeStruct((512, 512), np.float32)}}
    optimizer = make_optimizer(OptimConfig(10, 1e-3, weight_decay=0.1), params)

    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(update).lower(params, state, params).compile()
    counted = compiled.cost_analysis()["flops"] / 512**2
    assert counted == pytest.approx(OPTIMIZER_FLOPS, rel=0.05)


def llama() -> LLMConfig:
    config = with_queries(256)("paper,stage=finetune")
    return settings.model_config(config, "bfloat16").llm


def test_llama_is_two_for_each_parameter_and_token():
    """2·N·tokens for N parameters outside the table, and 4·S²·D for each layer."""
    config, rows, length = llama(), 2, 2048
    ids, keep = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

    def whole(model: LLM, ids, keep):
        return model.logits(model(model.embed(ids), keep).hidden)

    shapes = jax.eval_shape(
        lambda key: LLM(config).init(key, ids, keep, method=whole), jax.random.key(0)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 6_738_415_616
    table = config.vocab_size * config.blocks.width
    tokens = rows * length
    usual = 2 * (count - table) * tokens
    usual += 4 * config.blocks.num_layers * tokens * length * config.blocks.width
    head = 2 * tokens * table
    ours = blocks_forward(config.blocks, rows, length, gated=True) + head
    assert ours == pytest.approx(usual, rel=1e-4)  # norms are parameters too
    assert ours < usual


def test_frozen_weights_cost_no_gradient():
    stage, model = STAGES["finetune"], model_config()
    parts = {p.name: p for p in step_flops(stage, model, SIZES, trainable=1).parts}
    assert set(parts) == {"vision", "merge", "fusion", "projector", "llm", "head"}
    assert parts["llm"].weights == parts["head"].weights == 0
    assert parts["head"].activations == parts["head"].forward
    # Attention's two products are of activations: both sides want a gradient.
    assert parts["llm"].activations > parts["llm"].forward
    assert parts["projector"].weights == parts["projector"].forward
    # Pixels want none, so one product of vision has none.
    blocks = model.vision.blocks
    embed = 2 * SIZES.crops * 64 * 3 * 4**2 * blocks.width
    scores = 2 * 2 * 2 * SIZES.crops * 65**2 * blocks.width  # two products, two layers
    vision = parts["vision"]
    assert vision.activations == vision.forward - embed + scores
    assert vision.weights == vision.forward - scores


def test_sizes_are_the_batch():
    assert batch_sizes(abstract_batch(SIZES)) == SIZES
    assert batch_sizes(abstract_batch(ALIGN)) == ALIGN
    with pytest.raises(ValueError, match="align.*no answers and no answer_length"):
        step_flops(STAGES["align"], model_config(), SIZES, trainable=1)
    with pytest.raises(ValueError, match="finetune.*no llm_rows and no llm_length"):
        step_flops(STAGES["finetune"], model_config(), ALIGN, trainable=1)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_parameters_are_all_counted(stage):
    stage, model = STAGES[stage], model_config()
    parts = count_parameters(stage, model)
    shapes = parameter_shapes(stage.model, model)
    assert sum(p.count for p in parts) == sum(
        leaf.size for leaf in jax.tree.leaves(shapes)
    )
    sides = paths.partition(shapes, stage.trains)
    for trains, side in zip((True, False), sides, strict=True):
        count = sum(leaf.size for leaf in jax.tree.leaves(side))
        assert sum(p.count for p in parts if p.trains == trains) == count


def test_tied_embeddings_are_the_head():
    stage, model = STAGES["finetune"], model_config()
    tied = dataclasses.replace(
        model, llm=dataclasses.replace(model.llm, tie_embeddings=True)
    )
    by_name = {p.name: p for p in count_parameters(stage, tied)}
    assert by_name["head"].count == 300 * 320
    assert by_name["llm"].looked_up == 0
    apart = {p.name: p for p in count_parameters(stage, model)}
    assert apart["llm"].looked_up == apart["head"].count == 300 * 320


def test_traffic():
    stage, model = STAGES["finetune"], model_config()
    parameters = count_parameters(stage, model)
    number = sum(p.count for p in parameters if p.trains)

    def traffic(remat: str, accumulation: int = 1):
        return step_traffic(
            parameters,
            model_config(remat=remat),
            SIZES,
            frozen_bytes=2,
            accumulation=accumulation,
        )

    plain, remat = traffic("none"), traffic("full")
    by_name = {p.name: p for p in parameters}
    one = {part.name: part for part in plain.parts}
    again = {part.name: part for part in remat.parts}
    # Forward, backward and, under remat, the blocks once more.
    llm = by_name["llm"]
    assert one["llm"].weights == 2 * 2 * (llm.count - llm.looked_up)
    assert again["llm"].weights == one["llm"].weights + 2 * llm.in_blocks
    assert one["llm"].gradients == 0
    assert one["fusion"].gradients == FLOAT32 * by_name["fusion"].count
    # Under remat a block saves its input: written once, read once.
    tokens = SIZES.llm_rows * SIZES.llm_length
    assert again["llm"].residuals == 2 * 2 * tokens * 320 * FLOAT32
    assert one["llm"].residuals > 5 * again["llm"].residuals
    assert again["head"].residuals == 2 * 3 * 24 * 300 * FLOAT32
    assert plain.optimizer == 7 * FLOAT32 * number
    assert traffic("full", 4).optimizer == FLOAT32 * number * (7 / 4 + 3)
    assert remat.total == sum(
        (remat.weights, remat.gradients, remat.residuals, remat.optimizer)
    )
    assert plain.largest_block == 0 < 2 * remat.largest_block < plain.residuals
    assert remat.hidden == 3 / 2 * plain.hidden
    # Without scores: as many as there are keys for each head and token.
    scores = traffic("selective")
    assert scores.weights == plain.weights and scores.hidden == plain.hidden
    saved = {part.name: part.residuals for part in scores.parts}
    fewer = 2 * 2 * FLOAT32 * SIZES.llm_rows * SIZES.llm_length**2 * 5
    assert one["llm"].residuals - saved["llm"] == fewer
