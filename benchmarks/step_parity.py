"""The finetune step that `train_step` compares: sizes, samples and weights, and whether
ours and PyTorch's (`torch_step`) are the same function of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.step_batches import Conversation, batch_of

NUM_QUERIES, MOST_VIEWS, RATE, CLIP = 64, 9, 1e-4, 1.0
IMAGES = ((640, 480), (640, 426), (1000, 400), (1500, 2000))
TURNS = (
    ((16, 70), (14, 60), (14, 60)),
    ((24, 180),),
    ((20, 8), (20, 8), (20, 8), (20, 8)),
    ((18, 16), (18, 16)),
)
ARRANGEMENTS = ("padded", "packed", "frugal")
TOLERANCE = {"loss": 1e-5, "gradient": 1e-4}


def model_of(small: bool) -> Any:
    """The sizes that are compared (`vlm.ModelConfig`)."""
    from vtscale_jax.fusion import FusionConfig
    from vtscale_jax.layers import BlockConfig
    from vtscale_jax.llm import LLMConfig
    from vtscale_jax.text_tower import TextConfig
    from vtscale_jax.vision import VisionConfig
    from vtscale_jax.vlm import ModelConfig

    clip: dict[str, Any] = {"norm_eps": 1e-5, "activation": "quick_gelu"}
    rows = NUM_QUERIES - 1
    if small:
        llm = BlockConfig(96, 160, 6, 3, num_kv_heads=2, rope_theta=1e5)
        return ModelConfig(
            VisionConfig(32, 8, BlockConfig(64, 128, 2, 2, **clip)),
            FusionConfig(97, rows, BlockConfig(64, 96, 1, 2, norm_eps=1e-6)),
            LLMConfig(101, llm, tie_embeddings=True),
            TextConfig(97, 16, 24, BlockConfig(32, 40, 2, 2, **clip)),
        )
    llm = BlockConfig(576, 1536, 9, 30, num_kv_heads=3, rope_theta=1e5)
    return ModelConfig(
        VisionConfig(224, 16, BlockConfig(384, 1536, 6, 6, **clip)),
        FusionConfig(49408, rows, BlockConfig(384, 1536, 6, 5, norm_eps=1e-6)),
        LLMConfig(49152, llm, tie_embeddings=True),
        TextConfig(49408, 77, 384, BlockConfig(384, 1536, 6, 6, **clip)),
    )


def four_samples(model: Any, most_crops: int | None = None) -> Any:
    """The batch that is compared; `most_crops` as in `batch_of`."""
    from vtscale_jax.views import num_views

    size = model.vision.image_size
    talks = [
        Conversation(num_views(*pixels, MOST_VIEWS, size), turns)
        for pixels, turns in zip(IMAGES, TURNS, strict=True)
    ]
    return batch_of(
        talks, model, "finetune", num_queries=NUM_QUERIES, most_crops=most_crops
    )


def random_params(model: Any, seed: int = 0) -> dict[str, Any]:
    """Weights of stage finetune with nothing at its initial value: kernels keep the
    size of what they read, norms and biases lie around 1 and 0."""
    from vtscale_jax import paths
    from vtscale_jax.stages import get_stage, parameter_shapes

    rng, found = np.random.default_rng(seed), {}
    shapes = parameter_shapes(get_stage("finetune").model, model)
    for path, leaf in paths.flatten(shapes).items():
        drawn = rng.standard_normal(leaf.shape, np.float32)
        name = path.rsplit("/", 1)[-1]
        if name in ("scale", "bias"):
            drawn = 0.1 * drawn + (name == "scale")
        elif name == "kernel":
            stacked = path.split("/")[1] == "blocks"
            drawn *= math.prod(leaf.shape[stacked:-1]) ** -0.5
        else:
            drawn *= leaf.shape[-1] ** -0.5
        found[path] = drawn
    return paths.unflatten(found)


def program_of(model: Any) -> Any:
    """Our finetune step on one device, as a run makes it (`program.Program`)."""
    import jax

    from vtscale_jax.optim import OptimConfig
    from vtscale_jax.parallel.mesh import make_mesh
    from vtscale_jax.program import Program
    from vtscale_jax.stages import get_stage

    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return Program.of(
        get_stage("finetune"),
        model,
        OptimConfig(1000, RATE, clip_norm=CLIP),
        mesh,
        frozen_dtype="float32",
        frozen_layout="replicated",
    )


def equivalence(
    model: Any, params: Mapping[str, Any], batch: Any, attention: str
) -> dict[str, dict[str, float]]:
    """How far our loss and gradients are from PyTorch's, for each arrangement.

    "loss" is the difference; "gradient" the largest of `torch_step.gradient_errors`,
    and "norm" the relative difference of the norm that our train step reports;
    "moved" how far PyTorch's loss goes when one weight of ours alone is multiplied by
    1.01: it must be seen.
    """
    import jax

    from benchmarks.torch_step import (
        TorchVLM,
        gradient_errors,
        inputs,
        under_torch_names,
    )
    from vtscale_jax import paths
    from vtscale_jax.parallel.mesh import feed, place
    from vtscale_jax.program import shardings
    from vtscale_jax.types import WHOLE

    program = program_of(model)
    stage, on_mesh = program.stage, feed(batch, program.mesh, WHOLE)
    trainable, frozen = paths.partition(params, stage.trains)

    @jax.jit
    def differentiate(trainable: Any, frozen: Any, batch: Any):
        def loss(trainable: Any):
            whole = paths.merge(trainable, frozen)
            return stage.objective(stage.model(model), whole, batch).loss

        return jax.value_and_grad(loss)(trainable)

    loss, gradients = differentiate(trainable, frozen, on_mesh)
    ours = under_torch_names(jax.tree.map(np.asarray, gradients))
    del gradients
    state = program.start(trainable)
    frozen = place(frozen, shardings(program.frozen))
    _, metrics = program.compile(on_mesh)(state, frozen, on_mesh)
    if abs(float(metrics["loss"]) - float(loss)) > TOLERANCE["loss"]:
        raise ValueError(
            f"the train step reports a loss of {float(metrics['loss'])}, its objective "
            f"alone is {float(loss)}: expected the same function"
        )

    theirs = TorchVLM(model, attention)
    theirs.load(params)
    given, found = inputs(batch, model.vision.tokens_per_crop), {}
    for arrangement in ARRANGEMENTS:
        theirs.zero_grad(set_to_none=True)
        their_loss = theirs(given, arrangement)
        their_loss.backward()
        grads = theirs.gradients()
        norm = float(np.sqrt(sum(np.vdot(g, g) for g in grads.values())))
        found[arrangement] = {
            "loss": abs(float(their_loss.detach()) - float(loss)),
            "gradient": max(gradient_errors(ours, grads).values()),
            "norm": abs(float(metrics["grad_norm"]) / norm - 1),
        }
    moved = dict(paths.flatten(params))
    moved["vision/blocks/up/kernel"] = 1.01 * moved["vision/blocks/up/kernel"]
    theirs.load(paths.unflatten(moved))
    for arrangement in ARRANGEMENTS:
        after = float(theirs(given, arrangement).detach())
        found[arrangement]["moved"] = abs(after - float(loss))
    return found


def check(found: Mapping[str, Mapping[str, float]]) -> None:
    """ValueError unless both are the same function."""
    for name, row in found.items():
        allowed = {**TOLERANCE, "norm": TOLERANCE["gradient"]}
        far = {part: row[part] for part in allowed if not row[part] <= allowed[part]}
        if far or row["moved"] <= 10 * TOLERANCE["loss"]:
            raise ValueError(
                f"{name}: off by {far or row}, allowed {allowed}, and more than "
                f"{10 * TOLERANCE['loss']} with one weight moved: the two are not the "
                "same function, so their times say nothing; mend torch_step or the "
                "model before timing"
            )
