"""LLaVA with a token reducer, as a model that answers: what `configs/llava.py` says.

model = open_baseline(config, batch_size=8)     an `eval.models.AnsweringModel`
check_baseline(folder)                          recorded outputs of transformers
"""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from vtscale_jax.eval.baselines import llava_goldens
from vtscale_jax.eval.baselines.answering import LlavaModel, Reading
from vtscale_jax.eval.baselines.llava import LlavaConfig
from vtscale_jax.eval.baselines.named import named
from vtscale_jax.eval.goldens.checks import Check
from vtscale_jax.generate import for_generation
from vtscale_jax.weights.files.tensors import open_tensors
from vtscale_jax.weights.huggingface.llava import LlavaFields, import_llava
from vtscale_jax.weights.llava_models import load_llava


def open_baseline(config: ConfigDict, batch_size: int) -> LlavaModel:
    """The model that a config of `configs/llava.py` names, on this process's device.

    ValueError, naming the field, for weights that cannot be had, and ReducerError for a
    number of tokens that the reducer cannot leave.
    """
    found = load_llava("weights", config.weights, dtype=config.dtype)
    model = baseline_config(found.fields)
    reading = Reading(
        config.prompt,
        config.pixels,
        found.tokenizer,
        found.fields.image_token_id,
        found.end_ids,
        found.limit,
    )
    options = config.reducer
    reducer = named(
        options.name, important=options.important, contextual=options.contextual
    )
    n = model.num_patches if options.n is None else options.n
    params, model = for_generation(found.params, model)
    return LlavaModel(
        params,
        model,
        reading,
        reducer=reducer,
        n=n,
        batch_size=batch_size,
        source={"weights": found.where, "weights_sha256": found.sha256},
    )


def baseline_config(fields: LlavaFields) -> LlavaConfig:
    """The model that a config.json describes."""
    shared = [field.name for field in dataclasses.fields(LlavaConfig)]
    return LlavaConfig(**{name: getattr(fields, name) for name in shared})


def check_baseline(folder: Path) -> list[Check]:
    """Every quantity of a folder of LLaVA's recorded outputs, in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields, params = import_llava(config, open_tensors(folder), dtype="float32")
    assert fields.image_token_id is not None
    return llava_goldens.check(
        folder, params, baseline_config(fields), fields.image_token_id
    )
