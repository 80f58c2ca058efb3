"""Pre-trains the two tiny models that the embedded preset starts from, and a baseline.

    python -m vtscale_jax.embedded pretrain llm
    python -m vtscale_jax.embedded pretrain clip
    python -m vtscale_jax.embedded pretrain llava

The folder (`--out`, default `runs/pretrain-llm` and so on) then holds
`weights.safetensors`, `pretrain.json` and the curves; `ship` puts the weights into the
package.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vtscale_jax import paths
from vtscale_jax.embedded import pretrain_clip, pretrain_llava, pretrain_llm
from vtscale_jax.embedded.ship import WEIGHTS
from vtscale_jax.llm import LLM
from vtscale_jax.metrics import MetricsLog, Throughput
from vtscale_jax.optim import OptimConfig, learning_rate, make_optimizer
from vtscale_jax.vlm import ModelConfig

LOG_EVERY = 50
RECIPES = {
    "llm": OptimConfig(
        steps=2600, learning_rate=2.5e-3, warmup=0.05, weight_decay=0.01, b2=0.98
    ),
    "clip": OptimConfig(
        steps=1600, learning_rate=1e-3, warmup=0.05, weight_decay=0.05, b2=0.98
    ),
    # The rates of the package's own model in stage finetune (configs/presets.py).
    "llava": OptimConfig(
        steps=1300,
        learning_rate=1.2e-3,
        warmup=0.05,
        final_share=0.02,
        weight_decay=0.01,
        b2=0.98,
        rate_rules=((r"vision/.*", 0.3), (r".*", 1.0)),
    ),
}
# Before "llava": its patches and the LLM's words.
ALIGNMENT = OptimConfig(
    steps=800, learning_rate=1e-3, warmup=0.05, weight_decay=0.01, b2=0.98
)

Loss = Callable[[dict, Any], tuple[jax.Array, dict[str, jax.Array]]]


def fit(
    loss: Loss,
    params: dict,
    batches: Iterator[Any],
    recipe: OptimConfig,
    folder: Path,
) -> dict:
    """Minimises `loss(params, batch) -> (loss, metrics)` and returns the parameters."""
    optimizer = make_optimizer(recipe, params)
    rate = learning_rate(recipe)

    @jax.jit
    def step(params, opt_state, batch):
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, {"loss": value, **metrics}

    opt_state, rows = optimizer.init(params), []
    with MetricsLog(folder, total_steps=recipe.steps) as log:
        clock = Throughput()
        for number, batch in enumerate(itertools.islice(batches, recipe.steps), 1):
            params, opt_state, metrics = step(params, opt_state, batch)
            rows.append(metrics)
            if number % LOG_EVERY == 0 or number == recipe.steps:
                fetched = jax.device_get(rows)
                means = {
                    name: float(np.mean([row[name] for row in fetched]))
                    for name in fetched[0]
                }
                speed = clock.update(len(rows))
                log.write(
                    number,
                    **means,
                    learning_rate=rate(number - 1),
                    batches_per_s=speed,
                )
                rows = []
    return params


def pretrain(
    kind: str,
    config: ModelConfig,
    folder: Path,
    *,
    seed: int,
    max_local_views: int = 9,
    steps: int | None = None,
    llava: pretrain_llava.Answering | None = None,
    clip_file: Path = WEIGHTS / "clip.safetensors",
    llm_file: Path = WEIGHTS / "llm.safetensors",
) -> Path:
    """Trains the tiny LLM (kind "llm") or the tiny CLIP ("clip") from scratch, or the
    tower and the projector of the tiny LLaVA ("llava") from the two.

    `config` gives the sizes. `llava` is that model, and `clip_file` and `llm_file` are
    what it starts from. Returns the file of weights; beside it lie `metrics.jsonl` and
    `pretrain.json` (seed, recipe, seconds, held-out scores: by family for the LLM and
    LLaVA, for CLIP the share of views that find their caption).
    """
    if kind not in RECIPES:
        raise ValueError(f"kind is {kind!r}, expected one of {tuple(RECIPES)}")
    recipe = RECIPES[kind]
    if steps is not None:
        recipe = OptimConfig(**{**vars(recipe), "steps": steps})
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llm":
        params, scores = _pretrain_llm(config, recipe, folder, seed)
    elif kind == "llava":
        assert llava is not None, "kind llava needs the model"
        starts = (clip_file, llm_file)
        params, scores = _pretrain_llava(config, recipe, folder, seed, llava, starts)
    else:
        params, scores = _pretrain_clip(config, recipe, folder, seed, max_local_views)
    file = folder / "weights.safetensors"
    paths.save(jax.device_get(params), file)
    about = {
        "kind": kind,
        "seed": seed,
        "recipe": vars(recipe),
        "seconds": round(time.monotonic() - start, 1),
        **scores,
    }
    (folder / "pretrain.json").write_text(json.dumps(about, indent=2) + "\n")
    return file


def _pretrain_llm(config: ModelConfig, recipe, folder: Path, seed: int):
    model = LLM(config.llm)

    def loss(params, batch):
        scores = pretrain_llm.text_loss(model, params, batch)
        return scores.loss, {"token_accuracy": scores.token_accuracy}

    params = pretrain_llm.initial_params(config.llm, seed)
    params = fit(loss, params, pretrain_llm.batches(seed + 1), recipe, folder)
    accuracy = pretrain_llm.family_accuracy(model, params, seed + 1_000_003)
    return {"llm": params}, {"heldout_accuracy": accuracy}


def _pretrain_clip(config: ModelConfig, recipe, folder: Path, seed: int, views: int):
    model = pretrain_clip.TinyCLIP(config.vision, config.text)

    def batches(split: str, seed: int):
        return pretrain_clip.batches(
            seed, split, config.vision, views, config.text.max_length
        )

    def loss(params, batch):
        logits: Any = model.apply({"params": params}, batch)
        value, accuracy = pretrain_clip.caption_loss(logits, batch.caption)
        return value, {"accuracy": accuracy}

    first = jax.tree.map(jnp.asarray, next(batches("train", seed)))
    fresh: Any = model.init(jax.random.key(seed), first)
    params = fit(loss, fresh["params"], batches("train", seed + 1), recipe, folder)
    evaluate = jax.jit(loss)
    rows = [
        evaluate(params, batch)[1]
        for batch in itertools.islice(batches("heldout", seed + 1), 8)
    ]
    accuracy = float(np.mean([row["accuracy"] for row in rows]))
    # The projection of views and the temperature end with the pre-training, as the
    # align stage has its own.
    towers = {"vision": params["vision"], "text": params["text"]}
    return towers, {"heldout_caption_accuracy": accuracy}


def _pretrain_llava(
    config: ModelConfig,
    recipe,
    folder: Path,
    seed: int,
    model: pretrain_llava.Answering,
    starts: tuple[Path, Path],
):
    vision = pretrain_llava.page_vision(config.vision)
    page = (vision.image_size, vision.grid**2)
    heads = vision.blocks.num_heads
    params, frozen = pretrain_llava.starting_params(model, *starts, page, heads, seed)

    def cell_loss(params, batch):
        return pretrain_llava.cell_loss(model, {**params, **frozen}, batch)

    def loss(params, batch):
        return pretrain_llava.page_loss(model, {**params, **frozen}, batch)

    cells = pretrain_llava.cell_batches(seed + 2, page[0])
    params = fit(cell_loss, params, cells, ALIGNMENT, folder / "align")
    pages = pretrain_llava.PAGES_PER_BATCH
    source = pretrain_llava.batches(seed + 1, *page, pages)
    params = fit(loss, params, source, recipe, folder)
    whole = {**params, **frozen}
    questions = pretrain_llava.HELDOUT_QUESTIONS
    accuracy = pretrain_llava.family_accuracy(model, whole, *page, questions)
    origin = {
        name: pretrain_llava.shipped_hash(file)
        for name, file in zip(("clip", "llm"), starts, strict=True)
    }
    more = {"align_recipe": vars(ALIGNMENT), "from": origin}
    return params, {"accuracy": accuracy, **more}
