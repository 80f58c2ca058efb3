"""A pretrained LLaVA by itself, to be measured: a folder, a name, or the shipped."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers import PreTrainedTokenizerBase

from vtscale_jax import paths
from vtscale_jax.layers import BlockConfig
from vtscale_jax.tokens import Tokenizer, end_ids
from vtscale_jax.vision import VisionConfig
from vtscale_jax.weights.embedded_llm import load_embedded_llm
from vtscale_jax.weights.files.fingerprint import tensors_sha256
from vtscale_jax.weights.huggingface.llava import (
    LlavaFields,
    import_llava,
    llava_fields,
    llava_shapes,
)
from vtscale_jax.weights.language_models import configured_ends
from vtscale_jax.weights.pretrained import check_tokenizer, open_pretrained
from vtscale_jax.weights.starting import WeightsError, read, shipped

EMBEDDED = "embedded"
SHIPPED_FILE = "llava.safetensors"
# The tower of the shipped one: that of the embedded preset on whole pages.
EMBEDDED_VISION = VisionConfig(
    image_size=96,
    patch_size=8,
    blocks=BlockConfig(
        width=128,
        mlp_width=512,
        num_heads=4,
        num_layers=4,
        norm_eps=1e-5,
        activation="quick_gelu",
    ),
    local_merge=False,
    newline=False,
    keep_class=True,
)


class LlavaWeights(NamedTuple):
    """A LLaVA with its tokenizer.

    `params` are `vision`, `projector` and `llm`. `end_ids` end an answer, `limit` is
    the number of positions that the LLM was trained for. `sha256` is of the tensors as
    they are stored, so it is the same in every dtype.
    """

    where: str
    fields: LlavaFields
    params: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    limit: int | None
    sha256: str


def load_llava(
    field: str,
    value: str,
    *,
    dtype: str = "auto",
    lay_out: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> LlavaWeights:
    """The model that `value` names: "embedded", or a folder or name on the hub (see
    `pretrained.open_pretrained`), computing and held in `dtype`.

    "auto" is bfloat16 on accelerators and float32 on CPU. `field` is what messages call
    the choice ("weights.llava"). `lay_out` gives shardings for a tree of shapes;
    without it all is on one device. Raises ValueError with the next step when the model
    cannot be had or does not fit.
    """
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if value == EMBEDDED:
        return _shipped(dtype)
    found = open_pretrained(field, value)
    fields = llava_fields(found.config, dtype=dtype)
    tokenizer = found.tokenizer()
    check_tokenizer(tokenizer, fields.llm.vocab_size, found.where)
    shapes = llava_shapes(fields)
    if lay_out is None:
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        one = NamedSharding(mesh, PartitionSpec())
        shardings = jax.tree.map(lambda _: one, shapes)
    else:
        shardings = lay_out(shapes)
    fields, params = import_llava(
        found.config, found.tensors, dtype=dtype, shardings=shardings
    )
    text = found.config.get("text_config") or found.config
    ends = [*configured_ends(found.config), *configured_ends(text)]
    return LlavaWeights(
        found.where,
        fields,
        params,
        tokenizer,
        end_ids(cast(Tokenizer, tokenizer), ends),
        text.get("max_position_embeddings"),
        tensors_sha256(found.tensors),
    )


def _shipped(dtype: str) -> LlavaWeights:
    """The tiny one, over the shipped language model."""
    if dtype != "float32":
        raise WeightsError(
            f"dtype: got {dtype!r} for the shipped LLaVA, expected float32, in which "
            "it was trained (dtype=float32)"
        )
    llm = load_embedded_llm()
    fields = LlavaFields(EMBEDDED_VISION, llm.config, (-2,), False, "gelu", True, None)
    file = shipped(SHIPPED_FILE)
    own = read(file)
    wanted = {
        path: tuple(leaf.shape)
        for path, leaf in paths.flatten(llava_shapes(fields)).items()
        if not path.startswith("llm/")
    }
    found = {path: leaf.shape for path, leaf in own.items()}
    if found != wanted:
        differing = sorted(
            path for path in {*found, *wanted} if found.get(path) != wanted.get(path)
        )
        raise WeightsError(
            f"{file}: {', '.join(differing)} do not fit the shipped LLaVA; install the "
            "package anew"
        )
    params = {**jax.tree.map(jnp.asarray, paths.unflatten(own)), "llm": llm.params}
    return LlavaWeights(
        str(file),
        fields,
        params,
        llm.tokenizer,
        llm.end_ids,
        llm.limit,
        paths.content_hash(paths.unflatten(own)),
    )
