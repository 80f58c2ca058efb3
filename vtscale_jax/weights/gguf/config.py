"""A GGUF file's metadata as the config.json of a Hugging Face folder.

Nothing is guessed: a key of the architecture that has a value and that is not
understood is an error, since it may change what the model computes.

Sources: llama.cpp's conversion scripts for what is written; the names in the `gguf`
library's `constants.Keys`; transformers' configuration classes for the fields.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.constants import Keys

from vtscale_jax.weights.gguf.file import GGUFError, GGUFFile

# A default that llama.cpp's loader also takes.
DEFAULT_THETA = 10000.0

# Tensors that are settings of the rotary embedding: they go into the config.
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

# Keys of the architecture that change nothing in what is computed.
HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")


class _Keys:
    """The metadata of the architecture, which notes what was asked for."""

    def __init__(self, file: GGUFFile, architecture: str):
        self.path, self.prefix = file.path, architecture + "."
        own = (key for key in file.metadata if key.startswith(self.prefix))
        self.left = {key.removeprefix(self.prefix): file.metadata[key] for key in own}

    def number(self, key: str, default: int | float | None = None) -> Any:
        """A number; without a default the file must hold it."""
        value = self.left.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GGUFError(
                f"{self.path}: {self.prefix}{key} is {value!r}, expected one number; "
                "the file is of an early or another converter; convert the model anew."
            )
        # A float32 of the file as the decimal it was written from: 1e-05, not
        # 9.999999747378752e-06. As a float32 the two are the same.
        return value if isinstance(value, int) else float(str(np.float32(value)))

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise GGUFError(
                f"{self.path}: {self.prefix}{key} is {value!r}, expected a positive "
                "whole number; the file is damaged; download or convert it anew."
            )
        return value

    def text(self, key: str, default: str) -> str:
        return str(self.left.pop(key, default))

    def finish(self) -> None:
        """Refuses keys that were not understood. Zero and False mean "without"."""
        kept = {k: v for k, v in self.left.items() if v and k not in HARMLESS}
        if kept:
            listed = "\n    ".join(f"{self.prefix}{k} = {v}" for k, v in kept.items())
            raise GGUFError(
                f"{self.path}: has settings that are not supported, and the model "
                f"would compute something else without them:\n    {listed}\n"
                "  Take another model of the family."
            )


def model_config(file: GGUFFile, architecture: str, model_type: str) -> dict[str, Any]:
    """The fields of `model_type`'s config.json, from the metadata and tensor shapes.

    The rotary embedding is under `rope_parameters`, as in transformers 5. Beside its
    kinds there is "factors": inverse frequency i is divided by factors[i]. GGUFError
    names keys that are missing, contradict the tensors, or are not understood.
    """
    keys = _Keys(file, architecture)
    embed = file.tensors.get("token_embd.weight")
    hidden = keys.size("embedding_length")
    if embed is None or len(embed.shape) != 2 or embed.shape[1] != hidden:
        raise GGUFError(
            f"{file.path}: token_embd.weight is "
            f"{'missing' if embed is None else embed.shape}, expected (vocabulary, "
            f"{hidden}) as {architecture}.embedding_length says; convert it anew."
        )
    heads = keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length", hidden // heads)
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise GGUFError(
            f"{file.path}: attention.value_length is not attention.key_length "
            f"({head_dim}); heads of two widths are not supported."
        )
    config = {
        "model_type": model_type,
        "vocab_size": embed.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.size("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_special_ids(file.metadata),
    }
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if model_type == "phi3":
        # Files from before this key was written need it, and cannot say it.
        config["sliding_window"] = keys.number("attention.sliding_window") or None
    elif window := keys.number("attention.sliding_window", 0):
        config["sliding_window"] = window
        # A Llama has no window; a Mistral is a Llama with one, under the same name.
        if model_type == "llama":
            config["model_type"] = "mistral"
        else:
            config |= {"use_sliding_window": True, "max_window_layers": 0}
    config |= _rope(file, keys, config)
    keys.finish()
    tokens = file.metadata.get(Keys.Tokenizer.LIST)
    if tokens is not None and len(tokens) != embed.shape[0]:
        raise GGUFError(
            f"{file.path}: the tokenizer has {len(tokens)} tokens, token_embd.weight "
            f"{embed.shape[0]} rows; they are of different models; convert it anew."
        )
    return config


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """bos, eos and pad; eos is a list where a turn ends with another token."""
    names = Keys.Tokenizer
    ends = [metadata.get(key) for key in (names.EOS_ID, names.EOT_ID, names.EOM_ID)]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": metadata.get(names.BOS_ID),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": metadata.get(names.PAD_ID),
    }


def _rope(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's part of the config."""
    head_dim = config["head_dim"]
    theta = keys.number("rope.freq_base", DEFAULT_THETA)
    rotary = keys.size("rope.dimension_count", head_dim)
    # scale_linear is the key of files before scaling had types.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "linear" and factor in (0, 1):
        kind = "none"
    original = keys.number("rope.scaling.original_context_length", 0)
    rope: dict[str, Any] = {"rope_theta": float(theta)}
    extra: dict[str, Any] = {}
    found = [name for name in ROPE_TENSORS if name in file.tensors]
    for name in found:
        if file.tensors[name].shape != (rotary // 2,):
            raise GGUFError(
                f"{file.path}: {name} has the shape {file.tensors[name].shape}, "
                f"expected ({rotary // 2},), one factor for each pair of dimensions."
            )
    if found == [ROPE_LONG, ROPE_SHORT] and kind in ("none", "longrope"):
        rope |= {
            "rope_type": "longrope",
            "short_factor": file.read(ROPE_SHORT).astype(np.float32).tolist(),
            "long_factor": file.read(ROPE_LONG).astype(np.float32).tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": keys.number("rope.scaling.attn_factor"),
        }
        extra["original_max_position_embeddings"] = original
    elif found == [ROPE_FREQS] and kind == "none":
        # Llama 3.1's scaling, already worked out by the converter.
        factors = file.read(ROPE_FREQS).astype(np.float32).tolist()
        rope |= {"rope_type": "factors", "factors": factors}
    elif not found and kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        for end in ("beta_fast", "beta_slow"):
            if value := keys.number(f"rope.scaling.yarn_{end}", 0.0):
                rope[end] = value
    elif not found and kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    elif not found and kind == "none":
        rope |= {"rope_type": "default"}
    else:
        raise GGUFError(
            f"{file.path}: rope scaling {kind!r} × {factor} with the tensors "
            f"{found or 'none'} is not supported; known are none, linear, yarn, "
            f"{ROPE_FREQS} alone, and {ROPE_LONG} with {ROPE_SHORT}."
        )
    if rope["rope_type"] in ("longrope", "yarn") and not original:
        raise GGUFError(
            f"{file.path}: rope.scaling.original_context_length is missing, which "
            f"{rope['rope_type']} needs; convert the model anew."
        )
    if rotary != head_dim:
        if config["model_type"] == "llama":
            # Its rows are reordered over the whole head, so halves are not known.
            raise GGUFError(
                f"{file.path}: rope.dimension_count is {rotary} of {head_dim} head "
                "dimensions, expected all of them in the architecture llama."
            )
        rope["partial_rotary_factor"] = rotary / head_dim
        extra["partial_rotary_factor"] = rotary / head_dim
    return {"rope_theta": float(theta), "rope_parameters": rope, **extra}
