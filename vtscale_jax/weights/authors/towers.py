"""The authors' checkpoints: their config.json → our configs.

Keys that a published config.json leaves out have the defaults of the Hugging Face class
that wrote it, because such files hold differences from the defaults only.

Decisions on quirks of the reference (spec: quirks that need a decision):

* 4, `padding_idx`: the fusion table's row `text_config.pad_token_id` (1 for CLIP, the
  token `"`) receives no gradient. Kept: `FusionConfig.frozen_id`. A Hugging Face Llama
  does the same at its own pad_token_id: `LLMConfig.frozen_id`.
* 5, merge flags: reloading in the reference overwrites a nested
  `enable_local_merge=False` by True and so runs with a random, untrained convolution.
  Not followed: the nested flags say what the saved model had, and the strict import
  refuses a file whose tensors tell otherwise. True where the key is absent.
* 5, `max_position_embeddings` of the fusion decoder has no effect and is not read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vtscale_jax.fusion import FusionConfig
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.huggingface import clip as plain_clip
from vtscale_jax.weights.huggingface import families

Json = Mapping[str, Any]

# A model without a language model still needs the field; nothing is built from this.
NO_LLM = LLMConfig(1, BlockConfig(width=1, mlp_width=1, num_heads=1, num_layers=1))
FUSION_HEAD_WIDTH = 64


def vision_config(given: Json, **changes: Any) -> VisionConfig:
    """The vision tower of a `vision_config`; `changes` are fields of ours to set.

    Raises ValueError for images of other than three channels.
    """
    fields = {
        "local_merge": given.get("enable_local_merge", True),
        "merge_kernel": given.get("vembed_merge_kernel_size", 3),
        "merge_stride": given.get("vembed_merge_stride", 2),
        "newline": given.get("enable_token_crlf", True),
    }
    tower = {**given, "model_type": plain_clip.ALONE["vision"]}
    return plain_clip.vision_config(tower, **{**fields, **changes})


def text_config(given: Json, projection_width: int) -> TextConfig:
    """The text tower of a `text_config`; the projection's width stands outside it."""
    tower = {**given, "model_type": plain_clip.ALONE["text"]}
    return plain_clip.text_config(tower, projection_width=projection_width)


def llm_config(given: Json) -> LLMConfig:
    """The language model of an `llm_config`, of any known family; Llama unless it says
    another.

    Raises ValueError as `families.llm_config` does.
    """
    given = {"model_type": "llama", **given}
    config = families.llm_config(given, where="llm_config")
    pad = families.filled(given)["pad_token_id"]
    return dataclasses.replace(config, frozen_id=pad)


def fusion_fields(clip: Json) -> dict[str, Any]:
    """The fields of the fusion decoder's Llama config that follow from a stage-1 config
    (spec: fusion transformer); the reference derives them anew whenever it reads one.
    """
    vision = {**plain_clip.VISION_DEFAULTS, **(clip.get("vision_config") or {})}
    text = {**plain_clip.TEXT_DEFAULTS, **(clip.get("text_config") or {})}
    return {
        "vocab_size": clip.get("vocab_size", text["vocab_size"]),
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_attention_heads": max(1, vision["hidden_size"] // FUSION_HEAD_WIDTH),
        "num_hidden_layers": clip.get("num_hidden_layers", text["num_hidden_layers"]),
        "rms_norm_eps": 1e-6,
    }


def fusion_config(clip: Json, first_query_id: int) -> FusionConfig:
    """The fusion decoder of a stage-1 config.

    Its sizes are those of `fusion_fields`, unless `imgque_config` states others.
    `first_query_id` is the id of `<|placeholder_qed_0|>`; all rows of the table from it
    on become `queries`.

    Raises ValueError when `first_query_id` is not within the table, and for a decoder
    of another family.
    """
    text = {**plain_clip.TEXT_DEFAULTS, **(clip.get("text_config") or {})}
    derived = fusion_fields(clip)
    own = clip.get("imgque_config") or {}
    if own.get("model_type", "llama") != "llama":
        raise ValueError(
            f"imgque_config.model_type: got {own['model_type']!r}, expected 'llama'; "
            "the fusion decoder of every checkpoint is one"
        )
    llama = llm_config({**derived, **own})
    if not 0 < first_query_id <= llama.vocab_size:
        raise ValueError(
            f"first_query_id: got {first_query_id}, expected 1 to {llama.vocab_size}, "
            "the size of the fusion table; take the id of <|placeholder_qed_0|> from "
            "the tokenizer in clip/"
        )
    return FusionConfig(
        vocab_size=first_query_id,
        num_query_rows=llama.vocab_size - first_query_id,
        blocks=llama.blocks,
        frozen_id=text["pad_token_id"],
    )


def align_config(
    clip: Json, first_query_id: int, llm: LLMConfig = NO_LLM
) -> ModelConfig:
    """The whole model of a stage-1 config (`clip_config`)."""
    return ModelConfig(
        vision=vision_config(clip.get("vision_config") or {}),
        fusion=fusion_config(clip, first_query_id),
        llm=llm,
        text=text_config(
            clip.get("text_config") or {}, clip.get("projection_dim", 512)
        ),
    )


def vlm_config(config: Json, first_query_id: int) -> ModelConfig:
    """The whole model of a stage-2 config: `imgque_config` and `llm_config` in it."""
    for field in ("imgque_config", "llm_config"):
        if not config.get(field):
            raise ValueError(
                f"config.{field}: got nothing, expected the nested config of a stage-2 "
                "checkpoint; a stage-1 config is read by align_config"
            )
    llm = llm_config(config["llm_config"])
    return align_config(config["imgque_config"], first_query_id, llm)
