"""LLaVA-1.5 from a folder: transformers' llava, or the original authors' own layout.

The three ways in which transformers has spelt the names of tensors over the years, and
the original names, are brought to one spelling:

    vision_tower.  multi_modal_projector.linear_{1,2}.  language_model.{model.,lm_head.}

A field that config.json leaves out has the default of transformers' configuration
classes. Of the tower only the blocks are read whose output the language model can see.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vtscale_jax.llm import LLMConfig
from vtscale_jax.vision import VisionConfig, VisionTower
from vtscale_jax.weights.files.tensors import TensorSource
from vtscale_jax.weights.huggingface import clip
from vtscale_jax.weights.huggingface.families import llm_config
from vtscale_jax.weights.language_models import llm_shapes
from vtscale_jax.weights.naming import layouts, names
from vtscale_jax.weights.naming.rules import Rule

Json = Mapping[str, Any]

# The tower of a config.json without vision_config, and of the original checkpoints.
LARGE_336 = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    **{"num_attention_heads": 16, "image_size": 336, "patch_size": 14},
}
ORIGINAL_TOWER = "clip-vit-large-patch14-336"
ORIGINAL_PROJECTOR = "mlp2x_gelu"
STRATEGIES = {"default": False, "full": True}
ORIGINAL_STRATEGIES = {"patch": False, "cls_patch": True}
IMAGE_TOKEN = 32000

# What the tower, the projector and the language model are called, in order.
RENAMES = (
    # The original's.
    (r"model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"model\.vision_tower\.vision_tower\.", "vision_tower."),
    (r"model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    # transformers', from 4.36 to 5.
    (r"model\.(vision_tower|multi_modal_projector|language_model)\.", r"\1."),
    (r"vision_tower\.vision_model\.", "vision_tower."),
    (r"language_model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    (r"lm_head\.", "language_model.lm_head."),
)
# How a name of the tower may begin.
TOWER = r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?"


class LlavaFields(NamedTuple):
    """What a config.json says of the model.

    `vision` is the whole tower of the source. `feature_layers` are the states of it
    that the projector reads, side by side (−2: the output of the last block but one),
    `keep_class` whether with the class row. `image_token_id` is the id of `<image>` in
    a prompt; None where the tokenizer has none.
    """

    vision: VisionConfig
    llm: LLMConfig
    feature_layers: tuple[int, ...]
    keep_class: bool
    projector_activation: str
    projector_bias: bool
    image_token_id: int | None


def llava_fields(config: Json, *, dtype: str = "float32") -> LlavaFields:
    """The model of a LLaVA config.json, computing in `dtype`.

    Raises ValueError for another kind of model, an unknown selection of features, and
    as `clip.vision_config` and `families.llm_config` do.
    """
    if "mm_vision_tower" in config:
        return _original_fields(config, dtype)
    if config.get("model_type") != "llava":
        raise ValueError(
            f"config.model_type: got {config.get('model_type')!r}, expected 'llava'; "
            "take a folder of LLaVA-1.5, such as llava-hf/llava-1.5-7b-hf"
        )
    given = config.get("vision_config")
    vision = {
        "model_type": "clip_vision_model",
        **(LARGE_336 if given is None else given),
    }
    text = {"model_type": "llama", **(config.get("text_config") or {})}
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    layers = config.get("vision_feature_layer", -2)
    strategy = config.get("vision_feature_select_strategy", "default")
    image_id = config.get("image_token_index", config.get("image_token_id"))
    tower = clip.vision_config(vision, dtype=dtype, **_AS_CLIP)
    return LlavaFields(
        tower,
        llm_config(text, dtype=dtype, where="text_config"),
        _layers("vision_feature_layer", layers, tower.blocks.num_layers),
        _chosen("vision_feature_select_strategy", strategy, STRATEGIES),
        config.get("projector_hidden_act", "gelu"),
        config.get("multimodal_projector_bias", True),
        IMAGE_TOKEN if image_id is None else image_id,
    )


# Our tower as CLIP's: none of the parts that are ours alone.
_AS_CLIP = {"local_merge": False, "newline": False, "keep_class": True}


def _original_fields(config: Json, dtype: str) -> LlavaFields:
    """The original's config.json: a Llama's, with fields of the tower's use in it."""
    tower = str(config["mm_vision_tower"])
    if not tower.endswith(ORIGINAL_TOWER):
        raise ValueError(
            f"config.mm_vision_tower: got {tower!r}, expected {ORIGINAL_TOWER}, whose "
            "sizes are known here; convert the folder to transformers' layout, which "
            "says them"
        )
    projector = config.get("mm_projector_type")
    if projector != ORIGINAL_PROJECTOR:
        raise ValueError(
            f"config.mm_projector_type: got {projector!r}, expected "
            f"{ORIGINAL_PROJECTOR!r}, the projector of LLaVA-1.5"
        )
    strategy = config.get("mm_vision_select_feature", "patch")
    vision = {"model_type": "clip_vision_model", **LARGE_336}
    layer = config.get("mm_vision_select_layer", -2)
    return LlavaFields(
        clip.vision_config(vision, dtype=dtype, **_AS_CLIP),
        llm_config({**config, "model_type": "llama"}, dtype=dtype),
        _layers("mm_vision_select_layer", layer, LARGE_336["num_hidden_layers"]),
        _chosen("mm_vision_select_feature", strategy, ORIGINAL_STRATEGIES),
        "gelu",
        True,
        None,
    )


def _chosen(field: str, value: Any, known: Mapping[str, bool]) -> bool:
    if value not in known:
        raise ValueError(
            f"config.{field}: got {value!r}, expected one of {sorted(known)}"
        )
    return known[value]


def num_blocks(fields: LlavaFields) -> int:
    """How many blocks of the tower are needed for `feature_layers`."""
    whole = fields.vision.blocks.num_layers
    return max(i if i >= 0 else whole + 1 + i for i in fields.feature_layers)


def _layers(field: str, value: Any, whole: int) -> tuple[int, ...]:
    """One number of a state of the tower, or a list of them."""
    layers = tuple(value) if isinstance(value, list) else (value,)
    if not layers or not all(
        isinstance(i, int) and -whole - 1 <= i <= whole for i in layers
    ):
        raise ValueError(
            f"config.{field}: got {value!r}, expected a whole number from {-whole - 1} "
            f"to {whole}, or a list of them: the states of a tower of {whole} blocks"
        )
    return layers


def llava_shapes(fields: LlavaFields) -> dict[str, Any]:
    """Shapes of the parameters (`vision`, `projector`, `llm`), in no memory."""
    side, depth = fields.vision.image_size, num_blocks(fields)
    image = jnp.zeros((1, side, side, 3))
    made: Any = jax.eval_shape(
        VisionTower(fields.vision).init, jax.random.key(0), image
    )
    vision = dict(made["params"])
    del vision["post_norm"]
    vision["blocks"] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((depth, *leaf.shape[1:]), leaf.dtype),
        vision["blocks"],
    )
    width = fields.llm.blocks.width
    sizes = (fields.vision.blocks.width * len(fields.feature_layers), width)
    projector: dict[str, Any] = {}
    for name, size in zip(("linear_1", "linear_2"), sizes, strict=True):
        projector[name] = {"kernel": jax.ShapeDtypeStruct((size, width), jnp.float32)}
        if fields.projector_bias:
            projector[name]["bias"] = jax.ShapeDtypeStruct((width,), jnp.float32)
    return {"vision": vision, "projector": projector, "llm": llm_shapes(fields.llm)}


def llava_layout(fields: LlavaFields, family: str) -> names.Layout:
    """The tensor names of LLaVA around a language model of a family."""
    tower = [
        rule.under("vision_tower.", "vision/") for rule in layouts.CLIP_VISION_RULES
    ]
    projector = [
        Rule(
            f"multi_modal_projector.{name}.{theirs}", (f"projector/{name}/{ours}",), how
        )
        for name in ("linear_1", "linear_2")
        for theirs, ours, how in (
            ("weight", "kernel", "transpose"),
            ("bias", "bias", "same"),
        )
    ]
    llm = layouts.llm_layout(family, "language_model.", "llm/")
    behind = range(num_blocks(fields), fields.vision.blocks.num_layers)
    numbers = "|".join(map(str, behind))
    unused = [rf"{TOWER}encoder\.layers\.({numbers})\..*"] if numbers else []
    return llm._replace(
        rules=(*tower, *projector, *llm.rules),
        renames=RENAMES,
        skipped=(
            # The norm after the last block, the blocks that nothing reads, and buffers
            # of old versions.
            rf"{TOWER}post_layernorm\.(weight|bias)",
            *unused,
            rf"{TOWER}embeddings\.position_ids",
            r".*\.self_attn\.rotary_emb\.inv_freq",
        ),
    )


def import_llava(
    config: Json,
    source: TensorSource,
    *,
    dtype: str = "float32",
    shardings: Mapping[str, Any] | None = None,
) -> tuple[LlavaFields, dict[str, Any]]:
    """The model and its parameters (`vision`, `projector`, `llm`) from a config.json
    and tensors.

    Parameters are of `dtype`, NumPy arrays, or jax arrays laid out as `shardings`, a
    tree like theirs. Raises ValueError as `llava_fields` does, and lists in one error
    everything that does not fit: tensors left over, missing, or of another shape.
    """
    fields = llava_fields(config, dtype=dtype)
    text = config.get("text_config") or {}
    layout = llava_layout(fields, text.get("model_type", "llama"))
    params = names.import_tree(
        layout, source, llava_shapes(fields), dtype=dtype, shardings=shardings
    )
    return fields, params
