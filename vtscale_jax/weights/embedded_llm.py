"""The language model that ships in the package, by itself."""

import dataclasses
import hashlib
from typing import cast

import jax
import jax.numpy as jnp

from vtscale_jax import paths
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.tokens import Tokenizer, end_ids
from vtscale_jax.weights.language_models import LanguageModel, reading_sha256
from vtscale_jax.weights.pretrained import folder_tokenizer
from vtscale_jax.weights.starting import SHIPPED, read, shipped

NAME = "embedded"
# Its sizes, as the preset of the same name has them (configs/presets.py).
VOCAB_SIZE = 70
BLOCKS = BlockConfig(
    width=128, mlp_width=352, num_heads=4, num_layers=4, num_kv_heads=2, norm_eps=1e-5
)


def load_embedded_llm() -> LanguageModel:
    """The tiny Llama that was taught Digit Pages in words, in float32.

    It answers in the format "plain" and has no chat template; its tokenizer knows the
    closed vocabulary of Digit Pages only.
    """
    file = shipped(SHIPPED["llm"])
    params = jax.tree.map(jnp.asarray, paths.unflatten(read(file)))["llm"]
    tokenizer = folder_tokenizer(file.parent)
    config = LLMConfig(VOCAB_SIZE, BLOCKS, tie_embeddings="head" not in params)
    ends = end_ids(cast(Tokenizer, tokenizer))
    return LanguageModel(str(file), config, params, tokenizer, ends, None)


def sha256s() -> tuple[str, str]:
    """Hashes of its sizes and tokenizer, and of its weights."""
    file = shipped(SHIPPED["llm"])
    sizes = {"vocab_size": VOCAB_SIZE, **dataclasses.asdict(BLOCKS)}
    reading = reading_sha256(sizes, folder_tokenizer(file.parent))
    return reading, hashlib.sha256(file.read_bytes()).hexdigest()
