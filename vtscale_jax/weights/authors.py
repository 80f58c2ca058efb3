"""The authors' checkpoints: their config.json → our configs, their files → our trees.

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

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from safetensors import SafetensorError, safe_open

from vtscale_jax.fusion import FusionConfig
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights import names

Json = Mapping[str, Any]

CLIP_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "enable_token_crlf": True,
    "enable_local_merge": True,
    "vembed_merge_kernel_size": 3,
    "vembed_merge_stride": 2,
}
CLIP_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "model_type": "llama",
}
# A model without a language model still needs the field; nothing is built from this.
NO_LLM = LLMConfig(1, BlockConfig(width=1, mlp_width=1, num_heads=1, num_layers=1))
FUSION_HEAD_WIDTH = 64


def vision_config(given: Json, **changes: Any) -> VisionConfig:
    """The vision tower of a `vision_config`; `changes` are fields of ours to set.

    Raises ValueError for images of other than three channels.
    """
    d = {**CLIP_VISION_DEFAULTS, **given}
    if d["num_channels"] != 3:
        raise ValueError(
            f"vision_config.num_channels: got {d['num_channels']}, expected 3 (RGB)"
        )
    fields = {
        "image_size": d["image_size"],
        "patch_size": d["patch_size"],
        "blocks": _encoder_blocks(d),
        "local_merge": d["enable_local_merge"],
        "merge_kernel": d["vembed_merge_kernel_size"],
        "merge_stride": d["vembed_merge_stride"],
        "newline": d["enable_token_crlf"],
    }
    return VisionConfig(**{**fields, **changes})


def text_config(given: Json, projection_width: int) -> TextConfig:
    """The text tower of a `text_config`; the projection's width stands outside it."""
    d = {**CLIP_TEXT_DEFAULTS, **given}
    return TextConfig(
        vocab_size=d["vocab_size"],
        max_length=d["max_position_embeddings"],
        projection_width=projection_width,
        blocks=_encoder_blocks(d),
    )


def llm_config(given: Json) -> LLMConfig:
    """The language model of a Llama `llm_config`.

    Raises ValueError for another architecture and for what ours does not compute:
    biases and scaled rotary embeddings.
    """
    d = {**LLAMA_DEFAULTS, **given}
    rope = d.get("rope_parameters") or d["rope_scaling"] or {}
    expected = {
        "model_type": (d["model_type"], "llama"),
        "attention_bias": (d["attention_bias"], False),
        "mlp_bias": (d["mlp_bias"], False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for field, (got, want) in expected.items():
        if got != want:
            raise ValueError(
                f"llm_config.{field}: got {got!r}, expected {want!r}; this decoder "
                "computes nothing else, use a Llama model without it"
            )
    blocks = BlockConfig(
        width=d["hidden_size"],
        mlp_width=d["intermediate_size"],
        num_heads=d["num_attention_heads"],
        num_layers=d["num_hidden_layers"],
        num_kv_heads=d["num_key_value_heads"] or 0,
        head_dim=d["head_dim"] or 0,
        norm_eps=d["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", d["rope_theta"]),
        activation=d["hidden_act"],
    )
    return LLMConfig(
        d["vocab_size"], blocks, d["tie_word_embeddings"], frozen_id=d["pad_token_id"]
    )


def fusion_config(clip: Json, first_query_id: int) -> FusionConfig:
    """The fusion decoder of a stage-1 config.

    It is a Llama decoder whose sizes follow from the vision tower (spec: fusion
    transformer), unless `imgque_config` states them. `first_query_id` is the id of
    `<|placeholder_qed_0|>`; all rows of the table from it on become `queries`.

    Raises ValueError when `first_query_id` is not within the table.
    """
    vision = {**CLIP_VISION_DEFAULTS, **(clip.get("vision_config") or {})}
    text = {**CLIP_TEXT_DEFAULTS, **(clip.get("text_config") or {})}
    derived = {
        "vocab_size": clip.get("vocab_size", text["vocab_size"]),
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_attention_heads": max(1, vision["hidden_size"] // FUSION_HEAD_WIDTH),
        "num_hidden_layers": clip.get("num_hidden_layers", vision["num_hidden_layers"]),
        "rms_norm_eps": 1e-6,
    }
    llama = llm_config({**derived, **(clip.get("imgque_config") or {})})
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


def _encoder_blocks(d: Json) -> BlockConfig:
    return BlockConfig(
        width=d["hidden_size"],
        mlp_width=d["intermediate_size"],
        num_heads=d["num_attention_heads"],
        num_layers=d["num_hidden_layers"],
        norm_eps=d["layer_norm_eps"],
        activation=d["hidden_act"],
    )


class TensorFiles(NamedTuple):
    """The safetensors files of a folder as one set of tensors, read one at a time."""

    files: dict[str, Path]
    shapes: dict[str, names.Shape]

    def read(self, name: str) -> np.ndarray:
        """One tensor by its name; bfloat16 stays bfloat16."""
        with safe_open(self.files[name], framework="np") as file:
            return file.get_tensor(name)


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a .safetensors file, or of all such files of a folder.

    Raises ValueError when there is none, when one is damaged, and when two files hold
    the same name.
    """
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise ValueError(f"{path}: got no .safetensors file, expected at least one")
    files: dict[str, Path] = {}
    shapes: dict[str, names.Shape] = {}
    for one in found:
        try:
            with safe_open(one, framework="np") as file:
                here = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{one}: damaged or no safetensors file ({error}); fetch it again"
            ) from error
        for name in here.keys() & files.keys():
            raise ValueError(
                f"{name}: got it in {files[name].name} and in {one.name}, expected it "
                "once; keep one set of files in the folder"
            )
        files |= dict.fromkeys(here, one)
        shapes |= here
    return TensorFiles(files, shapes)


def read_params(
    path: Path,
    layout: names.Layout,
    config: ModelConfig | VisionConfig,
    model: Callable[[Any], nn.Module],
) -> dict[str, Any]:
    """Parameters of `model` from safetensors at `path`, strictly (`import_tree`)."""
    tensors = open_tensors(path)
    targets = parameter_shapes(model, config)
    return names.import_tree(layout, tensors.shapes, tensors.read, targets)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError when it is something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: got a JSON {type(value).__name__}, expected an object"
        )
    return value
