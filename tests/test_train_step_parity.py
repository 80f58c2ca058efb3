"""The PyTorch step that ours is timed beside is the same function of equal weights."""

import jax
import numpy as np
import pytest

from benchmarks import step_parity
from benchmarks.step_batches import Conversation, batch_of
from vtscale_jax import paths

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model():
    return step_parity.model_of(small=True)


@pytest.fixture(scope="module")
def params(model):
    return step_parity.random_params(model)


def test_the_batch_is_what_is_said_of_it(model):
    batch = step_parity.four_samples(model)
    assert np.bincount(batch.fusion.crop_row).tolist() == [10, 7, 9, 10]
    longest = 9 * 5 + 4 * 20 + 64 + 3 * 8  # views of 5 tokens, questions, queries
    assert 0 <= batch.fusion.ids.shape[1] - longest < 16
    answered = [sum(told + 1 for _, told in turns) for turns in step_parity.TURNS]
    assert batch.llm.loss_mask.sum(axis=1).tolist() == answered


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_those_of_torch(model, params, attention):
    batch = step_parity.four_samples(model)
    found = step_parity.equivalence(model, params, batch, attention)
    assert found.keys() == set(step_parity.ARRANGEMENTS)
    step_parity.check(found)


def test_views_that_fill_a_bucket_change_nothing(model, params):
    batch = step_parity.four_samples(model, most_crops=10)
    own = step_parity.four_samples(model)
    assert batch.fusion.crops.shape[0] == 40 > own.fusion.crops.shape[0]
    assert batch.llm.loss_mask.size > 1.2 * own.llm.loss_mask.size
    step_parity.check(step_parity.equivalence(model, params, batch, "sdpa"))


@pytest.mark.parametrize(
    "path",
    [
        *("vision/patch_embed/kernel", "vision/merge/kernel", "vision/newline"),
        *("fusion/queries", "fusion/blocks/attn/value/kernel", "projector/kernel"),
        *("llm/embed", "llm/blocks/down/kernel"),
    ],
)
def test_one_weight_moved_by_a_tenth_is_another_model(model, params, path):
    """Negative control: the loss sees every part of the model, on either side."""
    import torch

    from benchmarks.torch_step import TorchVLM, inputs

    theirs = TorchVLM(model, "sdpa")
    batch = step_parity.four_samples(model)
    given = inputs(batch, model.vision.tokens_per_crop)
    moved = dict(paths.flatten(params))
    moved[path] = 1.1 * moved[path]
    losses = []
    for tree in (params, paths.unflatten(moved)):
        theirs.load(tree)
        with torch.no_grad():
            losses.append(float(theirs(given, "frugal")))
    assert abs(losses[0] - losses[1]) > 10 * step_parity.TOLERANCE["loss"]


def test_another_function_is_not_timed(model, params):
    """Negative control: a window in our language model is another model than theirs."""
    import dataclasses

    blocks = dataclasses.replace(model.llm.blocks, window=40)
    other = dataclasses.replace(
        model, llm=dataclasses.replace(model.llm, blocks=blocks)
    )
    batch = step_parity.four_samples(model)
    found = step_parity.equivalence(other, params, batch, "sdpa")
    with pytest.raises(ValueError, match="not the same function"):
        step_parity.check(found)


def test_gradient_errors_see_one_tensor():
    from benchmarks.torch_step import gradient_errors

    rng = np.random.default_rng(0)
    one = {name: rng.normal(size=(3, 4)) for name in "ab"} | {"c": np.full(4, 1e-9)}
    assert max(gradient_errors(one, one).values()) == 0
    other = {**one, "b": 1.001 * one["b"], "c": -one["c"]}
    errors = gradient_errors(other, one)
    assert errors["b"] == pytest.approx(1e-3) and errors["a"] == 0
    assert errors["c"] < 1e-3  # nothing but rounding, beside the others
    with pytest.raises(ValueError, match="'b', 'c'"):
        gradient_errors({"a": one["a"]}, one)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_made_up_batches_fit_every_stage(model, stage):
    """All sizes are those of the longest sample, and the loss is taken everywhere it
    should be."""
    from vtscale_jax.stages import get_stage, parameter_shapes

    talks = [Conversation(3, ((4, 5),)), Conversation(1, ((2, 3), (3, 6)))]
    batch = batch_of(talks, model, stage, num_queries=8)
    assert batch.fusion.crops.shape[0] == 4
    assert batch.fusion.slots.shape[1] == 16  # min(8, M) for the second question
    answers = 3 if stage == "align" else 6 + 4 + 7
    counted = batch.answers.mask if stage == "align" else batch.llm.loss_mask
    assert counted.sum() == answers
    chosen = get_stage(stage)
    shapes = parameter_shapes(chosen.model, model)
    found = jax.eval_shape(
        lambda params, batch: chosen.objective(chosen.model(model), params, batch).loss,
        shapes,
        batch,
    )
    assert found.shape == ()
