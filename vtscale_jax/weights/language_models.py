"""A pretrained language model by itself: for a chat, or to be measured."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers import PreTrainedTokenizerBase

from vtscale_jax.llm import LLM, LLMConfig, quantize, unstack
from vtscale_jax.tokens import Tokenizer, end_ids
from vtscale_jax.weights.huggingface.families import llm_config, llm_layout
from vtscale_jax.weights.naming import names
from vtscale_jax.weights.pretrained import Pretrained, check_tokenizer, open_pretrained


class LanguageModel(NamedTuple):
    """A language model with its tokenizer.

    `end_ids` end an answer (of tokenizer, config and generation config together);
    `limit` is the number of positions it was trained for.
    """

    where: str
    config: LLMConfig
    params: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    limit: int | None


def load_language_model(
    field: str,
    value: str,
    *,
    dtype: str = "auto",
    int8: bool = False,
    apart: bool = False,
    lay_out: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> LanguageModel:
    """The model that `value` names (see `pretrained.open_pretrained`), computing and
    held in `dtype`; "auto" is bfloat16 on accelerators and float32 on CPU.

    `apart` keeps the parameters of every layer apart, for generation; `int8` holds its
    kernels as int8. `field` is what messages call the choice ("weights.llm").
    `lay_out` gives shardings for a tree of shapes; without it all is on one device.
    """
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    found = open_pretrained(field, value)
    config = llm_config(found.config, dtype=dtype, where=found.where)
    tokenizer = found.tokenizer()
    check_tokenizer(tokenizer, config.vocab_size, found.where)
    shardings = None if lay_out is None else lay_out(llm_shapes(config))
    params = llm_params(found, config, dtype, shardings)
    if int8:
        params = quantize(params)
    if apart:
        params = unstack(params)
    blocks = dataclasses.replace(config.blocks, stacked=not apart, int8=int8)
    return LanguageModel(
        found.where,
        dataclasses.replace(config, blocks=blocks),
        params,
        tokenizer,
        end_ids(cast(Tokenizer, tokenizer), configured_ends(found.config)),
        found.config.get("max_position_embeddings"),
    )


def llm_params(
    found: Pretrained,
    config: LLMConfig,
    dtype: str,
    shardings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The parameters of an `LLM` with `config`, stacked, as jax arrays of `dtype`.

    Read tensor by tensor onto `shardings`, a tree like theirs, or onto the first
    device.
    """
    targets = llm_shapes(config)
    if shardings is None:
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        one = NamedSharding(mesh, PartitionSpec())
        shardings = jax.tree.map(lambda _: one, targets)
    return names.import_tree(
        llm_layout(found.config),
        found.tensors,
        targets,
        dtype=dtype,
        shardings=shardings,
    )


def llm_shapes(config: LLMConfig) -> dict[str, Any]:
    """Shapes and dtypes of the parameters of an `LLM`, in no memory."""

    def init(key: Any) -> Any:
        ids = jnp.zeros((1, 1), jnp.int32)
        return LLM(config).init(key, ids, method=_everything)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def reading_sha256(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> str:
    """A hash of all that says how a model reads text beside its weights: its config,
    its tokenizer, and the chat template."""
    digest = hashlib.sha256()
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    # Merges and rules of a fast tokenizer; the other kind is code and vocabulary.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(b"" if backend is None else backend.to_str().encode())
    digest.update(json.dumps(tokenizer.chat_template, default=str).encode())
    digest.update(str(sorted(tokenizer.special_tokens_map.items())).encode())
    return digest.hexdigest()


def configured_ends(config: Mapping[str, Any]) -> list[int]:
    """End tokens that config.json and generation_config.json name."""
    found: list[int] = []
    for source in (config, config.get("generation_config") or {}):
        ids = source.get("eos_token_id")
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return found


def _everything(llm: LLM, ids: jax.Array) -> jax.Array:
    return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)
