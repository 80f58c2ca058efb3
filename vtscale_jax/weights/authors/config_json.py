"""The config.json of the authors' checkpoints, written for a run of ours.

Spelt for transformers 4.44.2, which the authors use: newer names of fields mean nothing
there, and what that version would compute otherwise is refused.
"""

from collections.abc import Mapping
from typing import Any

from vtscale_jax import settings
from vtscale_jax.llm import LLMConfig
from vtscale_jax.views import CLIP_MEAN, CLIP_STD
from vtscale_jax.weights import starting
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.authors.folder import (
    ALIGN_TYPE,
    FUSION_NAME,
    VISION_TYPE,
    VLM_TYPE,
)
from vtscale_jax.weights.files.writing import one_dtype
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.huggingface.clip import ALONE, hf_clip_config
from vtscale_jax.weights.huggingface.rope_fields import (
    ROPE_FIELDS,
    Rope,
    read_rope,
    write_rope,
)
from vtscale_jax.weights.run_parts import Run, RunLLM

TRANSFORMERS = "4.44.2"
# Kinds of rotary scaling that it computes as we do, with their fields.
OLD_ROPE = {
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}


class ExportError(ValueError):
    """A run that the authors' code could not build or would compute otherwise."""


def align_json(run: Run, special: Mapping[str, int | None]) -> dict[str, Any]:
    """The stage-1 config, which is nested in that of stage 2. `special` are the ids of
    the fusion tokenizer."""
    model = run.model
    rows = model.fusion.vocab_size
    if starting.QUERIES in run.params:
        rows += len(run.params[starting.QUERIES])
    # Their `padding_idx` (quirk 4): the row that receives no gradient.
    ids = {**special, "pad_token_id": model.fusion.frozen_id}
    base = {tower: {"model_type": ALONE[tower], **ids} for tower in ALONE}
    vision = _bare(hf_clip_config(model.vision, None, base["vision"]))
    text = _bare(hf_clip_config(None, model.text, base["text"]))
    flags = {
        "enable_local_merge": model.vision.local_merge,
        "enable_token_crlf": model.vision.newline,
        "vembed_merge_kernel_size": model.vision.merge_kernel,
        "vembed_merge_stride": model.vision.merge_stride,
    }
    blocks = model.fusion.blocks
    config = {
        "model_type": ALIGN_TYPE,
        "architectures": ["ImageHDMultiQueryCLIPModel"],
        **ids,
        "vision_config": {
            **vision,
            "model_type": VISION_TYPE,
            **flags,
            "vembed_hidden_size": model.vision.blocks.width,
        },
        "text_config": text,
        "projection_dim": model.text.projection_width,
        "logit_scale_init_value": 2.6592,
        "vocab_size": rows,
        "num_hidden_layers": blocks.num_layers,
        "hidden_size": blocks.width,
        **_lengths(run),
        # Their constructor reads the flags here, and knows nothing of nested ones
        # (quirk 5): without these it would switch both on.
        **flags,
    }
    derived = towers.fusion_fields(config)
    config["imgque_config"] = {
        **derived,
        "model_type": "llama",
        "num_key_value_heads": derived["num_attention_heads"],
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 2048,
        **ids,
    }
    return config


def _bare(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in tower.items() if n not in ("architectures", "dtype")}


def _lengths(run: Run) -> dict[str, Any]:
    followup = settings.num_followup_queries(run.config)
    return {
        "length_que_end": run.config.num_queries,
        "length_que_end_short": followup,
        "append_special_padding": True,
    }


def vlm_json(run: Run, clip: Mapping[str, Any], llm: RunLLM) -> dict[str, Any]:
    """The stage-2 config around a stage-1 config."""
    return {
        "model_type": VLM_TYPE,
        "architectures": ["ImageMultiQueryCLIPLLMModel"],
        "fusion_name": FUSION_NAME,
        "enable_que_end": True,
        **_lengths(run),
        "hidden_size": run.model.llm.blocks.width,
        "imgque_config": dict(clip),
        "llm_config": old_llm_json(run.model.llm, llm),
    }


def old_llm_json(model: LLMConfig, llm: RunLLM) -> dict[str, Any]:
    """A language model's config.json as transformers 4.44 reads it.

    Raises ExportError for what that version computes otherwise or not at all.
    """
    given = {n: v for n, v in llm.config.items() if n != "generation_config"}
    config = families.hf_config(model, given, dtype=one_dtype(llm.tensors))
    config["torch_dtype"] = config.pop("dtype", config.get("torch_dtype"))
    family = families.family_of(config)
    d = families.filled(config)
    rope = read_rope(d, family.rope_names)
    for field in ROPE_FIELDS:
        config.pop(field, None)
    config |= _old_rope(rope, config["model_type"])
    again = read_rope(families.filled(config), family.rope_names)
    if again != rope:
        raise ExportError(
            f"llm_config.rope_scaling: got {rope.scaling}, of which transformers "
            f"{TRANSFORMERS}, the authors' version, would make {again.scaling}; use "
            "--to hf for this language model"
        )
    heads = config["num_attention_heads"]
    if config["hidden_size"] != heads * config["head_dim"]:
        if config["model_type"] != "mistral":
            raise ExportError(
                f"llm_config.head_dim: got {config['head_dim']} with {heads} heads and "
                f"width {config['hidden_size']}, expected their quotient, which "
                f"transformers {TRANSFORMERS} takes for a {config['model_type']}"
            )
    return config


def _old_rope(rope: Rope, family: str) -> dict[str, Any]:
    """The rotary embedding in the spelling before `rope_parameters`."""
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.scaling is None and rope.share == 1:
        return fields
    kind = None if rope.scaling is None else rope.scaling.kind
    new = write_rope(rope)
    inner = new["rope_parameters"]
    if rope.share == 1 and kind in OLD_ROPE:
        scaling = {name: inner[name] for name in OLD_ROPE[kind]}
        return {**fields, "rope_scaling": {"rope_type": kind, **scaling}}
    if rope.share == 1 and kind == "longrope" and family == "phi3":
        scaling = {name: inner[name] for name in ("short_factor", "long_factor")}
        outer = "original_max_position_embeddings"
        return {
            **fields,
            "rope_scaling": {"type": "longrope", **scaling},
            outer: new[outer],
        }
    raise ExportError(
        f"llm_config: got the rotary embedding {rope} in a {family}, expected one that "
        f"transformers {TRANSFORMERS}, the authors' version, computes; use --to hf for "
        "this language model"
    )


def processor_json(run: Run) -> dict[str, Any]:
    """The image processor's file: how many local views, and CLIP's normalisation."""
    return {
        "image_processor_type": "Phi3VImageProcessor",
        "num_crops": run.config.data.max_local_views,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }
