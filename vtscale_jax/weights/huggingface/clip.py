"""CLIP of any size: a Hugging Face CLIP folder ↔ our vision and text towers.

A CLIP has all of our text tower, and of the vision tower everything up to the last
block. What follows there is ours: `post_norm` reads every token where CLIP's
post_layernorm reads the class token only, and local merge and newline token are new.

Read are configs of `model_type` clip (both towers), clip_vision_model and
clip_text_model. Fields that a file leaves out have the defaults of transformers'
configuration classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from vtscale_jax import paths
from vtscale_jax.layers import BlockConfig
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.vision import VisionConfig
from vtscale_jax.weights.files.tensors import TensorSource
from vtscale_jax.weights.naming import layouts, names
from vtscale_jax.weights.naming.rows import resize_rows

Json = Mapping[str, Any]

VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "eos_token_id": 49407,
}
PROJECTION_DEFAULT = 512
ALONE = {"vision": "clip_vision_model", "text": "clip_text_model"}
ARCHITECTURES = {
    "vision": "CLIPVisionModel",
    "text": "CLIPTextModelWithProjection",
    "clip": "CLIPModel",
}
# Paths of our vision tower that have no place in a CLIP, and that it has nothing for.
CLIP_LACKS = ("vision/merge/", "vision/newline")
OURS_ALONE = ("vision/post_norm/", *CLIP_LACKS)
LOGIT_SCALE = "align/logit_scale"
# Tables that may have more rows than the source; each draws with a number of its own.
GROWING = {"text/embed": 0, "text/pos_embed": 1}


def _blocks(d: Json, dtype: str) -> BlockConfig:
    return BlockConfig(
        width=d["hidden_size"],
        mlp_width=d["intermediate_size"],
        num_heads=d["num_attention_heads"],
        num_layers=d["num_hidden_layers"],
        norm_eps=float(d["layer_norm_eps"]),
        activation=d["hidden_act"],
        dtype=dtype,
    )


def vision_config(
    config: Json, *, dtype: str = "float32", **changes: Any
) -> VisionConfig:
    """Our vision tower around the one of a CLIP; `changes` are fields of ours to set.

    A tower that computes what CLIP does, up to its post_layernorm, has
    `local_merge=False, newline=False, keep_class=True`.

    Raises ValueError for another kind of model, for images of other than three
    channels, and for images or patches that are not square.
    """
    d = {**VISION_DEFAULTS, **_tower(config, "vision")}
    if d["num_channels"] != 3:
        raise ValueError(
            f"vision_config.num_channels: got {d['num_channels']}, expected 3 (RGB)"
        )
    for field in ("image_size", "patch_size"):
        if not isinstance(d[field], int):
            raise ValueError(
                f"vision_config.{field}: got {d[field]!r}, expected one whole number "
                "of pixels; only square images and patches are computed here"
            )
    fields = {
        "image_size": d["image_size"],
        "patch_size": d["patch_size"],
        "blocks": _blocks(d, dtype),
    }
    return VisionConfig(**{**fields, **changes})


def text_config(config: Json, *, dtype: str = "float32", **changes: Any) -> TextConfig:
    """The text tower of a CLIP; `changes` are fields of ours to set.

    A larger `max_length` or `vocab_size` than CLIP's is what `import_clip` grows.

    Raises ValueError for another kind of model.
    """
    d = {**TEXT_DEFAULTS, **_tower(config, "text")}
    outer = config if config["model_type"] == "clip" else d
    fields = {
        "vocab_size": d["vocab_size"],
        "max_length": d["max_position_embeddings"],
        "projection_width": outer.get("projection_dim", PROJECTION_DEFAULT),
        "blocks": _blocks(d, dtype),
    }
    return TextConfig(**{**fields, **changes})


def _tower(config: Json, tower: str) -> Json:
    """The fields of one tower, as they stand in a config.json."""
    kind = config.get("model_type")
    if kind == ALONE[tower]:
        return config
    if kind != "clip":
        raise ValueError(
            f"config.model_type: got {kind!r}, expected 'clip' or {ALONE[tower]!r}; "
            f"take a CLIP folder that has the {tower} tower"
        )
    # Old files hold the towers twice, and transformers believes the dictionary that
    # holds the differences from the defaults.
    older = config.get(f"{tower}_config_dict")
    return older if older is not None else config.get(f"{tower}_config") or {}


class ImportedClip(NamedTuple):
    """Parameters of a CLIP as a nested tree (`vision`, `text`, `align`), and the paths
    of the vision tower that it has nothing for, to be initialised fresh."""

    params: dict[str, Any]
    fresh: tuple[str, ...]


def import_clip(
    config: Json,
    source: TensorSource,
    targets: Mapping[str, Any],
    *,
    dtype: names.Dtypes = None,
    seed: int = 0,
) -> ImportedClip:
    """Our towers from a CLIP's config.json and tensors.

    `targets` is our tree of anything with a shape: what is there of `vision`, `text`
    and `align/logit_scale` is filled, other parts are not looked at. `text/embed` and
    `text/pos_embed` may have more rows than the CLIP (77 → 512 positions, added query
    tokens): new ones are drawn with `seed` (see `rows.resize_rows`). The position table
    may also have fewer. `dtype` is as in `names.import_tree`.

    Raises ValueError when nothing of a CLIP is asked for, when the CLIP has not the
    tower, and as `names.import_tree` does.
    """
    flat = paths.flatten(targets)
    towers = [tower for tower in ALONE if tower in targets]
    if not towers:
        raise ValueError(
            f"targets: got {sorted(targets)}, expected 'vision', 'text' or both"
        )
    for tower in towers:
        _tower(config, tower)
    parts = [*towers, *(["logit_scale"] if LOGIT_SCALE in flat else [])]
    ours = {
        path: leaf
        for path, leaf in flat.items()
        if path == LOGIT_SCALE or path.partition("/")[0] in towers
    }
    fresh = tuple(path for path in ours if path.startswith(OURS_ALONE))
    held = {path: leaf for path, leaf in ours.items() if path not in fresh}
    wanted = {path: ours[path].shape[0] for path in GROWING if path in ours}
    if wanted:
        held |= _tables(config, ours)
    tree = names.import_tree(
        layouts.clip_layout(config["model_type"], parts),
        source,
        paths.unflatten(held),
        dtype=dtype,
    )
    found = paths.flatten(tree)
    for path, rows in wanted.items():
        found[path] = resize_rows(found[path], rows, (seed, GROWING[path]))
    return ImportedClip(paths.unflatten(found), fresh)


def _tables(config: Json, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The text tables with as many rows as the source has."""
    source = text_config(config)
    rows = {"text/embed": source.vocab_size, "text/pos_embed": source.max_length}
    if ours["text/embed"].shape[0] < source.vocab_size:
        raise ValueError(
            f"text.vocab_size: got {ours['text/embed'].shape[0]}, expected at least "
            f"the {source.vocab_size} of the source, whose tokenizer goes with it"
        )
    return {
        path: jax.ShapeDtypeStruct((count, *ours[path].shape[1:]), ours[path].dtype)
        for path, count in rows.items()
    }


def hf_clip_config(
    vision: VisionConfig | None,
    text: TextConfig | None,
    base: Json | None = None,
    *,
    dtype: str = "float32",
) -> dict[str, Any]:
    """A config.json for the CLIP part of our towers, as transformers reads it.

    One tower gives a CLIPVisionModel or a CLIPTextModelWithProjection, both a
    CLIPModel. `base` is the config.json that the towers came from: what ours do not say
    (token ids, dropout) is kept. `dtype` is that of the tensors beside it.

    Raises ValueError when no tower is given, and when ⟨eos⟩ is not in the vocabulary:
    transformers reads a text at its first ⟨eos⟩, and at its first token without one.
    """
    parts = {}
    if vision is not None:
        parts["vision"] = {
            **_kept(base, "vision"),
            **_block_fields(vision.blocks),
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        }
    if text is not None:
        parts["text"] = {
            "eos_token_id": TEXT_DEFAULTS["eos_token_id"],
            **_kept(base, "text"),
            **_block_fields(text.blocks),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_length,
            "projection_dim": text.projection_width,
        }
        if parts["text"]["eos_token_id"] >= text.vocab_size:
            raise ValueError(
                f"text_config.eos_token_id: got {parts['text']['eos_token_id']}, "
                f"expected an id of the vocabulary of {text.vocab_size}; give it in "
                "base, the config.json that the tower came from"
            )
    if not parts:
        raise ValueError("vision, text: got neither, expected at least one tower")
    towers = {tower: {**d, "model_type": ALONE[tower]} for tower, d in parts.items()}
    if len(towers) == 1:
        ((tower, fields),) = towers.items()
        return {**fields, "architectures": [ARCHITECTURES[tower]], "dtype": dtype}
    return {
        "model_type": "clip",
        "architectures": [ARCHITECTURES["clip"]],
        "dtype": dtype,
        "projection_dim": towers["text"]["projection_dim"],
        **{f"{tower}_config": fields for tower, fields in towers.items()},
    }


def _kept(base: Json | None, tower: str) -> dict[str, Any]:
    """The tower's fields of the source that do not speak of its files."""
    if base is None or base.get("model_type") not in ("clip", ALONE[tower]):
        return {}
    fields = _tower(base, tower)
    gone = ("architectures", "dtype", "torch_dtype", "_name_or_path")
    return {name: value for name, value in fields.items() if name not in gone}


def _block_fields(blocks: BlockConfig) -> dict[str, Any]:
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp_width,
        "num_hidden_layers": blocks.num_layers,
        "num_attention_heads": blocks.num_heads,
        "layer_norm_eps": blocks.norm_eps,
        "hidden_act": blocks.activation,
    }


class ExportedClip(NamedTuple):
    """Tensors under CLIP's names, and our paths that a CLIP has no place for."""

    tensors: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def export_clip(
    params: Mapping[str, Any],
    *,
    visual_projection: Float[np.ndarray, "E D"] | None = None,
) -> ExportedClip:
    """The CLIP part of our `vision`, our `text`, or both.

    Our `post_norm` becomes CLIP's post_layernorm: on the class token it computes the
    same. One tower alone is a CLIPVisionModel or a CLIPTextModelWithProjection. A
    CLIPModel also has `logit_scale` (`align/logit_scale` of `params`) and
    `visual_projection`, which ours never had: give that of the CLIP that the tower came
    from, and mind that it was not trained along.

    Raises ValueError when one of the two is missing: transformers would draw it at
    random.
    """
    flat = paths.flatten(params)
    towers = [tower for tower in ALONE if tower in params]
    prefixes = tuple(f"{tower}/" for tower in towers)
    kept = {
        path: leaf
        for path, leaf in flat.items()
        if path.startswith(prefixes) and not path.startswith(CLIP_LACKS)
    }
    extra = {}
    if not towers:
        raise ValueError(f"params: got {sorted(params)}, expected 'vision' or 'text'")
    if len(towers) == 2:
        missing = [LOGIT_SCALE] if LOGIT_SCALE not in flat else []
        missing += ["visual_projection"] if visual_projection is None else []
        if missing:
            raise ValueError(
                f"params: got both towers without {' and '.join(missing)}, which a "
                "CLIPModel needs; give it, or export the towers one by one: "
                "CLIPVisionModel and CLIPTextModelWithProjection do without"
            )
        kept[LOGIT_SCALE] = flat[LOGIT_SCALE]
        extra["visual_projection.weight"] = np.asarray(visual_projection)
    tensors = names.export_tree(layouts.CLIP_EXPORT_LAYOUT, paths.unflatten(kept))
    left_out = tuple(path for path in flat if path not in kept)
    return ExportedClip({**tensors, **extra}, left_out)
