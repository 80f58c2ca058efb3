"""Families of language models: a Hugging Face config.json ↔ our one decoder.

What tells the families apart is in the table `FAMILIES` and, for the names of tensors,
in `layouts.DECODER_BLOCKS`:

    llama     Llama 2, 3 and 3.1, Vicuna, SmolLM2
    mistral   a sliding window
    qwen2     Qwen2 and Qwen2.5: biases of query, key and value; windows in some layers
    phi3      fused projections, longrope, part of the channels rotated

A field that a file leaves out has the default of transformers' configuration class,
because such files may hold differences from the defaults only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from vtscale_jax.layers import ACTIVATIONS, BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.weights.huggingface.rope_fields import (
    ROPE_FIELDS,
    Json,
    Rope,
    read_rope,
    transformers_kind,
    write_rope,
)
from vtscale_jax.weights.naming import layouts
from vtscale_jax.weights.naming.names import Layout

FULL, SLIDING = "full_attention", "sliding_attention"
DTYPES = ("float32", "bfloat16", "float16")

SHARED_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
# Fields of ours ← fields of a config.json that are positive whole numbers.
SIZES = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
# Fields of BlockConfig that say how a run computes, not what.
OF_THE_RUN = ("init_std", "dtype", "attention", "remat", "unroll", "stacked", "int8")
# Left out of a config.json that is written: code and quantisation of the source.
NOT_EXPORTED = ("auto_map", "quantization_config", "_name_or_path")


class Family(NamedTuple):
    """What one `model_type` is.

    `defaults` go over `SHARED_DEFAULTS`; a window or layers of several types are there
    for families that name them in it. `fixed` are fields that may have one value only,
    since nothing else is computed here. `rope_names` are other names of rope types.
    """

    architecture: str
    defaults: Json
    fixed: Json = {}
    qkv_bias: bool = False
    partial_rotary: bool = False
    rope_names: Mapping[str, str] = {"su": "longrope"}


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048},
        fixed={"attention_bias": False, "mlp_bias": False},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096 * 32,
            "sliding_window": 4096,
        },
        fixed={"layer_types": None},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        qkv_bias=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 32000,
            "sliding_window": None,
        },
        fixed={"layer_types": None},
        partial_rotary=True,
        # What the first files of the family called it.
        rope_names={"su": "longrope", "yarn": "longrope"},
    ),
}


def family_of(config: Json, where: str = "config") -> Family:
    """The family of a config.json, by its `model_type`.

    Raises ValueError that lists the known ones.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(
            f"{name} ({family.architecture})" for name, family in FAMILIES.items()
        )
        raise ValueError(
            f"{where}.model_type: got {kind!r} (architectures "
            f"{config.get('architectures')}), expected one of {known}; take a model of "
            "one of these families, or add a row to FAMILIES in "
            "weights/huggingface/families.py and its names to DECODER_BLOCKS in "
            "weights/naming/layouts.py"
        )
    return FAMILIES[kind]


def filled(config: Json, where: str = "config") -> dict[str, Any]:
    """The config.json with its family's defaults for fields that it leaves out."""
    return {**SHARED_DEFAULTS, **family_of(config, where).defaults, **config}


def llm_config(
    config: Json, *, dtype: str = "float32", where: str = "config"
) -> LLMConfig:
    """The language model of a config.json, computing in `dtype`.

    `where` stands before the names of fields in errors. Raises ValueError for another
    family, for a field that is out of range, and for what this decoder does not
    compute: biases of other projections, windows in some layers only, `dynamic` rope.
    """
    family, d = family_of(config, where), filled(config, where)
    for field, only in family.fixed.items():
        if d.get(field, only) != only:
            raise ValueError(
                f"{where}.{field}: got {d[field]!r}, expected {only!r}; this decoder "
                f"computes nothing else in a {d['model_type']}, use a model without it"
            )
    if d.get("quantization_config"):
        raise ValueError(
            f"{where}.quantization_config: got one, expected none; the tensors are "
            "quantised in a way that is not read here: take the model's unquantised "
            "checkpoint, or a GGUF file"
        )
    if d["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"{where}.hidden_act: activation {d['hidden_act']!r} is unknown; one of "
            f"{sorted(ACTIVATIONS)} was expected"
        )
    sizes: dict[str, Any] = {
        ours: _size(d, theirs, where) for ours, theirs in SIZES.items()
    }
    _size(d, "max_position_embeddings", where)  # rope scalings are derived from it
    rope = read_rope(d, family.rope_names, where)
    blocks = BlockConfig(
        **sizes,
        norm_eps=float(d["rms_norm_eps"]),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        rope_share=rope.share,
        window=_window(d, family, where),
        qkv_bias=family.qkv_bias,
        activation=d["hidden_act"],
        dtype=dtype,
    )
    _check_rotary(blocks, family, where)
    return LLMConfig(
        _size(d, "vocab_size", where), blocks, bool(d["tie_word_embeddings"])
    )


def llm_layout(config: Json) -> Layout:
    """The tensor names of the family of a config.json."""
    family_of(config)
    return layouts.llm_layout(config["model_type"])


def _size(d: Json, field: str, where: str) -> int:
    """A positive whole number; 0, "derive it", for the two that may be left open."""
    value = d[field]
    if value is None and field in ("num_key_value_heads", "head_dim"):
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{where}.{field}: got {value!r}, expected a positive whole number"
        )
    return value


def _window(d: Json, family: Family, where: str) -> int | None:
    """How many places back every layer sees; None for all.

    Raises ValueError when layers differ, unless the window is as wide as the model's
    positions and so hides nothing.
    """
    if "sliding_window" not in family.defaults:
        return None
    window = d["sliding_window"] if d.get("use_sliding_window", True) else None
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(
            f"{where}.sliding_window: got {window!r}, expected null (see everything) "
            "or a positive whole number"
        )
    first = d.get("max_window_layers", 0)
    types = d.get("layer_types") or [
        SLIDING if window is not None and i >= first else FULL
        for i in range(d["num_hidden_layers"])
    ]
    if len(types) != d["num_hidden_layers"] or not {*types} <= {FULL, SLIDING}:
        raise ValueError(
            f"{where}.layer_types: got {len(types)} layers of {sorted({*types})}, "
            f"expected {d['num_hidden_layers']} of {FULL!r} or {SLIDING!r}"
        )
    if SLIDING not in types:
        return None
    if window is None:
        raise ValueError(
            f"{where}.layer_types: got {SLIDING!r}, but use_sliding_window and "
            "sliding_window give no window; mend one of the three"
        )
    if FULL in types and window < d["max_position_embeddings"]:
        raise ValueError(
            f"{where}.sliding_window: got {window} in {types.count(SLIDING)} of "
            f"{len(types)} layers (max_window_layers, layer_types), expected the same "
            "in every layer; this decoder has one window for all, use a model with "
            "use_sliding_window false"
        )
    return None if FULL in types else window


def _check_rotary(blocks: BlockConfig, family: Family, where: str) -> None:
    """Raises ValueError when channels cannot be rotated as the config says."""
    channels = int(blocks.head_dim * blocks.rope_share)
    if blocks.rope_share != 1 and not family.partial_rotary:
        raise ValueError(
            f"{where}.partial_rotary_factor: got {blocks.rope_share}, expected 1; "
            "models of this family rotate every channel"
        )
    if channels < 2 or channels > blocks.head_dim or channels % 2:
        raise ValueError(
            f"{where}.partial_rotary_factor: got {blocks.rope_share} of the "
            f"{blocks.head_dim} channels of a head, which is {channels}; expected an "
            f"even number of them, from 2 to {blocks.head_dim}"
        )
    scaling = blocks.rope_scaling
    for name in ("factors", "long_factors"):
        count = len(getattr(scaling, name)) if scaling else 0
        if count not in (0, channels // 2):
            raise ValueError(
                f"{where}: the rotary embedding has {count} {name.replace('_', ' ')}, "
                f"expected {channels // 2}, one for each pair of rotated channels"
            )


def hf_config(
    config: LLMConfig, base: Json, *, dtype: str = "float32"
) -> dict[str, Any]:
    """A config.json for transformers 5 that means the same as `config`.

    `base` is the config.json that the model came from: of it is kept what LLMConfig
    does not say (token ids, `max_position_embeddings`, dropout) and the spelling of
    the rotary embedding. Without a source, give at least `model_type`,
    `max_position_embeddings` and the ids of special tokens. `dtype` is that of the
    tensors beside it.

    Raises ValueError for what a config.json of the family cannot say.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {DTYPES}")
    if config.blocks.int8:
        raise ValueError(
            "int8: got True, expected False; whole-number weights have no Hugging Face "
            "form, export the weights that they were made from"
        )
    family, d, blocks = family_of(base), filled(base), config.blocks
    kept = {name: value for name, value in base.items() if name not in NOT_EXPORTED}
    result = {
        **kept,
        "architectures": [family.architecture],
        "torch_dtype" if "torch_dtype" in base else "dtype": dtype,
        "vocab_size": config.vocab_size,
        **{theirs: getattr(blocks, ours) for ours, theirs in SIZES.items()},
        "hidden_act": blocks.activation,
        "rms_norm_eps": blocks.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": d["max_position_embeddings"],
    }
    own = Rope(blocks.rope_theta, blocks.rope_scaling, blocks.rope_share)
    rope = transformers_kind(own, d["max_position_embeddings"])
    if rope != own or read_rope(d, family.rope_names) != rope:
        for name in ROPE_FIELDS:
            result.pop(name, None)
        result |= write_rope(rope)
    if "sliding_window" in family.defaults and _window(d, family, "base") != (
        blocks.window
    ):
        result["sliding_window"] = blocks.window
        if "use_sliding_window" in family.defaults:
            result |= {"use_sliding_window": blocks.window is not None}
            result |= {"max_window_layers": 0, "layer_types": None}
    _check_says(result, config, rope)
    return result


def _check_says(result: Json, config: LLMConfig, rope: Rope) -> None:
    """Raises ValueError unless a config.json, read again, is the model it is for."""
    again = llm_config(result)
    run = {name: getattr(again.blocks, name) for name in OF_THE_RUN}
    blocks = dataclasses.replace(config.blocks, rope_scaling=rope.scaling, **run)
    # Compared field by field, to say which.
    wanted = {**vars(config), **vars(blocks)}
    found = {**vars(again), **vars(again.blocks)}
    unlike = [
        f"{name}: {wanted[name]!r} in the model, {found[name]!r} in a "
        f"{result['model_type']}"
        for name in found
        if name not in ("blocks", "frozen_id") and wanted[name] != found[name]
    ]
    if unlike:
        raise ValueError(
            f"base.model_type: got {result['model_type']!r}, whose config.json cannot "
            "say what the model computes; give the config.json of the model's own "
            "family:\n  " + "\n  ".join(unlike)
        )
