"""GGUF files of language models, as if they were Hugging Face folders.

    model = open_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    model.config["hidden_size"]                            # 576
    model.tensors.read("model.layers.0.self_attn.q_proj.weight")  # [576, 576] float32
    model.tokenizer().apply_chat_template(...)

llama.cpp's converter renames the tensors, and for the architecture `llama` (Llama,
Vicuna, Mistral, SmolLM2) it also reorders the rows of q and k, because its rotary
embedding turns neighbouring pairs where Hugging Face's turns halves. Both are undone
here; the config is made in `config`.

Source: llama.cpp's conversion scripts (`LlamaModel.permute`, `Phi3MiniModel`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import Keys
from transformers import PreTrainedTokenizerFast

from vtscale_jax.weights.gguf.config import ROPE_TENSORS, model_config
from vtscale_jax.weights.gguf.file import GGUFError, GGUFFile
from vtscale_jax.weights.gguf.tokenizer import build_tokenizer

LAYER = "{i}"


class Architecture(NamedTuple):
    """How one `general.architecture` is written.

    `names` are (name in the file, Hugging Face name) pairs, `{i}` the layer; `permuted`
    are the file's names of which the rows are reordered, with the config field that
    counts their heads.
    """

    model_type: str
    names: tuple[tuple[str, str], ...]
    permuted: Mapping[str, str]


def _block(*rows: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"blk.{LAYER}.{a}", f"model.layers.{LAYER}.{b}") for a, b in rows)


MODEL = (
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    *_block(
        ("attn_norm.weight", "input_layernorm.weight"),
        ("attn_output.weight", "self_attn.o_proj.weight"),
        ("ffn_norm.weight", "post_attention_layernorm.weight"),
        ("ffn_down.weight", "mlp.down_proj.weight"),
    ),
)

SEPARATE = _block(
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
)

BIASES = _block(
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
)

OUT_BIAS = _block(("attn_output.bias", "self_attn.o_proj.bias"))

# ffn_up holds the gate's rows, then those of up, as Hugging Face's gate_up_proj does.
FUSED = _block(
    ("attn_qkv.weight", "self_attn.qkv_proj.weight"),
    ("ffn_up.weight", "mlp.gate_up_proj.weight"),
)

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        (*MODEL, *SEPARATE, *BIASES, *OUT_BIAS),
        {
            "blk.{i}.attn_q.weight": "num_attention_heads",
            "blk.{i}.attn_q.bias": "num_attention_heads",
            "blk.{i}.attn_k.weight": "num_key_value_heads",
            "blk.{i}.attn_k.bias": "num_key_value_heads",
        },
    ),
    "qwen2": Architecture("qwen2", (*MODEL, *SEPARATE, *BIASES), {}),
    "phi3": Architecture("phi3", (*MODEL, *FUSED), {}),
}


class GGUF(NamedTuple):
    """An opened GGUF file: config, tensors (a `TensorSource`) and tokenizer."""

    where: str
    config: dict[str, Any]
    tensors: "GGUFTensors"
    file: GGUFFile

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The file's tokenizer, with its special tokens and chat template."""
        return build_tokenizer(self.file.metadata, self.where)


def open_gguf(path: Path) -> GGUF:
    """Opens a GGUF file of one of the architectures in `ARCHITECTURES`.

    GGUFError says what is wrong: a damaged file, an unknown architecture, an
    unsupported tensor type, tensors that do not belong to the architecture, keys that
    are missing or not understood, or a tokenizer of another size than the embeddings.
    """
    file = GGUFFile(Path(path))
    named = file.metadata.get(Keys.General.ARCHITECTURE)
    if named not in ARCHITECTURES:
        raise GGUFError(
            f"{path}: general.architecture is {named!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}; take a model of one of these families, or "
            "its Hugging Face folder where the family is supported there."
        )
    if (num_parts := file.metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0)) > 1:
        raise GGUFError(
            f"{path}: is one of {num_parts} parts of a model; join them with "
            "llama.cpp's `llama-gguf-split --merge` and give the joined file."
        )
    architecture = ARCHITECTURES[named]
    config = model_config(file, named, architecture.model_type)
    return GGUF(str(path), config, GGUFTensors(file, architecture, config), file)


class GGUFTensors:
    """The tensors of a GGUF file in Hugging Face names, layout and row order.

    F32, F16 and BF16 keep their dtype, quantised tensors are float32; `types` has the
    names of what is stored. A tensor's bytes are read when it is asked for.
    """

    def __init__(
        self, file: GGUFFile, architecture: Architecture, config: Mapping[str, Any]
    ):
        self.where = str(file.path)
        self._file = file
        self._stored = _stored_names(file, architecture, config["num_hidden_layers"])
        self._orders = {}
        for name, stored in self._stored.items():
            field = architecture.permuted.get(re.sub(r"\d+", LAYER, stored, count=1))
            if field is not None:
                rows = file.tensors[stored].shape[0]
                expected = config[field] * config["head_dim"]
                if rows != expected:
                    raise GGUFError(
                        f"{self.where}: tensor {stored!r} has {rows} rows, expected "
                        f"{expected} ({field} × head_dim); the file's metadata and "
                        "tensors are of different models; convert it anew."
                    )
                self._orders[name] = unpermuted_rows(rows, config[field])
        self.types = {n: file.tensors[s].type.name for n, s in self._stored.items()}
        self.shapes = {n: file.tensors[s].shape for n, s in self._stored.items()}
        self.dtypes = {n: file.tensors[s].dtype for n, s in self._stored.items()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or `tensor[index]`, of which only the rows needed are read."""
        if name not in self._stored:
            raise GGUFError(
                f"{self.where}: has no tensor {name!r}; it has {', '.join(self.shapes)}"
            )
        first, *others = index or (slice(None),)
        order = self._orders.get(name)
        rows = first if order is None else order[first]
        found = self._file.read(self._stored[name], rows)
        return np.ascontiguousarray(found[(slice(None), *others)]) if others else found


def unpermuted_rows(rows: int, heads: int) -> np.ndarray:
    """[rows] which row of the file is row r of the Hugging Face tensor.

    llama.cpp stores row j of a head's first half beside row j of its second half. For
    one head of 6 rows the file holds 0 3 1 4 2 5, so the order is 0 2 4 1 3 5.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _stored_names(
    file: GGUFFile, architecture: Architecture, num_layers: int
) -> dict[str, str]:
    """Hugging Face name → name in the file; every tensor of the file has a place."""
    known = {
        theirs.replace(LAYER, str(i)): ours.replace(LAYER, str(i))
        for theirs, ours in architecture.names
        for i in range(num_layers if LAYER in theirs else 1)
    }
    unknown = sorted(set(file.tensors) - set(known) - set(ROPE_TENSORS))
    if unknown:
        raise GGUFError(
            f"{file.path}: {len(unknown)} tensors have no place in a "
            f"{architecture.model_type} model of {num_layers} layers:\n    "
            + "\n    ".join(unknown)
            + "\n  The model has parts that are not supported; take its plain variant."
        )
    return {known[name]: name for name in file.tensors if name in known}
